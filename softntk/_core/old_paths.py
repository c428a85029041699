"""Import paths of version 0.1, kept for modules whose public names have moved."""

import importlib
import sys
from collections.abc import Mapping


def keep_old_paths(package: str, modules: Mapping[str, str]) -> None:
    """Make old module paths importable, for pickles and scripts of version 0.1.

    ``import package.old`` then finds the module that now holds the public names of ``package.old``.
    A name that the package itself uses, such as the function ``regression.problem``, is not
    replaced.

    Args:
        package: the package's full name, ``__name__`` in its ``__init__``.
        modules: old name → new name, both relative to the package.
    """
    namespace = vars(sys.modules[package])
    for old_name, new_name in modules.items():
        module = importlib.import_module(f"{package}.{new_name}")
        sys.modules.setdefault(f"{package}.{old_name}", module)
        namespace.setdefault(old_name, module)

"""Import paths of version 0.1: modules whose public names have moved keep their old names too."""

import importlib
import sys
from collections.abc import Mapping


def keep_old_paths(package: str, modules: Mapping[str, str]) -> None:
    """Let ``import package.old`` find the module that now holds the public names of
    ``package.old``.

    For pickles and scripts of version 0.1. A name that the package itself uses, as the function
    ``regression.problem``, stays what it is.

    Args:
        package: the package's full name, ``__name__`` in its ``__init__``.
        modules: old name → new name, both relative to the package.
    """
    namespace = vars(sys.modules[package])
    for old, new in modules.items():
        module = importlib.import_module(f"{package}.{new}")
        sys.modules.setdefault(f"{package}.{old}", module)
        namespace.setdefault(old, module)

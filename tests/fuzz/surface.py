"""The public surface, enumerated: functions, constructors and methods that users can reach by a
public name; ``python tests/fuzz/surface.py`` prints it, for ``diff`` of two states.

Public is what a module of ``MODULES`` defines under a name without underscore, or hands on by
``import a as a``; and the methods of every class that is public itself or that a public function
says it returns.
"""

import ast
import enum
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "activations",
    "networks",
    "ntk",
    "curvature.structured",
    "curvature.leverage",
    "curvature.sketch",
    "regression",
    "solvers",
    "solvers.step_sizes",
    "solution",
    "theory",
    "theory.bounds",
    "theory.generalisation",
    "theory.lazy",
    "theory.feature_learning",
    "diffusion",
    "diffusion.metrics",
    "calibration",
    "sklearn",
    "stax",
)

CONTAINERS = frozenset(
    {
        "tree_flatten",
        "tree_unflatten",
        "in_structure",
        "out_structure",
        "in_size",
        "out_size",
        "__len__",
        "__iter__",
    }
)
"""Methods of containers and operators that compute nothing."""

_NO_SIGNATURE = (enum.Enum, BaseException)
"""Classes whose signature is that of Python."""


@functools.cache
def public_surface() -> dict[str, Any]:
    """Return every public callable by its shortest name, ``ntk.solve`` or
    ``regression.Problem.gradient``.
    """
    surface: dict[str, Any] = {}
    seen: set[int] = set()
    for module_name in MODULES:
        module = importlib.import_module(f"softntk.{module_name}")
        for name in sorted(public_names(module)):
            value = getattr(module, name)
            if not callable(value) or id(value) in seen or not _is_own(value):
                continue
            seen.add(id(value))
            surface[f"{module_name}.{name}"] = value
    waiting = list(surface.items())
    while waiting:
        name, value = waiting.pop(0)
        place = ".".join(part for part in name.split(".")[:-1] if part[0].islower())
        if inspect.isclass(value):
            inherited = {
                method for base in value.__mro__[1:] if id(base) in seen for method in vars(base)
            }
            found = [] if issubclass(value, _NO_SIGNATURE) else list(methods(value))
            reached = {
                f"{name}.{method}": function
                for method, function in found
                if method not in inherited
            }
        else:
            classes = [
                cls for cls in returned_classes(value) if id(cls) not in seen and _is_own(cls)
            ]
            seen.update(map(id, classes))
            reached = {f"{place}.{cls.__name__}": cls for cls in classes}
        surface.update(reached)
        waiting.extend(reached.items())
    return surface


def public_names(module: ModuleType) -> set[str]:
    """Return the names that a module defines, or hands on by ``import a as a``, without an
    underscore in front.
    """
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
    return {
        name
        for name in names
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    }


def returned_classes(function: Any) -> Iterator[type]:
    """Yield the classes that a function's annotation says it returns."""
    annotations = getattr(function, "__annotations__", {})
    hint = annotations.get("return")
    if isinstance(hint, str):
        hint = getattr(inspect.unwrap(function), "__globals__", {}).get(hint)
    waiting = [hint]
    while waiting:
        hint = waiting.pop()
        if inspect.isclass(hint):
            yield hint
        waiting.extend(typing.get_args(hint))


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods of a class that softntk defines; properties and containers' methods
    are left out.
    """
    for name in sorted(dir(cls)):
        if (name.startswith("_") and name != "__call__") or name in CONTAINERS:
            continue
        attribute = inspect.getattr_static(cls, name)
        function = getattr(attribute, "__func__", attribute)
        if inspect.isfunction(inspect.unwrap(function)) and _is_own(function):
            yield name, function


def surface_lines() -> list[str]:
    """Return one line for each public name, sorted: a signature with its defaults, the name that
    another one repeats, the type of a constant; and for each property and member of a public class.
    """
    surface = public_surface()
    lines = {name + _signature(value) for name, value in surface.items()}
    names = {id(value): name for name, value in surface.items()}
    for module_name in (*MODULES, "nt", ""):
        module = importlib.import_module(f"softntk.{module_name}".rstrip("."))
        for attribute in public_names(module):
            value = getattr(module, attribute)
            name = f"{module_name}.{attribute}".lstrip(".")
            if id(value) in names and names[id(value)] != name:
                lines.add(f"{name} = {names[id(value)]}")
            elif id(value) not in names:
                lines.add(name + _signature(value))
    for name, cls in surface.items():
        if inspect.isclass(cls):
            lines |= {f"{name}.{line}" for line in _attribute_lines(cls)}
    return sorted(lines)


def _attribute_lines(cls: type) -> Iterator[str]:
    """Yield properties, and members of an enumeration."""
    if issubclass(cls, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in cls)
        return
    for name in dir(cls):
        if not name.startswith("_") and isinstance(inspect.getattr_static(cls, name), property):
            yield f"{name}: property"


def _signature(value: Any) -> str:
    """Return the signature of a callable, without addresses and the modules of its types; the
    type of anything else.
    """
    if not callable(value) or (inspect.isclass(value) and issubclass(value, _NO_SIGNATURE)):
        return f": {type(value).__name__}"
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(…)"
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", re.sub(r" at 0x\w+", "", text))


def _is_own(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").startswith("softntk")


if __name__ == "__main__":
    print("\n".join(surface_lines()))

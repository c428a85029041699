"""Decorators that make records: frozen dataclasses that are pytrees.

record            results shown to users; built by keyword
function_record   records whose methods are passed to ``jax.jit`` and similar functions
static_record     configuration without arrays, part of the compiled program
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import chex
import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Return the class as a frozen dataclass that is a pytree and is built by keyword.

    This is ``chex.dataclass(frozen=True)`` with types that type checkers understand. The record is
    not a mapping, so that a class may define its own iteration and unpacking.
    """
    return chex.dataclass(frozen=True, mappable_dataclass=False)(cls)


def static(**options: Any) -> Any:
    """Return a field of a :func:`function_record` that is static: hashable and never traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def function_record(cls: type[T]) -> type[T]:
    """Return the class as a frozen pytree whose methods are plain bound methods.

    Use it for records that are called, so that ``jax.jit(p.gradient)`` works. They are hashed and
    compared by identity, as functions are.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


@dataclass_transform(frozen_default=True)
def static_record(cls: type[T]) -> type[T]:
    """Return the class as a frozen, hashable record of numbers and names.

    It is a pytree without leaves, so that jit never traces its fields.
    """
    return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))

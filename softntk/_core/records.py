"""How softntk makes records: frozen dataclasses that are pytrees, built by keyword."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import chex
import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """``chex.dataclass(frozen=True)``, told to type checkers; a record is not a mapping, so that
    one may unpack as it likes.
    """
    return chex.dataclass(frozen=True, mappable_dataclass=False)(cls)


def static(**options: Any) -> Any:
    """A field of a :func:`function_record` that is part of its type, not of its data: hashable,
    never traced.
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def function_record(cls: type[T]) -> type[T]:
    """A record that is called: a frozen pytree whose methods are plain bound methods, so that
    ``jax.jit(p.gradient)`` works.

    It is hashed and compared by identity, as functions are.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


@dataclass_transform(frozen_default=True)
def static_record(cls: type[T]) -> type[T]:
    """A frozen, hashable record of plain numbers and names: a pytree without leaves, so that jit
    never traces its fields.
    """
    return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))

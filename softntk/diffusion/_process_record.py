"""How noising processes are made: records of numbers that are static where they are known and
leaves where they are traced.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from softntk.diffusion._arguments import Number

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def process_record(cls: type[T]) -> type[T]:
    """Return a frozen dataclass whose numbers are part of its type, as in a static record, and
    traced ones leaves of a pytree.

    So a process of plain numbers has no leaves, is hashed and compared; one of traced numbers has
    derivatives in them.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]

    def flatten(process: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        values = [getattr(process, name) for name in names]
        leaves = tuple(None if isinstance(value, float) else value for value in values)
        return leaves, tuple(value if isinstance(value, float) else None for value in values)

    def unflatten(numbers: tuple[Any, ...], leaves: tuple[Any, ...]) -> Any:
        process = object.__new__(cls)
        for name, number, leaf in zip(names, numbers, leaves, strict=True):
            object.__setattr__(process, name, leaf if number is None else number)
        return process

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


def in_dtype(value: Number, dtype: Any) -> Number:
    """Return a Python number as it is, which promotes nothing, and a traced one in the dtype."""
    return value if isinstance(value, float) else jnp.asarray(value, dtype)


def apply_to_number(host: Callable, traced: Callable, value: Number) -> Any:
    """Return a function of ``math`` of a Python number, in float64, and that of ``jax.numpy`` of a
    traced one.
    """
    return host(value) if isinstance(value, float) else traced(value)

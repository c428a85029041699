"""The decorator behind noising processes, and arithmetic with their numbers.

A process is a record of numbers. Python's numbers are static, traced ones are leaves of a pytree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from softntk.diffusion._types import Number

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def process_record(cls: type[T]) -> type[T]:
    """Return the class as a frozen dataclass that is a pytree of its traced numbers.

    Python's numbers are static. A process of these alone has no leaves, and can be hashed and
    compared. A process of traced numbers can be differentiated in them.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    field_names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]

    # Each number is in one of two tuples of full length, and None in the other, so that a process
    # may mix plain and traced numbers.
    def flatten(process: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return traced numbers as leaves and plain numbers as static data, None elsewhere."""
        field_values = [getattr(process, name) for name in field_names]
        leaves = tuple(None if isinstance(value, float) else value for value in field_values)
        static = tuple(value if isinstance(value, float) else None for value in field_values)
        return leaves, static

    def unflatten(static: tuple[Any, ...], leaves: tuple[Any, ...]) -> T:
        """Return the process, built without its ``__init__``: leaves may be any object."""
        process = object.__new__(cls)
        for name, number, leaf in zip(field_names, static, leaves, strict=True):
            object.__setattr__(process, name, leaf if number is None else number)
        return process

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


def in_dtype(value: Number, dtype: DTypeLike) -> Number:
    """Return a traced number in the dtype; a Python number stays, as it promotes nothing."""
    return value if isinstance(value, float) else jnp.asarray(value, dtype)


def apply_to_number(
    host_function: Callable[[float], float],
    traced_function: Callable[..., Array],
    value: Number,
) -> Number:
    """Apply a ``math`` function to a Python number, or its JAX version to a traced one."""
    return host_function(value) if isinstance(value, float) else traced_function(value)

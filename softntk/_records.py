"""How softntk makes records: frozen dataclasses that are pytrees, built by keyword."""

from typing import TypeVar, dataclass_transform

import chex

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """``chex.dataclass(frozen=True)``, told to type checkers; a record is not a mapping, so that one may unpack as it likes."""
    return chex.dataclass(frozen=True, mappable_dataclass=False)(cls)

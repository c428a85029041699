"""Registration of softntk's symmetric operators with lineax."""

from collections.abc import Callable
from typing import TypeVar

import lineax as lx

Operator = TypeVar("Operator", bound=lx.AbstractLinearOperator)

# Properties that none of softntk's operators is known to have.
_ABSENT_PROPERTIES = (
    lx.is_negative_semidefinite,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.has_unit_diagonal,
)


def register_tags(
    kind: type[Operator],
    *,
    symmetric: bool = True,
    positive: Callable[[Operator], bool] = lambda operator: False,
) -> None:
    """Register a class of real operators with lineax, so that its solvers accept them.

    Args:
        kind: the class of operators.
        symmetric: whether they are symmetric.
        positive: returns whether an operator is known to be positive semidefinite.
    """
    for has_property in _ABSENT_PROPERTIES:
        has_property.register(kind, lambda operator: False)
    lx.is_symmetric.register(kind, lambda operator: symmetric)
    lx.is_positive_semidefinite.register(kind, positive)
    # The operators are linear and real already.
    lx.linearise.register(kind, lambda operator: operator)
    lx.conj.register(kind, lambda operator: operator)

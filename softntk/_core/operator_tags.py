"""What softntk's symmetric operators answer to lineax' questions: said in one place."""

from collections.abc import Callable
from typing import Any

import lineax as lx

_NO = (
    lx.is_negative_semidefinite,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.has_unit_diagonal,
)


def register_tags(
    kind: type[lx.AbstractLinearOperator],
    *,
    symmetric: bool = True,
    positive: Callable[[Any], bool] = lambda operator: False,
) -> None:
    """Register a kind of operator, real and linear: whether it is symmetric, and a function that
    tells if it is ≽ 0.
    """
    for question in _NO:
        question.register(kind, lambda operator: False)
    lx.is_symmetric.register(kind, lambda operator: symmetric)
    lx.is_positive_semidefinite.register(kind, positive)
    lx.linearise.register(kind, lambda operator: operator)
    lx.conj.register(kind, lambda operator: operator)

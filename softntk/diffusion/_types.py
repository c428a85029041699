"""Type names that several files of the package share."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float

# Aliases of annotations; under tests their shapes are checked at run time.
Number = float | Float[Array, ""]
"""A hyperparameter: a Python number, or a traced one."""

Points = Float[Array | np.ndarray, "n d"]
"""Points in R^d, one in each row."""

Times = Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " n"] | float
"""One time for all points, or one for each point."""

ScoreFn = Callable[[Any, Any], Any]
"""A score (t, x) -> [n, d], called with a scalar t and x of shape [n, d]."""

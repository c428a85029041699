"""Random regressions that the statements of [S], [D] and [H] are measured on.

| entry of a case | meaning | shape |
|---|---|---|
| A | design matrix | [n, d] |
| b | target in the simplex | [n] |
| x, y | two points; the entries of y − x have deviation 0.001, 0.1 or 1 | [d] |
| w | weights | [n] |
"""

import jax
import jax.numpy as jnp
import numpy as np

from softntk import regression
from softntk.theory._ledger.statement import Case

REGRESSION_AXES = {"A": "nd", "b": "n", "x": "d", "y": "d", "w": "n"}
"""Axes of the arrays of a case, by letter."""

DRAWN_SHAPES = ((2, 1), (6, 3))
"""Shapes (n, d) that are drawn."""

NORM_MARGIN = 1e-9
"""Relative margin by which norms are rounded up."""


def draw_regression(
    rng: np.random.Generator, shape: tuple[int, int] | None = None, scale: float | None = None
) -> Case:
    """Draw a regression of shape (n, d), with A of the given scale."""
    # Few shapes, because functions compile for each; Dirichlet(½) has entries close to zero.
    n, d = DRAWN_SHAPES[rng.integers(len(DRAWN_SHAPES))] if shape is None else shape
    scale = float(rng.choice([0.1, 0.5, 1.5])) if scale is None else scale
    x = rng.normal(size=d)
    return {
        "A": scale * rng.normal(size=(n, d)),
        "b": rng.dirichlet(np.full(n, 0.5)),
        "x": x,
        "y": x + rng.choice([1e-3, 0.1, 1.0]) * rng.normal(size=d),
        "w": rng.uniform(0, 2, size=n),
    }


def tall_case(rng: np.random.Generator) -> Case:
    """Draw a regression with A of full rank; it has one shape, so that checks compile once."""
    return draw_regression(rng, (6, 3))


def build_problem(
    case: Case, name: str, weighted: bool = True, form: str = "normalized"
) -> regression.Problem:
    """Return the regression of softntk."""
    return regression.problem(case["A"], case["b"], name, form, case["w"] if weighted else 0.0)


def largest_norm(case: Case) -> float:
    """Return R = max(‖A‖, ‖x‖, ‖y‖); the papers also ask for R ≥ 4, which only loosens bounds."""
    norms = np.linalg.norm(case["A"], 2), np.linalg.norm(case["x"]), np.linalg.norm(case["y"])
    return float(max(norms))


def ball_radius(case: Case) -> float:
    """Return the radius of a ball around zero that holds both points."""
    largest = float(max(np.linalg.norm(case["x"]), np.linalg.norm(case["y"])))
    return largest * (1 + NORM_MARGIN)


def point_norm(case: Case) -> float:
    """Return the radius of a ball around zero that holds x."""
    return float(np.linalg.norm(case["x"])) * (1 + NORM_MARGIN)


def point(case: Case) -> jax.Array:
    """Return x for softntk."""
    return jnp.asarray(case["x"])


def target_in_simplex(case: Case) -> bool:
    """Return whether b ≥ 0 and ‖b‖₁ ≤ 1, as [D] asks."""
    return bool(case["b"].sum() <= 1 + NORM_MARGIN and (case["b"] >= 0).all())

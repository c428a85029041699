"""Which transform ``minimise`` takes when none is given."""

from typing import Any

import optax

from softntk._linalg import design_matrix as matrices
from softntk.regression import Problem
from softntk.solvers._minimise.units import in_own_units
from softntk.solvers._newton.transform import approx_newton

_DENSE = 2000  # unknowns up to which a curvature without rows is formed as a matrix
_ROWS = 10  # of a sample, for each column
# columns from which on a sample and a few products are cheaper than the whole Gram product
_WORTH = 300
_STEPS = 40  # conjugate gradient steps a step, at most


def default_transform(problem: Any) -> optax.GradientTransformationExtraArgs:
    """Approximate Newton for what has a Hessian, L-BFGS for the rest."""
    if not hasattr(problem, "hessian"):
        return in_own_units(optax.lbfgs())
    options: dict[str, Any] = {
        "gauss_newton": getattr(problem, "gauss_newton", None),
        "damping": "levenberg_marquardt",
    }
    if isinstance(problem, Problem):
        n, d = problem.shape
        if matrices.is_operator(problem.A) and d > _DENSE:
            return approx_newton(problem.hessian, cg_steps=_STEPS, **options)
        wide, sparse = (
            d >= _WORTH and n >= 4 * _ROWS * d,
            matrices.is_sparse(problem.A) and n >= 2 * _ROWS * d,
        )
        if wide or sparse:
            return approx_newton(problem.hessian, sketch_size=_ROWS * d, cg_steps=_STEPS, **options)
        return approx_newton(problem.hessian, **options)
    size = sum(leaf.size for leaf in problem.structure[0]) if hasattr(problem, "structure") else 0
    return approx_newton(problem.hessian, cg_steps=None if size <= _DENSE else _STEPS, **options)

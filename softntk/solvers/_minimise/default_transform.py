"""The transform that ``minimise`` chooses when none is given."""

from typing import Any

import optax

from softntk._linalg import design_matrix as matrices
from softntk.regression import CrossEntropy, Problem
from softntk.solvers._minimise.loop_state import Loss
from softntk.solvers._minimise.units import in_own_units
from softntk.solvers._newton.transform import approx_newton

# Unknowns up to which a curvature without rows is formed as a matrix.
MAX_DENSE_SIZE = 2000
# Rows of a sample for each column.
ROWS_PER_COLUMN = 10
# Number of columns from which on a sample and a few products cost less than the whole Gram product.
MIN_SAMPLED_COLUMNS = 300
# Unknowns of a classification up to which its curvature is formed as a matrix; of sparse ones.
MAX_DENSE_CLASS_SIZE = 128
MAX_SPARSE_CLASS_SIZE = 32
# Largest number of conjugate gradient steps in a Newton step.
MAX_CG_STEPS = 40


def default_transform(problem: Loss) -> optax.GradientTransformationExtraArgs:
    """Return approximate Newton for a problem with a ``hessian``, L-BFGS for any other function.

    Newton's method is exact where that is cheap. In many dimensions it uses products with the
    Hessian and forms no matrix [d, d]. Where a matrix has many rows for each column, a sample of
    rows preconditions these products.
    """
    if not hasattr(problem, "hessian"):
        return in_own_units(optax.lbfgs())
    hessian = problem.hessian
    options: dict[str, Any] = {
        "gauss_newton": getattr(problem, "gauss_newton", None),
        "damping": "levenberg_marquardt",
    }
    # 1. Regressions, by shape and kind of the design matrix.
    if isinstance(problem, Problem):
        return _regression_transform(problem, options)

    # 2. Classifications.
    if isinstance(problem, CrossEntropy):
        return _classification_transform(problem, options)

    # 3. Other problems: by the number of unknowns.
    size = 0
    if hasattr(problem, "structure"):
        size = sum(leaf.size for leaf in problem.structure[0])
    cg_steps = None if size <= MAX_DENSE_SIZE else MAX_CG_STEPS
    return approx_newton(hessian, cg_steps=cg_steps, **options)


def _regression_transform(
    problem: Problem, options: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """Return exact Newton steps, or conjugate gradients for many columns."""
    n, d = problem.shape
    if matrices.is_operator(problem.A) and d > MAX_DENSE_SIZE:
        return approx_newton(problem.hessian, cg_steps=MAX_CG_STEPS, **options)
    sample_rows = ROWS_PER_COLUMN * d
    is_large = d >= MIN_SAMPLED_COLUMNS and n >= 4 * sample_rows
    is_long_sparse = matrices.is_sparse(problem.A) and n >= 2 * sample_rows
    if is_large or is_long_sparse:
        sampled = {"sketch_size": sample_rows, "cg_steps": MAX_CG_STEPS}
        return approx_newton(problem.hessian, **sampled, **options)
    return approx_newton(problem.hessian, **options)


def _classification_transform(
    problem: CrossEntropy, options: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """Return exact Newton steps for few unknowns, else conjugate gradients with class blocks.

    The work of a step, in products with the curvature, 4 n d̃ k operations each, d̃ = d + 1:

    | method | dense A | sparse A |
    |---|---|---|
    | the matrix: k²/2 Gram products; its factor | d̃k/8, at twice the speed of products | d̃k/4 |
    | constant bound | 1 to 100: more, the sharper the probabilities | the same |
    | class blocks of m sampled rows | 3 to 25, and (m + 2d̃)d̃/(4n) for new blocks | the same |
    """
    d = problem.shape[1]
    size = (d + 1) * problem.classes
    is_sparse = matrices.is_sparse(problem.A)
    if size <= (MAX_SPARSE_CLASS_SIZE if is_sparse else MAX_DENSE_CLASS_SIZE):
        options["gauss_newton"] = problem.gauge_fixed_hessian
        return approx_newton(problem.gauge_fixed_hessian, **options)
    if matrices.is_operator(problem.A):
        # Even the diagonal of the curvature would need the matrix of A.
        return approx_newton(problem.hessian, cg_steps=MAX_CG_STEPS, **options)
    return approx_newton(
        problem.hessian, cg_steps=MAX_CG_STEPS, preconditioner=problem.preconditioner, **options
    )

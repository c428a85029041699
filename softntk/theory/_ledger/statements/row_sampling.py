"""Statements of [D] and [S] about leverage scores, sampled rows, and the cost of a sampled step."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from softntk import regression
from softntk.curvature import leverage, sketch
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement, equal

ACCURACY = 0.5
"""ε of the sampled Gram matrix."""

FAILURE_PROBABILITY = 0.1
"""δ of the sampled Gram matrix."""

SAMPLE_COUNT = 20
"""Samples for one quantile of the distortion."""

MAX_OPERATIONS_PER_ENTRY = 200
"""Operations that one more entry of A may cost in a sampled step; most are random numbers."""


def weighted_rows_case(rng: np.random.Generator) -> Case:
    """Draw rows of very different lengths, the first alone in its direction, and weights D."""
    # Uniform sampling would miss the first row, which has nearly all of the third column.
    A = rng.normal(size=(300, 3)) * np.exp(rng.normal(size=(300, 1)))
    A[0] = [0.0, 0.0, 3.0]
    A[1:, 2] = rng.choice([0.0, 0.01]) * rng.normal(size=299)
    return {"A": A, "D": rng.uniform(0.1, 2, size=300), "seed": int(rng.integers(2**31))}


def check_leverage_scores(case: Case) -> Instance:
    """Compare the leverage scores with the diagonal of the projection."""
    # A pinv(A) projects onto the column space, whatever the rank.
    A = np.sqrt(case["D"])[:, None] * case["A"]
    return equal(leverage.scores(case["A"], case["D"]), np.diag(A @ np.linalg.pinv(A)))


def check_score_sum(case: Case) -> Instance:
    """Compare the sum of the leverage scores with the rank."""
    total = float(jnp.sum(leverage.scores(case["A"], case["D"])))
    return equal(total, float(np.linalg.matrix_rank(case["A"])))


# --- the size of a sample


def chernoff_size(d: int, epsilon: float, failure: float) -> int:
    """Return s = 3d log(2d/δ)/ε², by the matrix Chernoff bound."""
    return math.ceil(3 * d * math.log(2 * d / failure) / epsilon**2)


def bernstein_size(d: int, epsilon: float, failure: float) -> int:
    """Return s = 2(d − 1)(1 + ε/3) log(2d/δ)/ε², by the matrix Bernstein inequality; d ≥ 2."""
    # A whitened row over its probability is d times a projection onto a line: its deviation X from
    # the identity has ‖X‖ = L = d − 1 and E X² = V I, V = d − 1. Bernstein's probability of failure
    # is 2d exp(−sε²/2/(V + Lε/3)).
    return math.ceil(2 * (d - 1) * (1 + epsilon / 3) * math.log(2 * d / failure) / epsilon**2)


@functools.partial(jax.jit, static_argnames="size")
def sampled_grams(
    key: jax.Array, pi: jax.Array, A: jax.Array, D: jax.Array, size: int
) -> jax.Array:
    """Return sampled Gram matrices, [SAMPLE_COUNT, d, d]."""
    keys = jax.random.split(key, SAMPLE_COUNT)
    return jax.vmap(lambda key: sketch.draw(key, pi, size).gram(A, D))(keys)


def check_sample_size(
    sample_size: Callable[[int, float, float], int],
) -> Callable[[Case], Instance | None]:
    """Return a check of ε against the (1 − δ)-quantile of the distortion for this sample size."""

    def check(case: Case) -> Instance | None:
        A = jnp.asarray(case["A"])
        D = jnp.asarray(case["D"])
        d = A.shape[1]
        # For d = 1 Bernstein's bound asks for no rows.
        if d < 2:
            return None
        exact = case["A"].T @ (case["D"][:, None] * case["A"])
        size = sample_size(d, ACCURACY, FAILURE_PROBABILITY)
        pi = sketch.probabilities("leverage", A, D)
        grams = np.asarray(sampled_grams(jax.random.key(case["seed"]), pi, A, D, size))
        distortions = [oracles.spectral_distortion(gram, exact) for gram in grams]
        return Instance(ACCURACY, float(np.quantile(distortions, 1 - FAILURE_PROBABILITY)))

    return check


def two_row_case(rng: np.random.Generator) -> Case:
    """Draw an accuracy and a probability of failure for two orthogonal rows."""
    return {
        "epsilon": float(rng.uniform(0.1, 1)),
        "failure": float(10 ** rng.uniform(-8, -0.5)),
    }


def check_two_rows(case: Case) -> Instance:
    """Compare the exact probability of failure of two orthogonal rows with δ."""
    # Exact, because rare failures cannot be counted in samples.
    size = bernstein_size(2, case["epsilon"], case["failure"])
    return Instance(case["failure"], oracles.two_row_failure_probability(size, case["epsilon"]))


# --- the cost of a step


@functools.cache
def count_step_operations(n: int, d: int) -> float:
    """Return the operations of a sampled Newton step for A [n, d], as the compiler counts them.

    The step takes the gradient, approximate leverage scores, a sample of a size that does not
    depend on n, and the solution of a d × d system.
    """

    # Every quantity of the step depends on x, the scores too.
    def step(A: jax.Array, b: jax.Array, x: jax.Array, key: jax.Array) -> jax.Array:
        score_key, row_key = jax.random.split(key)
        problem = regression.problem(A, b, "exp", "normalized", 2.0)
        D = problem.hessian(x).logit_diagonal + 4.0
        scores = leverage.approximate_scores(score_key, A, D)
        size = chernoff_size(d, ACCURACY, FAILURE_PROBABILITY)
        sample = sketch.draw(row_key, scores / jnp.sum(scores), size)
        return x - jnp.linalg.solve(sample.gram(A, D), problem.gradient(x))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in ((n, d), (n,), (d,))]
    lowered = jax.jit(step).lower(*shapes, jax.random.key(0))
    costs = lowered.compile(compiler_options=oracles.QUICK_COMPILATION).cost_analysis()
    assert costs is not None
    return float(costs["flops"])


def cost_case(rng: np.random.Generator) -> Case:
    """Draw a number of rows; few choices, because every one compiles."""
    return {"n": int(rng.choice([1000, 2000])), "d": 8}


def check_step_cost(case: Case) -> Instance:
    """Compare the operations of n additional rows with 200 for each additional entry."""
    n = case["n"]
    d = case["d"]
    # The difference leaves out what does not depend on n, the d³ above all.
    additional = count_step_operations(2 * n, d) - count_step_operations(n, d)
    return Instance(float(MAX_OPERATIONS_PER_ENTRY * n * d), additional)


SAMPLING_AXES = {"A": "nd", "D": "n"}

STATEMENTS = (
    # The scores.
    Statement(
        "[D] leverage scores",
        "τ_i = (A(AᵀA)⁻¹Aᵀ)_ii of diag(√D)A",
        weighted_rows_case,
        check_leverage_scores,
        SAMPLING_AXES,
        equality=True,
        count=10,
    ),
    Statement(
        "[D] leverage scores: sum",
        "Σ τ_i = d",
        weighted_rows_case,
        check_score_sum,
        SAMPLING_AXES,
        equality=True,
        count=10,
    ),
    # How many rows a sample needs.
    Statement(
        "[S] lemma: sparsifier",
        "(1 − ε)AᵀDA ≼ Ã ≼ (1 + ε)AᵀDA with probability 1 − δ, "
        "s = 3d log(2d/δ)/ε² rows by leverage",
        weighted_rows_case,
        check_sample_size(chernoff_size),
        SAMPLING_AXES,
        count=5,
    ),
    Statement(
        "[ours] sparsifier",
        "the same with s = 2(d − 1)(1 + ε/3) log(2d/δ)/ε² rows by exact leverage, d ≥ 2",
        weighted_rows_case,
        check_sample_size(bernstein_size),
        SAMPLING_AXES,
        count=5,
        source="ours",
    ),
    Statement(
        "[ours] sparsifier: two orthogonal rows",
        "P(not a (1 ± ε)-approximation) ≤ δ, exactly, with s = 2(d − 1)(1 + ε/3) log(2d/δ)/ε², "
        "d = 2; without the factor 2 it is larger",
        two_row_case,
        check_two_rows,
        source="ours",
    ),
    # What a step with so many rows costs.
    Statement(
        "[S] theorem: cost of a step",
        "Õ(nnz(A) + d^ω); scaled: with s fixed, at most 200 operations for each additional entry "
        "of a dense A, d = 8 (gradient, approximate leverage, sampled rows, solve)",
        cost_case,
        check_step_cost,
        count=2,
    ),
)

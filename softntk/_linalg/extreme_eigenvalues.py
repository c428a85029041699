"""Extreme eigenvalues of symmetric matrices and operators, each with a bound of its error."""

import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import (
    check_integer,
    check_key,
    check_positive_int,
)
from softntk._core.validation.arrays import MIN_FACTORISATION_BITS
from softntk._linalg.gram_arrays import (
    Gram,
    as_matrix,
    rounding,
)
from softntk._linalg.lanczos import distance_beyond, lanczos
from softntk._linalg.norms import binary_scale

MAX_DENSE_SIZE = 1024
"""A matrix of this size is decomposed faster than a hundred products with it are computed."""

FAILURE_PROBABILITY = 1e-6
"""Probability that an error bound for an operator is wrong."""


@record
class Extremes:
    """The ends of a spectrum; unpacks into (smallest, largest).

    Attributes:
        smallest: λ_min, not below the exact one up to rounding.
        largest: λ_max, not above the exact one up to rounding.
        smallest_error: the exact λ_min is within this of ``smallest``.
        largest_error: the exact λ_max is within this of ``largest``.
    """

    smallest: Float[Array, ""]
    largest: Float[Array, ""]
    smallest_error: Float[Array, ""]
    largest_error: Float[Array, ""]

    @property
    def resolved(self) -> Array:
        """Whether λ_min is known to be positive: it exceeds its error bound."""
        return self.smallest > self.smallest_error

    def __iter__(self) -> Iterator[Array]:
        return iter((self.smallest, self.largest))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Array:
        return (self.smallest, self.largest)[index]


def extreme_eigenvalues(
    op: Gram | lx.AbstractLinearOperator,
    *,
    steps: int = 100,
    key: PRNGKeyArray | None = None,
    dense_size: int = MAX_DENSE_SIZE,
) -> Extremes:
    r"""Return the extreme eigenvalues of a kernel or a symmetric operator, with error bounds.

    Use it for the rate λ_min of gradient descent, and for the largest step size, 2/λ_max.

    A dense matrix, or an operator of at most ``dense_size``, is decomposed; the eigenvalues have an
    error of at most 2√n ε λ_max (ε the rounding unit; more than LAPACK states).

    A larger operator is treated by Lanczos from a random vector. The outermost Ritz values lie
    inside the spectrum. How far the spectrum can extend beyond them follows from the Lanczos
    polynomial, which cannot be large at an eigenvalue along whose eigenvector the start vector has
    a component. A random vector has a component of at least δ√(π/2n) along any eigenvector with
    probability 1 − δ, δ = 10⁻⁶. The rounding error above is added. So the bound is proven, up to
    that probability, where residuals would only be a heuristic. Small gaps at the lower end of an
    ill-conditioned kernel make the bound large, and then ``resolved`` is False.

    Args:
        op: [n, n], or [n, n, k, k] for all outputs at once, or a symmetric lineax operator: a
            kernel, a Hessian.
        steps: number of products with an operator; as many vectors are stored.
        key: random key of the start vector; ``jax.random.key(0)`` if None.
        dense_size: operators up to this size (n·k) are formed and decomposed.

    Returns:
        :class:`Extremes`: ``smallest, largest = extreme_eigenvalues(op)``; with
        ``.smallest_error``, ``.largest_error`` and ``.resolved``, False where λ_min cannot be
        distinguished from zero. Scalars, +inf if a product is not finite.

    Raises:
        ValueError: op is not square, empty, of integers, not finite, or not symmetric (an operator:
            not tagged so); steps is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> ends = ntk.extreme_eigenvalues(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> [round(float(v), 5) for v in ends], bool(ends.resolved)
        ([1.0, 3.0], True)

    Source: λ_min of the kernel is the rate of arXiv 2405.03251, Theorem 3.7; λ_max bounds the step
    size, η < 2/λ_max. The bound: Van Dorsselaer, Hochstenbach and van der Vorst (2000), SIAM J.
    Matrix Anal. Appl. 22(3), 837-852.
    """
    # 1. Arrays are always decomposed.
    check_positive_int("steps", steps)
    check_integer("dense_size", dense_size, at_least=0)
    key = None if key is None else check_key("key", key)
    if not isinstance(op, lx.AbstractLinearOperator):
        return _dense_extremes(as_matrix(op, "op"))
    # 2. Check the operator: one array, a precision with factorisations, symmetry.
    structure = op.in_structure()
    if not isinstance(structure, jax.ShapeDtypeStruct):
        raise ValueError(f"op must act on one array, got an operator on {structure}.")
    check_operator_precision(structure.dtype)
    if not lx.is_symmetric(op):
        raise ValueError(
            "op must be tagged symmetric, as lineax.TaggedLinearOperator(op, lineax.symmetric_tag) "
            "is."
        )
    # 3. Decompose a small one, and run Lanczos on a larger one.
    if op.in_size() <= dense_size:
        return _dense_extremes(op.as_matrix())
    return _lanczos_extremes(op, key_or_default(key), min(steps, op.in_size()))


def check_operator_precision(dtype: jax.typing.DTypeLike) -> None:
    """Refuse an operator in half precision."""
    if jnp.finfo(dtype).bits < MIN_FACTORISATION_BITS:
        raise ValueError(
            f"op must be float32 or float64, got an operator on {dtype}. "
            "Make it of arrays in float32."
        )


@jax.jit
def _dense_extremes(matrix: Float[Array, "p p"]) -> Extremes:
    """Return the extreme eigenvalues of a matrix by decomposition."""
    eigenvalues = finite_eigenvalues(matrix)
    error = rounding(len(matrix), jnp.max(jnp.abs(eigenvalues)))
    return Extremes(
        smallest=eigenvalues[0], largest=eigenvalues[-1], smallest_error=error, largest_error=error
    )


@partial(jax.jit, static_argnums=2)
def _lanczos_extremes(op: lx.AbstractLinearOperator, key: PRNGKeyArray, steps: int) -> Extremes:
    """Return the extreme eigenvalues of an operator by Lanczos from a random vector."""
    # 1. The outermost Ritz values, and their rounding error.
    size = op.in_size()
    structure = op.in_structure()
    start = jax.random.normal(key, structure.shape, structure.dtype)
    tridiagonal = lanczos(op, start, steps)
    smallest = tridiagonal.nodes[0]
    largest = tridiagonal.nodes[-1]
    rounding_error = rounding(size, jnp.maximum(jnp.abs(smallest), jnp.abs(largest)))
    # 2. How far an eigenvalue can lie beyond them; with as many nodes as eigenvalues there is none.
    log_component = _log_component_bound(size)
    is_partial = tridiagonal.valid_steps < size
    distance_below = jnp.where(is_partial, distance_beyond(tridiagonal, -1, log_component), 0)
    distance_above = jnp.where(is_partial, distance_beyond(tridiagonal, 1, log_component), 0)
    return Extremes(
        smallest=finite_or_infinite(smallest),
        largest=finite_or_infinite(largest),
        smallest_error=finite_or_infinite(distance_below + rounding_error),
        largest_error=finite_or_infinite(distance_above + rounding_error),
    )


def _log_component_bound(size: int) -> float:
    """Return the logarithm of what a component of a random unit vector exceeds, but for a failure.

    |v_1| has the density at zero √(2/π) Γ(n/2)/Γ((n − 1)/2)/√2 ≤ √(2n/π), and less elsewhere.
    """
    return math.log(FAILURE_PROBABILITY * math.sqrt(math.pi / (2 * size)))


def finite_eigenvalues(matrix: Float[Array, "p p"]) -> Float[Array, " p"]:
    """Return the eigenvalues, computed in a unit in which LAPACK's sums do not overflow."""
    unit = binary_scale(matrix)
    return finite_or_infinite(jnp.linalg.eigvalsh(matrix / unit) * unit[0])


def finite_or_infinite(values: Array) -> Array:
    """Return the values with +inf in place of NaN and −inf, which overflow leaves."""
    return jnp.where(jnp.isfinite(values), values, jnp.inf)


def key_or_default(key: PRNGKeyArray | None) -> PRNGKeyArray:
    """Return the key, or ``jax.random.key(0)`` for None."""
    return jax.random.key(0) if key is None else key

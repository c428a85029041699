r"""Reorthogonalised Lanczos, with detection of breakdown and bounds of eigenvalues it missed.

From a start vector v, s products give orthonormal Q [s, size] and a tridiagonal T = Q K Qᵀ. Then

    f(K) v ≈ ‖v‖ Qᵀ f(T) e₁,        ⟨v, f(K) v⟩ ≈ ‖v‖² Σ_i w_i f(θ_i),

with the eigenvalues θ_i and eigenvectors s_i of T, w_i = ⟨s_i, e₁⟩². These are exact for
polynomials of degree s − 1 and 2s − 1. Everything is computed in a unit in which K v is about one,
so that no norm over- or underflows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product

LOG_RANGE = 60.0
"""Logarithm of the range of distances that bisection searches: e⁻⁶⁰ is below any rounding unit."""

BISECTION_STEPS = 60
"""Halvings of that range: more than the digits of float64 can resolve."""


class Tridiagonal(NamedTuple):
    """The result of s steps of Lanczos; T and all that depends on it are in units of ``unit``.

    If the Krylov space is exhausted after fewer than s steps, the remaining part of T is decoupled
    (zero off the diagonal, T[0, 0] on it) and the remaining part of the basis is zero. This changes
    neither f(T) e₁ nor the extreme eigenvalues.

    Attributes:
        scaled_matrix: T, [s, s].
        scaled_nodes: the eigenvalues of T, ascending, [s].
        vectors: the eigenvectors of T, in columns, [s, s].
        basis: Q, [s, *shape].
        corner: T[0, 0].
        log_beta_sum: Σ log β_j over the valid steps; the last β is the norm of the residual.
        valid_steps: number of steps before the Krylov space was exhausted, at most s.
        start_norm: ‖v‖.
        unit: a power of two.
    """

    scaled_matrix: Float[Array, "s s"]
    scaled_nodes: Float[Array, " s"]
    vectors: Float[Array, "s s"]
    basis: Float[Array, "s *shape"]
    corner: Float[Array, ""]
    log_beta_sum: Float[Array, ""]
    valid_steps: Int[Array, ""]
    start_norm: Float[Array, ""]
    unit: Float[Array, ""]

    @property
    def nodes(self) -> Float[Array, " s"]:
        """The eigenvalues of T in the unit of K, ascending."""
        return self.unit * self.scaled_nodes

    @property
    def matrix(self) -> Float[Array, "s s"]:
        """T in the unit of K."""
        return self.unit * self.scaled_matrix

    @property
    def weights(self) -> Float[Array, " s"]:
        """The weights w, which sum to one."""
        return self.vectors[0] ** 2

    def combine(self, coefficients: Float[Array, "r s"]) -> Float[Array, "r *shape"]:
        """Return f(K) v for r functions f, from the coefficients f(T) e₁ of each."""
        combined = product(coefficients, self.basis.reshape(len(self.scaled_nodes), -1))
        return self.start_norm * combined.reshape(len(coefficients), *self.basis.shape[1:])


def lanczos(
    op: lx.AbstractLinearOperator, start: Float[Array, "*shape"], steps: int
) -> Tridiagonal:
    """Return the result of ``steps`` fully reorthogonalised Lanczos steps with op from ``start``.

    A zero start vector gives the combination zero for every function.
    """
    from matfree import decomp

    # 1. Normalise. A start vector of zeros would give NaN; any nonzero one serves in its place,
    #    because results are multiplied by the norm, zero.
    start_norm = scaled_norm(start)
    start = jnp.where(start_norm > 0, start / jnp.where(start_norm > 0, start_norm, 1), 1)
    # 2. Lanczos in a unit in which K v is about one.
    with jax.default_matmul_precision("highest"):
        unit = binary_scale(op.mv(start)).reshape(())
        decomposition = decomp.tridiag_sym(steps, materialize=False)(
            lambda v: op.mv(v) / unit, start
        )
    diagonal, offdiagonal = decomposition.J_small
    basis = jnp.asarray(decomposition.Q_tall)
    betas = jnp.append(offdiagonal, scaled_norm(decomposition.residual))
    # 3. The Krylov space is exhausted where a residual is rounding only. All later steps, which may
    #    be NaN, are replaced.
    is_finite = jnp.isfinite(diagonal)
    max_diagonal = jnp.max(jnp.where(is_finite, jnp.abs(diagonal), 0))
    rounding_level = 10 * float(jnp.finfo(diagonal.dtype).eps) * max_diagonal
    is_coupled = jnp.isfinite(betas) & (betas > rounding_level)
    is_reached = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(is_coupled[:-1]).astype(bool)])
    is_valid = is_reached & is_finite
    corner = diagonal[0]
    diagonal = jnp.where(is_valid, diagonal, corner)
    offdiagonal = jnp.where(is_valid[1:], betas[:-1], 0)
    basis = jnp.where(is_valid.reshape(-1, *(1,) * (basis.ndim - 1)), basis, 0)
    # 4. The spectrum of T. The floor of the betas is for a matrix of zeros.
    matrix = jnp.diag(diagonal) + jnp.diag(offdiagonal, 1) + jnp.diag(offdiagonal, -1)
    nodes, vectors = jnp.linalg.eigh(matrix)
    tiny = float(jnp.finfo(diagonal.dtype).tiny)
    beta_floor = jnp.maximum(rounding_level, tiny)
    log_betas = jnp.log(jnp.maximum(jnp.where(is_valid, betas, 1), beta_floor))
    return Tridiagonal(
        scaled_matrix=matrix,
        scaled_nodes=nodes,
        vectors=vectors,
        basis=basis,
        corner=corner,
        log_beta_sum=jnp.sum(jnp.where(is_valid, log_betas, 0)),
        valid_steps=jnp.sum(is_valid),
        start_norm=start_norm,
        unit=unit,
    )


def distance_beyond(tridiagonal: Tridiagonal, sign: int, log_component: float) -> Float[Array, ""]:
    r"""Return how far beyond the nodes of Lanczos an eigenvalue of K can lie, in the unit of K.

    The next Lanczos vector is p(K) v with ‖p(K) v‖ = 1 and p(λ) = Π(λ − θ_i)/Πβ_i. An eigenvector q
    gives |p(λ)| |⟨q, v⟩| ≤ 1, and |p| grows without bound outside the nodes. So an eigenvalue is
    not beyond the λ with log|p(λ)| = −log|⟨q, v⟩|, which bisection finds.

    Args:
        tridiagonal: the result of :func:`lanczos`.
        sign: 1 for the distance above the last node, −1 for that below the first.
        log_component: the logarithm of a lower bound of |⟨q, v⟩|.

    Source: Van Dorsselaer, Hochstenbach and van der Vorst (2000), SIAM J. Matrix Anal. Appl. 22(3),
    837-852.
    """
    target = tridiagonal.log_beta_sum - log_component
    nodes = tridiagonal.scaled_nodes
    end_node = nodes[-1] if sign > 0 else nodes[0]
    # Steps after an exhausted Krylov space have put copies of T[0, 0] among the nodes.
    extra_nodes = len(nodes) - tridiagonal.valid_steps
    tiny = float(jnp.finfo(nodes.dtype).tiny)

    def log_polynomial(distance: Array) -> Array:
        """Return log Π|λ − θ_i| at a distance from the end node."""
        point = end_node + sign * distance
        logs = jnp.log(jnp.maximum(jnp.abs(point - nodes), tiny))
        log_corner = jnp.log(jnp.maximum(jnp.abs(point - tridiagonal.corner), tiny))
        return jnp.sum(logs) - extra_nodes * log_corner

    def bisect(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        lower, upper = bracket
        middle = 0.5 * (lower + upper)
        is_below = log_polynomial(jnp.exp(middle)) < target
        return jnp.where(is_below, middle, lower), jnp.where(is_below, upper, middle)

    # Bisection of log distance. No node is nearer than the end node: log Π ≥ s log distance.
    upper = target / tridiagonal.valid_steps
    bracket = (upper - LOG_RANGE, upper)
    return tridiagonal.unit * jnp.exp(lax.fori_loop(0, BISECTION_STEPS, bisect, bracket)[1])

r"""Lanczos with all the care that spectra need: breakdown, orthogonality, and what the polynomials
prove about the rest.

From a start vector v, s products give orthonormal Q [s, size] and a tridiagonal T = Q K Qᵀ. Then

    f(K) v ≈ ‖v‖ Qᵀ f(T) e₁,        ⟨v, f(K) v⟩ ≈ ‖v‖² Σ_i w_i f(θ_i)        (θ_i eigenvalues of T, w_i = ⟨s_i, e₁⟩²),

exact for polynomials of degree s − 1 and 2s − 1. All is done in a unit in which K v is about one,
so that no norm over- or underflows whatever the unit of K.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product


class Tridiagonal(NamedTuple):
    """What s steps of Lanczos have found, T and what depends on it in units of ``unit``.

    If the Krylov space is exhausted after ``kept`` < s steps, the rest of T is decoupled (zero off
    the diagonal, its first entry on it) and the rest of the basis is zero: neither f(T) e₁ nor the
    extreme eigenvalues notice.
    """

    scaled_matrix: Float[Array, "s s"]  # T
    scaled_nodes: Float[Array, " s"]  # its eigenvalues, ascending
    vectors: Float[Array, "s s"]  # its eigenvectors, in columns
    basis: Float[Array, "s *shape"]  # Q
    first: Float[Array, ""]  # T[0, 0]
    log_betas: Float[
        Array, ""
    ]  # Σ log β_j over the kept steps, the last being the norm of the residual
    kept: Int[Array, ""]
    length: Float[Array, ""]  # ‖v‖
    unit: Float[Array, ""]  # a power of two

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
        """w, which sum to one."""
        return self.vectors[0] ** 2

    def combine(self, small: Float[Array, "r s"]) -> Float[Array, "r *shape"]:
        """Return f(K) v for r functions f, from f(T) e₁ for each."""
        flat = product(small, self.basis.reshape(len(self.scaled_nodes), -1))
        return self.length * flat.reshape(len(small), *self.basis.shape[1:])


def lanczos(
    op: lx.AbstractLinearOperator, start: Float[Array, "*shape"], steps: int
) -> Tridiagonal:
    """Make ``steps`` products with op from ``start``, fully reorthogonalised; a zero start vector
    gives zero everywhere.
    """
    from matfree import decomp

    length = scaled_norm(start)
    # A start vector of zeros would give NaN; any other one serves, for its length is zero.
    start = jnp.where(length > 0, start / jnp.where(length > 0, length, 1), 1)
    with jax.default_matmul_precision("highest"):
        unit = binary_scale(op.mv(start)).reshape(())
        found = decomp.tridiag_sym(steps, materialize=False)(lambda v: op.mv(v) / unit, start)
    diagonal, offdiagonal = found.J_small
    basis = jnp.asarray(found.Q_tall)
    betas = jnp.append(offdiagonal, scaled_norm(found.residual))
    # An exhausted Krylov space shows as a residual of rounding only; what comes behind it (NaN,
    # perhaps) is cut off.
    finite = jnp.isfinite(diagonal)
    size = jnp.max(jnp.where(finite, jnp.abs(diagonal), 0))
    noise = 10 * float(jnp.finfo(diagonal.dtype).eps) * size
    coupled = jnp.isfinite(betas) & (betas > noise)
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(coupled[:-1]).astype(bool)]) & finite
    first = diagonal[0]
    diagonal = jnp.where(alive, diagonal, first)
    inner = jnp.where(alive[1:], betas[:-1], 0)
    basis = jnp.where(alive.reshape(-1, *(1,) * (basis.ndim - 1)), basis, 0)
    matrix = jnp.diag(diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    nodes, vectors = jnp.linalg.eigh(matrix)
    tiny = float(jnp.finfo(diagonal.dtype).tiny)  # of a matrix of zeros, whose betas are
    log_betas = jnp.sum(
        jnp.where(
            alive, jnp.log(jnp.maximum(jnp.where(alive, betas, 1), jnp.maximum(noise, tiny))), 0
        )
    )
    return Tridiagonal(
        matrix, nodes, vectors, basis, first, log_betas, jnp.sum(alive), length, unit
    )


def distance_beyond(found: Tridiagonal, sign: int, log_component: float) -> Float[Array, ""]:
    r"""Return how far beyond the last node (sign 1) or the first (−1) an eigenvalue can lie, in the
    unit of K.

    It holds if v has at least a known component along the eigenvector.

    The next Lanczos vector is p(K)v with ‖p(K)v‖ = 1 and p(λ) = Π(λ − θ_i)/Πβ_i. An eigenvector q
    gives
    |p(λ)| |⟨q, v⟩| ≤ 1, and |p| grows without bound outside the nodes. So an eigenvalue beyond them
    is not beyond the λ with log|p(λ)| = −log|⟨q, v⟩|, found by bisection.

    Source: Van Dorsselaer, Hochstenbach and van der Vorst (2000), SIAM J. Matrix Anal. Appl. 22(3),
    837-852.
    """
    goal = found.log_betas - log_component
    nodes = found.scaled_nodes
    node = nodes[-1] if sign > 0 else nodes[0]
    spare = len(nodes) - found.kept
    tiny = float(jnp.finfo(nodes.dtype).tiny)

    def log_p(distance: Array) -> Array:
        at = node + sign * distance
        logs = jnp.log(jnp.maximum(jnp.abs(at - nodes), tiny))
        return jnp.sum(logs) - spare * jnp.log(jnp.maximum(jnp.abs(at - found.first), tiny))

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        inside = log_p(jnp.exp(middle)) < goal
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    # All nodes are at least as far as the outermost one, so the distance is at most the mean of the
    # logarithms.
    high = goal / found.kept
    return found.unit * jnp.exp(lax.fori_loop(0, 60, halve, (high - 60.0, high))[1])

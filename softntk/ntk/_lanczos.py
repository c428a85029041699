r"""Lanczos with all the care that spectra need: breakdown, orthogonality, and what the polynomials prove about the rest.

From a start vector v, s products give orthonormal Q [s, size] and a tridiagonal T = Q K Qᵀ. Then

    f(K) v ≈ ‖v‖ Qᵀ f(T) e₁,        ⟨v, f(K) v⟩ ≈ ‖v‖² Σ_i w_i f(θ_i)        (θ_i eigenvalues of T, w_i = ⟨s_i, e₁⟩²),

exact for polynomials of degree s − 1 and 2s − 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int

from softntk.ntk._contractions import product


class Tridiagonal(NamedTuple):
    """What s steps of Lanczos have found.

    If the Krylov space is exhausted after ``kept`` < s steps, the rest of T is decoupled (zero off the diagonal, its first
    entry on it) and the rest of the basis is zero: neither f(T) e₁ nor the extreme eigenvalues notice.
    """

    nodes: Float[Array, " s"]  # eigenvalues of T, ascending
    vectors: Float[Array, "s s"]  # its eigenvectors, in columns
    basis: Float[Array, "s *shape"]  # Q
    first: Float[Array, ""]  # T[0, 0]
    log_betas: Float[Array, ""]  # Σ log β_j over the kept steps, the last being the norm of the residual
    kept: Int[Array, ""]
    length: Float[Array, ""]  # ‖v‖

    @property
    def weights(self) -> Float[Array, " s"]:
        """w, which sum to one."""
        return self.vectors[0] ** 2

    def apply(self, values: Float[Array, "*batch s"]) -> Array:
        """f(K) v for one or several f, from the values f(θ_i)."""
        small = product(values * self.vectors[0].reshape((1,) * (values.ndim - 1) + (-1,)), self.vectors.T)
        flat = product(small, self.basis.reshape(len(self.nodes), -1))
        return self.length * flat.reshape(*values.shape[:-1], *self.basis.shape[1:])


def lanczos(op: lx.AbstractLinearOperator, start: Float[Array, "*shape"], steps: int) -> Tridiagonal:
    """``steps`` products with op from ``start``, fully reorthogonalised; a zero start vector gives zero everywhere."""
    from matfree import decomp

    length = jnp.linalg.norm(start)
    # A start vector of zeros would give NaN; any other one serves, for its length is zero.
    start = jnp.where(length > 0, start / jnp.where(length > 0, length, 1), 1)
    with jax.default_matmul_precision("highest"):
        found = decomp.tridiag_sym(steps, materialize=False)(op.mv, start)
    (diagonal, offdiagonal), basis = found.J_small, jnp.asarray(found.Q_tall)
    betas = jnp.append(offdiagonal, jnp.linalg.norm(found.residual))
    # An exhausted Krylov space shows as a residual of rounding only; what comes behind it (NaN, perhaps) is cut off.
    finite = jnp.isfinite(diagonal)
    size = jnp.max(jnp.where(finite, jnp.abs(diagonal), 0))
    noise = 10 * jnp.finfo(diagonal.dtype).eps * size
    coupled = jnp.isfinite(betas) & (betas > noise)
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(coupled[:-1]).astype(bool)]) & finite
    first = diagonal[0]
    diagonal = jnp.where(alive, diagonal, first)
    inner = jnp.where(alive[1:], betas[:-1], 0)
    basis = jnp.where(alive.reshape(-1, *(1,) * (basis.ndim - 1)), basis, 0)
    nodes, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1))
    log_betas = jnp.sum(jnp.where(alive, jnp.log(jnp.maximum(jnp.where(alive, betas, 1), noise)), 0))
    return Tridiagonal(nodes, vectors, basis, first, log_betas, jnp.sum(alive), length)


def distance_beyond(found: Tridiagonal, node: Float[Array, ""], sign: int, log_component: float) -> Float[Array, ""]:
    r"""How far beyond its outermost node an eigenvalue can lie, if v has at least a known component along its eigenvector.

    The next Lanczos vector is p(K)v with ‖p(K)v‖ = 1 and p(λ) = Π(λ − θ_i)/Πβ_i. An eigenvector q gives
    |p(λ)| |⟨q, v⟩| ≤ 1, and |p| grows without bound outside the nodes. So an eigenvalue beyond them is not beyond the λ with
    log|p(λ)| = −log|⟨q, v⟩|, found by bisection.

    Source: Van Dorsselaer, Hochstenbach and van der Vorst (2000), SIAM J. Matrix Anal. Appl. 22(3), 837-852.
    """
    goal = found.log_betas - log_component
    spare = len(found.nodes) - found.kept
    tiny = jnp.finfo(found.nodes.dtype).tiny

    def log_p(distance: Array) -> Array:
        at = node + sign * distance
        logs = jnp.log(jnp.maximum(jnp.abs(at - found.nodes), tiny))
        return jnp.sum(logs) - spare * jnp.log(jnp.maximum(jnp.abs(at - found.first), tiny))

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        inside = log_p(jnp.exp(middle)) < goal
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    # All nodes are at least as far as the outermost one, so the distance is at most the mean of the logarithms.
    high = goal / found.kept
    return jnp.exp(lax.fori_loop(0, 60, halve, (high - 60.0, high))[1])

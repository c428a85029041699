r"""⟨g_{iℓ}, g_{jℓ'}⟩ for all rows and outputs of a two-layer network, with as few multiplications as the algebra allows.

With g_{iℓ} = S_i ∘ (a_ℓ − μ_{iℓ}) (:class:`softntk.networks.RowFactors`) and P_c = (S∘c) Sᵀ,

    ⟨g_{iℓ}, g_{jℓ'}⟩ = P_{a_ℓ∘a_ℓ'} − μ_{jℓ'} P_{a_ℓ} − μ_{iℓ} P_{a_ℓ'} + μ_{iℓ} μ_{jℓ'} P_1        (entries ij).

Every P_c is symmetric in (i, j) and the block in (ℓ, ℓ'); where a = ±1, all the diagonal blocks share P_1. On one set of points
that leaves (k² + k + 2)/4 · n²m multiplications instead of k² n²m. The mean over outputs takes 3/2 n²m whatever k.

The four terms cancel where rows concentrate on few units (:func:`keeps_digits`). Then, and for one output or the diagonal,
where it costs no more, g is formed and multiplied as it is.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk.networks import RowFactors

Readout = Float[Array, "m k"]
Block = Float[Array, "n1 n2"] | Float[Array, "n1 n2 k"] | Float[Array, "n1 n2 k k"]

product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


# --- blocks of rows × columns: each is (p: RowFactors, q: RowFactors, a) -> [n1, n2, …] ----------------------------


def row_vectors(rows: RowFactors, a: Readout) -> Float[Array, "n k m"]:
    """g, the direct form; a − centres is taken first, so that nothing is lost where a row concentrates."""
    return rows.slopes[:, None, :] * ((a.T[None, :, :] - rows.centres[:, :, None]) - rows.offsets[:, :, None])


def direct(p: RowFactors, q: RowFactors, a: Readout, outputs: str) -> Block:
    """From the g themselves: k² n²m multiplications ("full"), k n²m ("mean", "diagonal")."""
    g1, g2 = row_vectors(p, a), row_vectors(q, a)
    (n1, k, m), n2 = g1.shape, g2.shape[0]
    if outputs == "full":
        return product(g1.reshape(n1 * k, m), g2.reshape(n2 * k, m).T).reshape(n1, k, n2, k).transpose(0, 2, 1, 3)
    if outputs == "mean":
        return product(g1.reshape(n1, k * m), g2.reshape(n2, k * m).T) / k
    return jnp.einsum("ilm,jlm->ijl", g1, g2, precision=lax.Precision.HIGHEST)


def four_terms(p: RowFactors, q: RowFactors, a: Readout, normalized: bool, signs: bool) -> Float[Array, "n1 n2 k k"]:
    """All outputs from the P_c, one product with all of them stacked."""
    k, (n1, m) = a.shape[1], p.slopes.shape
    pairs = [(i, j) for i in range(k) for j in range(i + 1 if signs else i, k)]
    first = 1 + k if normalized else int(signs)  # of the pairs, behind what else is needed: 1, a_ℓ
    columns = [jnp.ones_like(a[:, :1])] if normalized or signs else []
    columns += [a] if normalized else []
    columns += [a[:, [i for i, _ in pairs]] * a[:, [j for _, j in pairs]]]
    c = jnp.concatenate(columns, axis=1).T
    stacked = (p.slopes[None, :, :] * c[:, None, :]).reshape(-1, m)
    products = product(stacked, q.slopes.T).reshape(len(c), n1, -1)
    index = np.zeros((k, k), int)  # a_ℓ² = 1 shares the first product
    for at, (i, j) in enumerate(pairs):
        index[i, j] = index[j, i] = first + at
    block = products[index]
    if normalized:
        mu1, mu2 = p.means.T[:, None, :, None], q.means.T[None, :, None, :]
        single = products[1:first]
        block = block - mu2 * single[:, None] - mu1 * single[None, :] + mu1 * mu2 * products[None, None, 0]
    return block.transpose(2, 3, 0, 1)


def two_products(p: RowFactors, q: RowFactors, a: Readout, normalized: bool) -> Float[Array, "n1 n2"]:
    """The mean over outputs: k·mean = Q + Q'ᵀ + (μμ'ᵀ)∘SS'ᵀ,  Q = (S ∘ (½Σ_ℓ a_ℓ² − μaᵀ)) S'ᵀ,  Q' likewise from the columns.

    Q + Q'ᵀ is one product of twice the inner length.
    """
    k, half = a.shape[1], 0.5 * jnp.sum(a * a, axis=1)[None, :]
    if not normalized:
        return product(2 * half * p.slopes, q.slopes.T) / k
    weighted1, weighted2 = (r.slopes * (half - product(r.means, a.T)) for r in (p, q))
    crossed = product(jnp.concatenate([weighted1, p.slopes], axis=1), jnp.concatenate([q.slopes, weighted2], axis=1).T)
    return (crossed + product(p.means, q.means.T) * product(p.slopes, q.slopes.T)) / k


def keeps_digits(rows: RowFactors, a: Readout, scale: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether the four terms are at most four times larger than what they leave, on the diagonal scale_i ⟨g_{iℓ}, g_{iℓ}⟩.

    The kernel is positive semidefinite, so its largest entry, which errors are measured by, stands there.
    """
    squares = rows.slopes * rows.slopes
    total, first, second = jnp.sum(squares, axis=1, keepdims=True), product(squares, a), product(squares, a * a)
    left = second - 2 * rows.means * first + rows.means**2 * total
    terms = second + 2 * jnp.abs(rows.means * first) + rows.means**2 * total
    return jnp.max(scale[:, None] * terms) <= 4 * jnp.max(scale[:, None] * left)


# --- the whole array from its blocks ------------------------------------------------------------------------------


def tiles(n: int, block_size: int | None) -> list[slice]:
    """Consecutive blocks of rows. T of them save (T−1)/2T of a symmetric product; the default is eight, of 32 rows or more."""
    size = block_size or max(32, -(-n // 8))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def take(tree: RowFactors, rows: slice) -> RowFactors:
    """The factors of some of the rows."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def rectangular(block: Callable[[slice, slice], Block], n1: int, n2: int, block_size: int | None) -> Block:
    """[n1, n2, …], a block of rows after the other."""
    return jnp.concatenate([block(rows, slice(0, n2)) for rows in tiles(n1, block_size)], axis=0)


def symmetric(block: Callable[[slice, slice], Block], n: int, block_size: int | None) -> Block:
    """[n, n, …] from its upper triangle. Across the diagonal rows and columns swap, and the outputs with them."""
    above: list[tuple[slice, Block]] = []
    lines = []
    for rows in tiles(n, block_size):
        line = block(rows, slice(rows.start, n))
        mirrored = [b[:, rows.start - first.start : rows.stop - first.start] for first, b in above]
        lines.append(jnp.concatenate([*(m.transpose(1, 0, *range(2, m.ndim)[::-1]) for m in mirrored), line], axis=1))
        above.append((rows, line))
    return jnp.concatenate(lines, axis=0)

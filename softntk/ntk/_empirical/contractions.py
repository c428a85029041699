r"""Inner products ⟨g_{iℓ}, g_{jℓ'}⟩ of all rows and outputs of a two-layer network.

    symbol    meaning                                                     shape
    S_i       slopes: derivative of the hidden units at row i             [n, m]
    a_ℓ       readout of output ℓ                                         [m, k]
    μ_{iℓ}    mean of a_ℓ under the weights of row i (normalized)         [n, k]
    g_{iℓ}    S_i ∘ (a_ℓ − μ_{iℓ})                                        [n, k, m]
    P_c       (S ∘ c) Sᵀ for a vector c of the hidden units               [n, n]

The factors are those of :class:`softntk.networks.RowFactors`. Expanding the product gives four
terms,

    ⟨g_{iℓ}, g_{jℓ'}⟩ = P_{a_ℓ∘a_ℓ'} − μ_{jℓ'} P_{a_ℓ} − μ_{iℓ} P_{a_ℓ'} + μ_{iℓ} μ_{jℓ'} P_1

(entry ij of every P_c). Every P_c is symmetric in (i, j), and the result is symmetric in (ℓ, ℓ').
If a = ±1, all the diagonal blocks share P_1. On one set of points that leaves (k² + k + 2)/4 · n²m
multiplications instead of k² n²m. The mean over outputs takes 3/2 n²m for every k.

The four terms cancel where rows concentrate on few units (:func:`keeps_digits`). In that case, and
for one output or the diagonal, where it costs no more, g is formed and multiplied directly.

The kernel is computed in strips of rows, and each strip in tiles. Each class below is one way to
compute a tile. It says what is prepared once for all rows, what is prepared once for a strip, what
a tile [b1, c, b2] is (c matrices of it), and how the assembled array [n1, c, n2] becomes the
kernel. :mod:`softntk.ntk._empirical.tiles` assembles the tiles. The axis c is in the middle so that
all c matrices of one row are contiguous in memory.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk._linalg.products import product
from softntk._two_layer.architecture import row_vectors
from softntk.networks import RowFactors
from softntk.ntk._row_scales import scale_rows

Readout = Float[Array, "m k"]
Block = Float[Array, "n1 n2"] | Float[Array, "n1 n2 k"] | Float[Array, "n1 n2 k k"]

# The four terms may be this many times larger than their sum: two bits are lost at most.
MAX_CANCELLATION = 4


@dataclass(frozen=True)
class Contraction(abc.ABC):
    """One way to compute the inner products; static and hashable."""

    @abc.abstractmethod
    def matrix_count(self, k: int) -> int:
        """Return c, the number of matrices in a tile, for k outputs."""

    @abc.abstractmethod
    def prepare_rows(self, rows: RowFactors, a: Readout) -> Any:
        """Return what all tiles share: a pytree of arrays [n, …]."""

    def prepare_strip(self, prepared: Any, a: Readout) -> Any:
        """Return what the tiles of a strip share, from its prepared rows; here those rows."""
        return prepared

    @abc.abstractmethod
    def compute_tile(self, strip: Any, prepared: Any, a: Readout) -> Float[Array, "b1 c b2"]:
        """Return the tile of a strip at the prepared rows of its columns."""

    def mirror_tile(self, tile: Float[Array, "b1 c b2"]) -> Float[Array, "b2 c b1"]:
        """Return the tile at the mirrored position, for matrices that are symmetric."""
        return tile.transpose(2, 1, 0)

    @abc.abstractmethod
    def to_kernel(
        self, matrices: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Block:
        """Return the inner products, from the matrices and the factors p of rows, q of columns."""


@dataclass(frozen=True)
class Direct(Contraction):
    """Products of the g themselves: k² n²m multiplications ("full"), k n²m ("mean", "diagonal").

    Attributes:
        outputs: "full", "mean" or "diagonal", as in :func:`softntk.ntk.empirical`.
    """

    outputs: str

    def matrix_count(self, k: int) -> int:
        """Return k² for all pairs of outputs, 1 for the mean, k for the diagonal."""
        return {"full": k * k, "mean": 1, "diagonal": k}[self.outputs]

    def prepare_rows(self, rows: RowFactors, a: Readout) -> Any:
        """Return g for one output, where it is no larger than its factors; else the factors."""
        return row_vectors(rows, a) if a.shape[1] == 1 else rows

    def prepare_strip(self, prepared: Any, a: Readout) -> Float[Array, "b k m"]:
        """Return the g of these rows."""
        return row_vectors(prepared, a) if isinstance(prepared, RowFactors) else prepared

    def compute_tile(
        self, strip: Float[Array, "b1 k m"], prepared: Any, a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """Return ⟨g, g'⟩."""
        g1 = strip
        g2 = self.prepare_strip(prepared, a)
        b1, k, m = g1.shape
        b2 = len(g2)
        if self.outputs == "full":
            pairs = product(g1.reshape(b1 * k, m), g2.reshape(b2 * k, m).T).reshape(b1, k, b2, k)
            return pairs.transpose(0, 1, 3, 2).reshape(b1, k * k, b2)
        if self.outputs == "mean":
            return (product(g1.reshape(b1, k * m), g2.reshape(b2, k * m).T) / k)[:, None]
        return jnp.einsum("ilm,jlm->ilj", g1, g2, precision=lax.Precision.HIGHEST)

    def mirror_tile(self, tile: Float[Array, "b1 c b2"]) -> Float[Array, "b2 c b1"]:
        """Return the mirrored tile: rows and columns swap, and so do ℓ and ℓ'."""
        if self.outputs != "full":
            return super().mirror_tile(tile)
        b1, c, b2 = tile.shape
        k = round(c**0.5)
        return tile.reshape(b1, k, k, b2).transpose(3, 2, 1, 0).reshape(b2, c, b1)

    def to_kernel(
        self, matrices: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Block:
        """Return the matrices with their axes in the order of the kernel."""
        if self.outputs == "mean":
            return matrices[:, 0]
        kernel = matrices.transpose(0, 2, 1)
        if self.outputs == "diagonal":
            return kernel
        return kernel.reshape(*kernel.shape[:2], a.shape[1], -1)


def four_terms(
    products: Float[Array, "c n1 n2"],
    position: Callable[[int, int], int],
    means1: Float[Array, "n1 k"],
    means2: Float[Array, "n2 k"],
) -> Float[Array, "n1 n2 k k"]:
    """Return the sum of the four terms from the products P_{s_p∘s_q}, with s_0 = 1 and s_ℓ = a_ℓ.

    Args:
        products: the P_{s_p∘s_q}, the outputs ℓ counted from 1.
        position: index of P_{s_p∘s_q} among the products, for p ≤ q.
        means1: μ of the rows.
        means2: μ of the columns.
    """
    outputs = range(1, means1.shape[1] + 1)
    readout_products = products[np.array([position(0, i) for i in outputs])]  # P_{a_ℓ}
    ones_product = products[position(0, 0)]  # P_1
    left = means1.T[:, None, :, None]
    right = means2.T[None, :, None, :]
    total = (
        select_pairs(products, position, len(outputs))
        - right * readout_products[:, None]
        - left * readout_products[None]
        + left * right * ones_product[None, None]
    )
    return total.transpose(2, 3, 0, 1)


def select_pairs(
    products: Float[Array, "c n1 n2"], position: Callable[[int, int], int], k: int
) -> Float[Array, "k k n1 n2"]:
    """Return P_{a_ℓ∘a_ℓ'} for all pairs of outputs; ``position`` as in :func:`four_terms`."""
    outputs = range(1, k + 1)
    return products[np.array([[position(min(i, j), max(i, j)) for j in outputs] for i in outputs])]


@dataclass(frozen=True)
class FourTerms(Contraction):
    """All pairs of outputs from the P_c: one product with all S∘c stacked.

    Attributes:
        normalized: whether the network has a normaliser; without it all μ are zero, and only
            P_{a_ℓ∘a_ℓ'} is needed.
        signs: whether a = ±1.
    """

    normalized: bool
    signs: bool

    def _output_pairs(self, k: int) -> list[tuple[int, int]]:
        """Return the pairs ℓ ≤ ℓ' with a product of their own; for signs ℓ < ℓ', as a_ℓ² = 1."""
        return [(i, j) for i in range(k) for j in range(i + 1 if self.signs else i, k)]

    def _pair_offset(self, k: int) -> int:
        """Return the number of c that precede the pairs: 1 and the a_ℓ, if they are needed."""
        return 1 + k if self.normalized else int(self.signs)

    def matrix_count(self, k: int) -> int:
        """Return the number of c: 1, the a_ℓ and their pairwise products."""
        return self._pair_offset(k) + len(self._output_pairs(k))

    def prepare_rows(self, rows: RowFactors, a: Readout) -> Float[Array, "n m"]:
        """Return S."""
        return rows.slopes

    def prepare_strip(self, prepared: Float[Array, "b m"], a: Readout) -> Float[Array, "bc m"]:
        """Return S∘c for every c, stacked."""
        # The columns c, in the order of matrix_count: 1, the a_ℓ, the a_ℓ∘a_ℓ'.
        pairs = self._output_pairs(a.shape[1])
        columns = [jnp.ones_like(a[:, :1])] if self.normalized or self.signs else []
        columns += [a] if self.normalized else []
        columns += [a[:, [i for i, _ in pairs]] * a[:, [j for _, j in pairs]]]
        c = jnp.concatenate(columns, axis=1).T
        return (prepared[:, None, :] * c[None, :, :]).reshape(-1, prepared.shape[1])

    def compute_tile(
        self, strip: Float[Array, "bc m"], prepared: Float[Array, "b m"], a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """Return the P_c."""
        return product(strip, prepared.T).reshape(-1, self.matrix_count(a.shape[1]), len(prepared))

    def to_kernel(
        self, matrices: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Float[Array, "n1 n2 k k"]:
        """Return the sum of the four terms; without a normaliser the first of them."""
        k = a.shape[1]
        products = matrices.transpose(1, 0, 2)
        pair_index = {
            pair: self._pair_offset(k) + i for i, pair in enumerate(self._output_pairs(k))
        }

        def position(p: int, q: int) -> int:
            if p == 0 or (self.signs and p == q):  # a_ℓ² = 1 shares the first product
                return 0 if p == q else q
            return pair_index[p - 1, q - 1]

        if self.normalized:
            return four_terms(products, position, p.means, q.means)
        return select_pairs(products, position, k).transpose(2, 3, 0, 1)


@dataclass(frozen=True)
class TwoProducts(Contraction):
    """The mean over outputs, k·mean = Q + Q'ᵀ + (μμ'ᵀ)∘SS'ᵀ.

    Here Q = (S ∘ (½Σ_ℓ a_ℓ² − μaᵀ)) S'ᵀ, and Q' is the same with rows and columns exchanged. It
    takes three products for two sets of points, and half as many for one, by symmetry.

    Attributes:
        normalized: whether the network has a normaliser.
    """

    normalized: bool

    def matrix_count(self, k: int) -> int:
        """Return 1: the sum of the products."""
        return 1

    def prepare_rows(self, rows: RowFactors, a: Readout) -> tuple[Array, Array, Array]:
        """Return the left factor of Q, S and μ."""
        half_squares = 0.5 * jnp.sum(a * a, axis=1)[None, :]
        # ½ Σ_ℓ a_ℓ² is in Q and in Q'; without a normaliser Q contains both.
        weights = half_squares - product(rows.means, a.T) if self.normalized else 2 * half_squares
        return rows.slopes * weights, rows.slopes, rows.means

    def compute_tile(
        self, strip: tuple[Array, Array, Array], prepared: tuple[Array, Array, Array], a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """Return the sum of the products."""
        weighted1, slopes1, means1 = strip
        weighted2, slopes2, means2 = prepared
        total = product(weighted1, slopes2.T)
        if self.normalized:
            total = (
                total
                + product(slopes1, weighted2.T)
                + product(means1, means2.T) * product(slopes1, slopes2.T)
            )
        return total[:, None]

    def to_kernel(
        self, matrices: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Float[Array, "n1 n2"]:
        """Return the sum over outputs divided by k."""
        return matrices[:, 0] / a.shape[1]


@dataclass(frozen=True)
class Features(Contraction):
    """The inner products ⟨φ_i, φ_j⟩ of the features, which a trained readout adds to the kernel."""

    def matrix_count(self, k: int) -> int:
        """Return 1."""
        return 1

    def prepare_rows(self, rows: RowFactors, a: Readout) -> tuple[Array, Array]:
        """Return φ without the power of two of each row, and the root of that power.

        Features that are plain exponentials are so large that their products would overflow.
        """
        scaled = scale_rows(rows.features)
        return scaled.values, scaled.roots

    def compute_tile(
        self, strip: tuple[Array, Array], prepared: tuple[Array, Array], a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """Return the product."""
        values1, roots1 = strip
        values2, roots2 = prepared
        roots = roots1[:, None] * roots2[None, :]
        return (product(values1, values2.T) * roots * roots)[:, None]

    def to_kernel(
        self, matrices: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Float[Array, "n1 n2"]:
        """Return the only matrix."""
        return matrices[:, 0]


def keeps_digits(rows: RowFactors, a: Readout, scale: Float[Array, " n"]) -> Bool[Array, ""]:
    """Return whether the four terms are at most four times larger than their sum.

    They are compared on the diagonal, scale_i ⟨g_{iℓ}, g_{iℓ}⟩. Errors are measured against the
    largest entry of the kernel, which is on the diagonal, as the kernel is positive semidefinite.
    """
    squares = rows.slopes * rows.slopes
    ones_term = jnp.sum(squares, axis=1, keepdims=True)  # P_1
    readout_term = product(squares, a)  # P_{a_ℓ}
    pair_term = product(squares, a * a)  # P_{a_ℓ∘a_ℓ}
    total = pair_term - 2 * rows.means * readout_term + rows.means**2 * ones_term
    magnitude = pair_term + 2 * jnp.abs(rows.means * readout_term) + rows.means**2 * ones_term
    largest_magnitude = jnp.max(scale[:, None] * magnitude)
    return largest_magnitude <= MAX_CANCELLATION * jnp.max(scale[:, None] * total)

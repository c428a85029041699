r"""⟨g_{iℓ}, g_{jℓ'}⟩ for all rows and outputs of a two-layer network, with as few multiplications
as the algebra allows.

With g_{iℓ} = S_i ∘ (a_ℓ − μ_{iℓ}) (:class:`softntk.networks.RowFactors`) and P_c = (S∘c) Sᵀ,

    ⟨g_{iℓ}, g_{jℓ'}⟩ = P_{a_ℓ∘a_ℓ'} − μ_{jℓ'} P_{a_ℓ} − μ_{iℓ} P_{a_ℓ'} + μ_{iℓ} μ_{jℓ'} P_1        (entries ij).

Every P_c is symmetric in (i, j) and the block in (ℓ, ℓ'); where a = ±1, all the diagonal blocks
share P_1. On one set of points that leaves (k² + k + 2)/4 · n²m multiplications instead of k² n²m.
The mean over outputs takes 3/2 n²m whatever k.

The four terms cancel where rows concentrate on few units (:func:`keeps_digits`). Then, and for one
output or the diagonal, where it costs no more, g is formed and multiplied as it is.

Each form is a small class that says what is prepared of the rows, what of a line of tiles, what a
tile [b1, c, b2] is (c matrices of it), and how the whole [n1, c, n2] expands into the kernel.
:mod:`softntk.ntk._empirical.tiles` makes the whole from its tiles. The c stand in the middle so
that one row of the whole is together in memory when it is expanded.
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


@dataclass(frozen=True)
class Contraction(abc.ABC):
    """One way to get the inner products; static and hashable."""

    @abc.abstractmethod
    def count(self, k: int) -> int:
        """c, the number of matrices."""

    @abc.abstractmethod
    def prepare(self, rows: RowFactors, a: Readout) -> Any:
        """What all tiles share: a pytree of arrays [n, …]."""

    def line(self, prepared: Any, a: Readout) -> Any:
        """What the tiles of a line share, from the prepared rows of that line: if nothing else,
        those rows.
        """
        return prepared

    @abc.abstractmethod
    def tile(self, line: Any, prepared: Any, a: Readout) -> Float[Array, "b1 c b2"]:
        """The tile of that line at the prepared rows of its columns."""

    def mirror(self, tile: Float[Array, "b1 c b2"]) -> Float[Array, "b2 c b1"]:
        """The tile across the diagonal, for matrices that are symmetric."""
        return tile.transpose(2, 1, 0)

    @abc.abstractmethod
    def expand(
        self, whole: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Block:
        """The kernel's inner products from the matrices."""


@dataclass(frozen=True)
class Direct(Contraction):
    """From the g themselves: k² n²m multiplications ("full"), k n²m ("mean", "diagonal")."""

    outputs: str

    def count(self, k: int) -> int:
        """k² pairs of outputs, the mean, or k."""
        return {"full": k * k, "mean": 1, "diagonal": k}[self.outputs]

    def prepare(self, rows: RowFactors, a: Readout) -> Any:
        """For one output g, which is no larger than its factors; for more the factors, and g when a
        tile needs it.
        """
        return row_vectors(rows, a) if a.shape[1] == 1 else rows

    def line(self, prepared: Any, a: Readout) -> Float[Array, "b k m"]:
        """The g of these rows."""
        return row_vectors(prepared, a) if isinstance(prepared, RowFactors) else prepared

    def tile(
        self, line: Float[Array, "b1 k m"], prepared: Any, a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """⟨g, g'⟩."""
        g1, g2 = line, self.line(prepared, a)
        (b1, k, m), b2 = g1.shape, len(g2)
        if self.outputs == "full":
            both = product(g1.reshape(b1 * k, m), g2.reshape(b2 * k, m).T).reshape(b1, k, b2, k)
            return both.transpose(0, 1, 3, 2).reshape(b1, k * k, b2)
        if self.outputs == "mean":
            return (product(g1.reshape(b1, k * m), g2.reshape(b2, k * m).T) / k)[:, None]
        return jnp.einsum("ilm,jlm->ilj", g1, g2, precision=lax.Precision.HIGHEST)

    def mirror(self, tile: Float[Array, "b1 c b2"]) -> Float[Array, "b2 c b1"]:
        """Rows and columns swap, and of two outputs the one and the other."""
        if self.outputs != "full":
            return super().mirror(tile)
        b1, c, b2 = tile.shape
        k = round(c**0.5)
        return tile.reshape(b1, k, k, b2).transpose(3, 2, 1, 0).reshape(b2, c, b1)

    def expand(
        self, whole: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Block:
        """They are the kernel's already, but for the order of the axes."""
        if self.outputs == "mean":
            return whole[:, 0]
        whole = whole.transpose(0, 2, 1)
        return whole.reshape(*whole.shape[:2], a.shape[1], -1) if self.outputs == "full" else whole


def four_terms(
    products: Float[Array, "c n1 n2"],
    at: Callable[[int, int], int],
    mu1: Float[Array, "n1 k"],
    mu2: Float[Array, "n2 k"],
) -> Float[Array, "n1 n2 k k"]:
    """Their sum, from the P of s_p∘s_q, which stand at ``at(p, q)``, p ≤ q; s_0 = 1 and s_ℓ = a_ℓ
    (first output: 1).
    """
    outputs = range(1, mu1.shape[1] + 1)
    single, ones = products[np.array([at(0, i) for i in outputs])], products[at(0, 0)]
    left, right = mu1.T[:, None, :, None], mu2.T[None, :, None, :]
    total = (
        pairs(products, at, len(outputs))
        - right * single[:, None]
        - left * single[None]
        + left * right * ones[None, None]
    )
    return total.transpose(2, 3, 0, 1)


def pairs(
    products: Float[Array, "c n1 n2"], at: Callable[[int, int], int], k: int
) -> Float[Array, "k k n1 n2"]:
    """P_{a_ℓ∘a_ℓ'}."""
    return products[
        np.array([[at(min(i, j), max(i, j)) for j in range(1, k + 1)] for i in range(1, k + 1)])
    ]


@dataclass(frozen=True)
class FourTerms(Contraction):
    """All pairs of outputs from the P_c, one product with all of them stacked."""

    normalized: bool
    signs: bool  # whether a = ±1

    def _pairs(self, k: int) -> list[tuple[int, int]]:
        return [(i, j) for i in range(k) for j in range(i + 1 if self.signs else i, k)]

    def _first(self, k: int) -> int:
        """Where the pairs begin, behind what else is needed: 1, a_ℓ."""
        return 1 + k if self.normalized else int(self.signs)

    def count(self, k: int) -> int:
        """1, the a_ℓ and the products of two of them."""
        return self._first(k) + len(self._pairs(k))

    def prepare(self, rows: RowFactors, a: Readout) -> Float[Array, "n m"]:
        """S."""
        return rows.slopes

    def line(self, prepared: Float[Array, "b m"], a: Readout) -> Float[Array, "bc m"]:
        """S∘c for every c, stacked."""
        pairs = self._pairs(a.shape[1])
        columns = [jnp.ones_like(a[:, :1])] if self.normalized or self.signs else []
        columns += [a] if self.normalized else []
        columns += [a[:, [i for i, _ in pairs]] * a[:, [j for _, j in pairs]]]
        c = jnp.concatenate(columns, axis=1).T
        return (prepared[:, None, :] * c[None, :, :]).reshape(-1, prepared.shape[1])

    def tile(
        self, line: Float[Array, "bc m"], prepared: Float[Array, "b m"], a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """The P_c."""
        return product(line, prepared.T).reshape(-1, self.count(a.shape[1]), len(prepared))

    def expand(
        self, whole: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Float[Array, "n1 n2 k k"]:
        """The four terms."""
        k, products = a.shape[1], whole.transpose(1, 0, 2)
        place = {pair: self._first(k) + i for i, pair in enumerate(self._pairs(k))}

        def at(p: int, q: int) -> int:
            if p == 0 or (self.signs and p == q):  # a_ℓ² = 1 shares the first product
                return 0 if p == q else q
            return place[p - 1, q - 1]

        return (
            four_terms(products, at, p.means, q.means)
            if self.normalized
            else pairs(products, at, k).transpose(2, 3, 0, 1)
        )


@dataclass(frozen=True)
class TwoProducts(Contraction):
    """The mean over outputs: k·mean = Q + Q'ᵀ + (μμ'ᵀ)∘SS'ᵀ,  Q = (S ∘ (½Σ_ℓ a_ℓ² − μaᵀ)) S'ᵀ,  Q'
    likewise from the columns.

    Three products with different points, three halves with the same.
    """

    normalized: bool

    def count(self, k: int) -> int:
        """Their sum."""
        return 1

    def prepare(self, rows: RowFactors, a: Readout) -> tuple[Array, Array, Array]:
        """What Q is made of, S and μ."""
        half = 0.5 * jnp.sum(a * a, axis=1)[None, :]
        weights = half - product(rows.means, a.T) if self.normalized else 2 * half
        return rows.slopes * weights, rows.slopes, rows.means

    def tile(
        self, line: tuple[Array, Array, Array], prepared: tuple[Array, Array, Array], a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """The products, summed."""
        (weighted1, slopes1, mu1), (weighted2, slopes2, mu2) = line, prepared
        total = product(weighted1, slopes2.T)
        if self.normalized:
            total = (
                total
                + product(slopes1, weighted2.T)
                + product(mu1, mu2.T) * product(slopes1, slopes2.T)
            )
        return total[:, None]

    def expand(
        self, whole: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Float[Array, "n1 n2"]:
        """Over k."""
        return whole[:, 0] / a.shape[1]


@dataclass(frozen=True)
class Features(Contraction):
    """⟨φ_i, φ_j⟩, what a trained readout adds."""

    def count(self, k: int) -> int:
        """One."""
        return 1

    def prepare(self, rows: RowFactors, a: Readout) -> tuple[Array, Array]:
        """Return φ without the power of two of each row, and its root: plain exponentials are
        large.
        """
        scaled = scale_rows(rows.features)
        return scaled.values, scaled.roots

    def tile(
        self, line: tuple[Array, Array], prepared: tuple[Array, Array], a: Readout
    ) -> Float[Array, "b1 c b2"]:
        """Return the product."""
        (values1, roots1), (values2, roots2) = line, prepared
        roots = roots1[:, None] * roots2[None, :]
        return (product(values1, values2.T) * roots * roots)[:, None]

    def expand(
        self, whole: Float[Array, "n1 c n2"], p: RowFactors, q: RowFactors, a: Readout
    ) -> Float[Array, "n1 n2"]:
        """Itself."""
        return whole[:, 0]


def keeps_digits(rows: RowFactors, a: Readout, scale: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether the four terms are at most four times larger than what they leave, on the diagonal
    scale_i ⟨g_{iℓ}, g_{iℓ}⟩.

    The kernel is positive semidefinite, so its largest entry, which errors are measured by, stands
    there.
    """
    squares = rows.slopes * rows.slopes
    total, first, second = (
        jnp.sum(squares, axis=1, keepdims=True),
        product(squares, a),
        product(squares, a * a),
    )
    left = second - 2 * rows.means * first + rows.means**2 * total
    terms = second + 2 * jnp.abs(rows.means * first) + rows.means**2 * total
    return jnp.max(scale[:, None] * terms) <= 4 * jnp.max(scale[:, None] * left)

"""The problems of ``solvers.py``: a fixed registry, each built when its turn comes.

They span activation, form, size, condition of A, heavy-tailed rows, regularisation, and sparse A. A name says it all:
``exp-normalized-1e4x50-c1e6-heavy-tiny`` has n 1e4, d 50, singular values over six decades, rows scaled by Student's t with two
degrees of freedom, and weights of 1e-6.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Float

import softntk as sn
from softntk.regression.problem import Problem

LARGEST_LOGIT = 8.0  # behind the targets
LARGEST_SCALE = 1e3  # of a heavy row
DENSITY = 0.01


@dataclass(frozen=True)
class Spec:
    """What a problem is made of.

    Attributes:
        activation: u.
        form: "normalized", "rescaled" or "plain".
        n: rows.
        d: columns.
        condition: of A; its singular values (of a sparse A: the scales of its columns) are geometric.
        weight: w; for the normalized form, whose residual is that small, divided by 3 √n.
        heavy: rows scaled by Student's t with two degrees of freedom.
        sparse: one entry in a hundred, as BCOO.
    """

    activation: str
    form: str
    n: int
    d: int
    condition: float
    weight: float
    heavy: bool = False
    sparse: bool = False

    @property
    def name(self) -> str:
        """All of it."""
        parts = [self.activation, self.form, f"{_short(self.n)}x{self.d}", f"c{_short(self.condition)}"]
        parts += ["heavy"] * self.heavy + ["sparse"] * self.sparse
        return "-".join([*parts, "strong" if self.weight >= 1 else "tiny"])


def _short(number: float) -> str:
    return f"{number:.0e}".replace("e+0", "e")


_STRONG, _TINY, _TINIER = 1.0, 1e-5, 1e-6
_N = "normalized"

SPECS = (
    Spec("exp", _N, 10_000, 50, 1e2, _STRONG),
    Spec("exp", _N, 10_000, 50, 1e4, _TINY),
    Spec("exp", _N, 10_000, 50, 1e6, _TINIER),
    Spec("exp", _N, 10_000, 50, 1e4, _TINY, heavy=True),
    Spec("exp", _N, 10_000, 50, 1e6, _STRONG, heavy=True),
    Spec("res_exp", _N, 10_000, 50, 1e2, _TINY, heavy=True),
    Spec("res_exp", _N, 10_000, 50, 1e6, _TINIER),
    Spec("res_exp", _N, 10_000, 50, 1e4, _STRONG, heavy=True),
    Spec("cosh", _N, 10_000, 50, 1e2, _TINY),
    Spec("cosh", _N, 10_000, 50, 1e4, _TINY, heavy=True),
    Spec("exp", "rescaled", 10_000, 50, 1e4, _TINY),
    Spec("exp", "rescaled", 10_000, 50, 1e2, _TINY, heavy=True),
    Spec("cosh", "rescaled", 10_000, 50, 1e6, _STRONG),
    Spec("exp", "plain", 10_000, 50, 1e4, _TINY),
    Spec("exp", "plain", 10_000, 50, 1e2, _TINY, heavy=True),
    Spec("res_exp", "plain", 10_000, 50, 1e6, _TINIER),
    Spec("sinh", "plain", 10_000, 50, 1e4, _STRONG),
    Spec("erf", "plain", 10_000, 50, 1e4, _TINY),
    Spec("cosh", "plain", 10_000, 50, 1e2, _TINY),
    Spec("exp", _N, 10_000, 500, 1e2, _TINY, sparse=True),
    Spec("sinh", "plain", 10_000, 500, 1e4, _STRONG, sparse=True),
    Spec("erf", "plain", 10_000, 500, 1e2, _TINY, sparse=True),
    Spec("exp", _N, 10_000, 500, 1e2, _TINY),
    Spec("res_exp", _N, 10_000, 500, 1e6, _TINIER),
    Spec("exp", "plain", 10_000, 500, 1e4, _STRONG),
    Spec("erf", "plain", 10_000, 500, 1e2, _TINY, heavy=True),
    Spec("exp", _N, 100_000, 50, 1e6, _TINIER),
    Spec("res_exp", _N, 100_000, 50, 1e4, _TINY, heavy=True),
    Spec("cosh", _N, 100_000, 50, 1e4, _STRONG),
    Spec("exp", "rescaled", 100_000, 50, 1e4, _TINY),
    Spec("exp", "plain", 100_000, 50, 1e6, _TINIER),
    Spec("sinh", "plain", 100_000, 50, 1e2, _TINY, heavy=True),
    Spec("erf", "plain", 100_000, 50, 1e6, _TINIER),
    Spec("exp", _N, 100_000, 500, 1e2, _TINY, heavy=True, sparse=True),
    Spec("res_exp", "plain", 100_000, 500, 1e4, _TINY, sparse=True),
    Spec("exp", _N, 1_000_000, 50, 1e2, _STRONG),
    Spec("res_exp", _N, 1_000_000, 50, 1e6, _TINIER),
    Spec("sinh", "plain", 1_000_000, 50, 1e4, _TINY),
    Spec("exp", _N, 100_000, 500, 1e4, _TINY),
    Spec("res_exp", _N, 100_000, 500, 1e6, _STRONG, heavy=True),
    Spec("exp", "plain", 100_000, 500, 1e2, _STRONG),
    Spec("erf", "plain", 100_000, 500, 1e4, _TINY),
)
"""Smallest first."""


def _dense_matrix(rng: np.random.Generator, spec: Spec) -> np.ndarray:
    """Gaussian rows with geometric singular values in a random basis; the root mean square of their lengths is 1 (if even)."""
    rotation = np.linalg.qr(rng.normal(size=(spec.d, spec.d)))[0]
    A = rng.normal(size=(spec.n, spec.d)) @ (np.geomspace(1, 1 / spec.condition, spec.d)[:, None] * rotation)
    A /= np.sqrt(np.sum(A * A) / spec.n)
    if spec.heavy:
        A *= _scales(rng, spec.n)[:, None]
    return A


def _scales(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.minimum(np.abs(rng.standard_t(2.0, size=n)), LARGEST_SCALE)


def _sparse_matrix(rng: np.random.Generator, spec: Spec) -> sparse.BCOO:
    """Gaussian entries in random places; the scales of the columns are geometric."""
    nonzeros = int(DENSITY * spec.n * spec.d)
    rows, columns = np.unravel_index(
        np.sort(rng.choice(spec.n * spec.d, nonzeros, replace=False, shuffle=False)), (spec.n, spec.d)
    )
    data = rng.normal(size=nonzeros) * rng.permutation(np.geomspace(1, 1 / spec.condition, spec.d))[columns]
    data /= np.sqrt(np.sum(data * data) / spec.n)
    if spec.heavy:
        data *= _scales(rng, spec.n)[rows]
    indices = jnp.asarray(np.stack([rows, columns], axis=1))
    return sparse.BCOO((jnp.asarray(data), indices), shape=(spec.n, spec.d), indices_sorted=True, unique_indices=True)


def build(spec: Spec) -> tuple[Problem, Float[Array, " d"]]:
    """The problem and its start.

    The target is u at logits of standard deviation one, with multiplicative noise, so that the minimiser has a loss and lies
    at logits of that order. The start is zero; for cosh, whose u'(0) = 0 makes zero stationary, a random point with logits of
    standard deviation 0.1.
    """
    rng = np.random.default_rng(0)
    A = _sparse_matrix(rng, spec) if spec.sparse else jnp.asarray(_dense_matrix(rng, spec))
    logits = np.asarray(A @ jnp.asarray(rng.normal(size=spec.d)))
    logits = np.clip(logits / np.std(logits), -LARGEST_LOGIT, LARGEST_LOGIT)
    u, noise = np.asarray(sn.activations.get(spec.activation).u(jnp.asarray(logits))), rng.normal(size=spec.n)
    b = u * (np.exp(0.5 * noise) if spec.form == "normalized" else 1 + 0.3 * noise)
    if spec.form != "plain":
        b /= abs(np.sum(b))
    weight = spec.weight / (3 * spec.n**0.5) if spec.form == "normalized" else spec.weight
    x0 = jnp.zeros(spec.d)
    if spec.activation == "cosh":
        x0 = jnp.asarray(rng.normal(size=spec.d))
        x0 *= 0.1 / jnp.std(A @ x0)
    return sn.regression.problem(A, b, spec.activation, spec.form, weight), x0

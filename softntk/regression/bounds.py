r"""How curved a regression can be on a ball ‖x − c‖ ≤ R, before any x is seen: normaliser, Lipschitz constants, convexity.

Each function returns the form of the papers and ours, which is proved in its docstring. [D] and [S] assume ‖A‖, ‖x‖ ≤ R with
R ≥ 4 and state constants that carry e^{R²}; their full text was not at hand, and the exponents below are as remembered
(arguments, not facts). Ours do not carry them for softmax: all derivatives of the softmax are bounded, whatever the logits.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (30, 3)) / 3
    >>> p = sn.regression.softmax(A, jnp.full(30, 1 / 30))
    >>> w = sn.regression.convexity_weight(p, strength=0.1)
    >>> strong = sn.regression.softmax(A, jnp.full(30, 1 / 30), weights=w.ours)
    >>> bool(sn.ntk.extreme_eigenvalues(strong.hessian(5 * jnp.ones(3))).smallest > 0.1)
    True

Source: [S] arXiv 2309.13482, [D] arXiv 2304.10411; MATH.md section 4; the proofs of ours are ours.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._validation import check_finite, check_positive
from softntk.curvature import _matrices as matrices
from softntk.regression.problem import Problem

_CANCELLED = 1e3  # units in the last place that a residual may be off by, relative to what it is a difference of
_ROUNDING = 1e-6  # what norms, computed in the precision of A, may be off by, relative


class Bound(NamedTuple):
    """The papers' form and ours; upper bounds are +inf, and lower ones zero, where nothing is known."""

    paper: float
    ours: float


class LipschitzBounds(NamedTuple):
    """Of the prediction, the gradient and the Hessian in x, each as a :class:`Bound`."""

    predict: Bound
    gradient: Bound
    hessian: Bound


class _Suprema(NamedTuple):
    """Of |u|, |u'|, |u''|, |u'''| at each sample."""

    u: np.ndarray
    du: np.ndarray
    d2u: np.ndarray
    d3u: np.ndarray


def _exponential(low: np.ndarray, high: np.ndarray, shift: float) -> _Suprema:
    return _Suprema(*[np.exp(high - shift)] * 4)


def _residual_exponential(low: np.ndarray, high: np.ndarray, shift: float) -> _Suprema:
    one, top = np.exp(-shift), np.exp(high - shift)
    return _Suprema(np.maximum(np.abs(np.exp(low - shift) + one * low), np.abs(top + one * high)), top + one, top, top)


def _hyperbolic(low: np.ndarray, high: np.ndarray, shift: float) -> tuple[np.ndarray, np.ndarray]:
    r = np.maximum(np.abs(low), np.abs(high))
    grown, shrunk = 0.5 * np.exp(r - shift), 0.5 * np.exp(-r - shift)
    return grown + shrunk, grown - shrunk


def _identity(low: np.ndarray, high: np.ndarray, shift: float) -> _Suprema:
    one = np.full_like(low, np.exp(-shift))
    return _Suprema(one * np.maximum(np.abs(low), np.abs(high)), one, 0 * one, 0 * one)


# e^{−shift} times the suprema on low ≤ z ≤ high; all are reached at an end.
_SUPREMA: dict[str, Callable[[np.ndarray, np.ndarray, float], _Suprema]] = {
    "exp": _exponential,
    "res_exp": _residual_exponential,
    "cosh": lambda *interval: _Suprema(*_hyperbolic(*interval), *_hyperbolic(*interval)),
    "sinh": lambda *interval: _Suprema(*_hyperbolic(*interval)[::-1], *_hyperbolic(*interval)[::-1]),
    "identity": _identity,
}


def normaliser(p: Problem, radius: float, centre: Float[Array | np.ndarray, " d"] | None = None) -> Bound:
    r"""How small α = 1ᵀu(Ax) can be on the ball ‖x − c‖ ≤ R.

    Papers: α ≥ n e^{−‖A‖R} for exp, from |z_i| ≤ ‖A‖R around c = 0. Ours: log Σe^{z_i} is convex, with the gradient Aᵀf,
    f = softmax(Ac), so that Σe^{z_i} ≥ Σe^{⟨a_i, c⟩} e^{−t}, t = ‖Aᵀf‖R; Σz_i is linear, and cosh is convex and at least one:

        exp: α(c) e^{−t},        res_exp: Σe^{⟨a_i, c⟩} e^{−t} + Σ⟨a_i, c⟩ − ‖Aᵀ1‖R,
        cosh: max(n, α(c) − ‖Aᵀsinh(Ac)‖R).

    Around zero, t = ‖ā‖R with ā the mean of the rows of A: rows that average to zero have t = 0, whatever their size.

    Args:
        p: the problem.
        radius: R > 0.
        centre: c, [d]; None: zero.

    Returns:
        A :class:`Bound`, both clipped at zero; zero for sinh and the like, whose sum may vanish; +inf if it overflows.

    Raises:
        ValueError: radius not positive; centre not finite or of another shape than [d].

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> normaliser(sn.regression.softmax(jnp.array([[1.0], [-1.0]]), jnp.ones(2)), 1.0).ours
        2.0

    Source: [D], the lower bound β on ⟨exp(Ax), 1⟩.
    """
    check_positive("radius", radius)
    z, reach = _around(p, radius, centre)
    n, largest = p.shape[0], _norms(p)[0] * reach
    name = p.activation.name
    with np.errstate(over="ignore"):
        ours = float(_smallest_total(p, radius, z, 0.0))
    paper = {"exp": math.exp(-largest), "cosh": 1.0, "res_exp": math.exp(-largest) - largest}.get(name, 0.0)
    return Bound(n * max(paper, 0.0), max(ours, 0.0))


def lipschitz(
    p: Problem,
    radius: float,
    centre: Float[Array | np.ndarray, " d"] | None = None,
    *,
    exponents: tuple[float, float, float] = (2.0, 8.0, 20.0),
) -> LipschitzBounds:
    r"""Lipschitz constants of predict, gradient and Hessian on the ball ‖x − c‖ ≤ R.

    **Ours, softmax** (any R). Along a direction h in the logits let y = h − E_f h, V = E_f y², r = max h − min h ≤ √2‖h‖ and
    o = max c − min c ≤ 1 + max b − min b for the residual c = f − b. Then

    - f' = f∘y and ‖f'‖² = Σf²y² ≤ ¼·‖h‖²: diag(f) − ffᵀ has the quadratic form V ≤ r²/4 ≤ ‖h‖²/2, so its norm is at most ½.
    - L'' = ‖f'‖² + E_f[(c − E_f c)(y² − V)] = ‖f'‖² + E_f[(c − E_f c) y²], of modulus at most (¼ + o/2)‖h‖².
    - L''' = E_f[(c − E_f c)(y³ − 3yV)] + 3Σ f²y(y² − V). By convexity E|y|³ and E|y| are largest on two points at distance r:
      at most r³/8 and r/2. So the first term is at most o (1/8 + 3/8) r³. In the second, f_k|y_k| ≤ E|y|/2 ≤ r/4 (y has mean
      zero) and E|y² − V| ≤ √(V(M² − V)) ≤ 0.279 r², M = max|y| (with V ≤ M(r − M), by Bhatia and Davis). Together at most
      (√2 o + 0.592)‖h‖³, r³ ≤ 2√2‖h‖³; and a symmetric form is as large on the diagonal as anywhere (Banach).

    **Ours, general** (softmax gets the smaller of the two): on |z_i − ⟨a_i, c⟩| ≤ ‖a_i‖R the suprema of |u|, …, |u'''| are
    known, and α ≥ :func:`normaliser`. Write F, a for the norms of the vectors of suprema of u/α and u'/α, and m₁, m₂, m₃ for
    the largest entries of those of u'/α, u''/α, u'''/α. Differentiating f = u/α along a unit vector, with |⟨v, h⟩| ≤ a and
    |⟨v', h²⟩| ≤ m₂,

        ‖f'‖ ≤ m₁ + Fa,    ‖f''‖ ≤ m₂ + 2m₁a + F(m₂ + 2a²),
        ‖f'''‖ ≤ m₃ + 3m₂a + 3m₁m₂ + 6m₁a² + F(m₃ + 6am₂ + 6a³),

    and ‖∇²L‖ ≤ ‖f'‖² + ‖r‖‖f''‖, ‖∇³L‖ ≤ ‖r‖‖f'''‖ + 3‖f'‖‖f''‖, with ‖r‖ ≤ F + ‖b‖ or, from the centre,
    ‖r(c)‖ + ‖f'‖‖A‖R. Rescaled and plain forms are linear in u: ‖r'‖ ≤ m₁ + ‖b‖a, ‖r''‖ ≤ m₂(1 + ‖b‖),
    ‖r'''‖ ≤ m₃(1 + ‖b‖), ‖r‖ ≤ F + ‖b‖ Σ|u| (plain: with no b in the first three).

    The weights add w² to the second; ‖A‖, ‖A‖² and ‖A‖³ turn logits into x.

    **Papers**: β⁻² n^{3/2} e^{qR²} with R = max(‖A‖, ‖x‖, 4), β the paper's bound on α/n.

    Args:
        p: the problem; its activation exp, res_exp, cosh, sinh or identity.
        radius: R > 0.
        centre: c, [d]; None: zero.
        exponents: q of the papers, for predict, gradient, Hessian. As remembered.

    Returns:
        :class:`LipschitzBounds`.

    Raises:
        ValueError: radius not positive; another activation; centre not finite or of another shape than [d].

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.softmax(jnp.eye(2), jnp.array([0.5, 0.5]))
        >>> round(lipschitz(p, 1.0).hessian.ours, 2), lipschitz(p, 1.0).hessian.paper > 1e100
        (2.01, True)

    Source: [D], [S], the lemmas on Lipschitz constants.
    """
    check_positive("radius", radius)
    spectral = _norms(p)[0]
    z, reach = _around(p, radius, centre)
    in_logits = _general_derivatives(p, radius, z, centre)
    if _is_softmax(p):
        in_logits = tuple(map(min, in_logits, _softmax_derivatives(p)))
    weight = float(np.max(np.asarray(p.weights, np.float64))) ** 2
    added = (0.0, weight, 0.0)
    ours = [(c + w) * spectral ** (i + 1) * (1 + _ROUNDING) for i, (c, w) in enumerate(zip(in_logits, added, strict=True))]
    n, size = p.shape[0], max(spectral, reach, 4.0)
    beta = normaliser(p, reach).paper / n
    scale = n**1.5 / beta / beta if beta > 0 else math.inf
    papers = [_exp(c * size**2) * scale + w * spectral**2 for c, w in zip(exponents, added, strict=True)]
    return LipschitzBounds(*(Bound(paper, mine) for paper, mine in zip(papers, ours, strict=True)))


def convexity_weight(p: Problem, strength: float, radius: float | None = None, *, constant: float = 20.0) -> Bound:
    r"""How large w must be for ∇²L ≽ l I: w² ≥ C + l/σ_min(A)², where −C bounds the logits' Hessian from below.

    Papers: C = 20, for exp (for e^z + z it is false, see softntk/theory/LEDGER.md). Ours: from :func:`lipschitz`'s proof,
    without JᵀJ ≽ 0, which helps:

        softmax, everywhere: C = o/2 with o = 1 + max b − min b,        others, on ‖x‖ ≤ R: C = ‖c‖‖f''‖.

    For softmax E_f[(c − E_f c) y²] ≥ −(max c − min c) V and V ≤ ‖h‖²/2. Then Aᵀ(∇²_z L + w²)A ≽ (w² − C) σ_min(A)² I.

    Args:
        p: the problem; its own weights are not counted.
        strength: l > 0.
        radius: R; needed for all but softmax.
        constant: C of the papers. As remembered.

    Returns:
        A :class:`Bound` on w itself (not squared); +inf for A of rank below d.

    Raises:
        ValueError: strength or radius not positive; no radius where one is needed.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.softmax(jnp.eye(2), jnp.array([0.5, 0.5]))
        >>> [round(w, 3) for w in convexity_weight(p, 0.5)]
        [4.528, 1.0]

    Source: [D] and [S], the lemmas on positive definite Hessians.
    """
    check_positive("strength", strength)
    if radius is None and not _is_softmax(p):
        raise ValueError(
            f"radius must be given for {p.form} {p.activation.name}: only softmax has a bound that holds everywhere."
        )
    smallest = _norms(p)[1]
    if smallest == 0:
        return Bound(math.inf, math.inf)
    ours = _negative_part(p, radius)
    return Bound(*(math.sqrt(c + strength / smallest**2) * (1 + _ROUNDING) for c in (constant, ours)))


def _is_softmax(p: Problem) -> bool:
    return p.form == "normalized" and p.activation.name == "exp"


def _exp(t: float) -> float:
    return math.exp(t) if t < 700 else math.inf


def _norms(p: Problem) -> tuple[float, float]:
    """(‖A‖ from above, σ_min(A) from below), zero where it is not told from zero."""
    n, d = p.shape
    eps = float(np.finfo(p.dtype).eps)
    if matrices.is_sparse(p.A):  # which has no QR; the Gram matrix squares the condition number
        squares = np.linalg.eigvalsh(np.asarray(matrices.gram(p.A, jnp.ones(n, p.dtype)), np.float64))
        error = 2 * math.sqrt(n) * eps * squares[-1]
        largest, smallest = math.sqrt(squares[-1] + error), math.sqrt(max(squares[0] - error, 0.0))
    else:
        values = np.linalg.svd(np.asarray(jnp.linalg.qr(matrices.dense(p.A), mode="r"), np.float64), compute_uv=False)
        error = 2 * math.sqrt(n) * eps * values[0]
        largest, smallest = values[0] + error, max(values[-1] - error, 0.0)
    return float(largest), float(smallest) if n >= d else 0.0


def _spread(p: Problem) -> float:
    b = np.asarray(p.b, np.float64)
    return 1.0 + float(b.max() - b.min())


def _softmax_derivatives(p: Problem) -> tuple[float, float, float]:
    o = _spread(p)
    return 0.5, 0.25 + 0.5 * o, math.sqrt(2) * o + 0.592


def _around(p: Problem, radius: float, centre: Any) -> tuple[np.ndarray, float]:
    """The logits at the centre, and how far from zero the ball reaches."""
    n, d = p.shape
    if centre is None:
        return np.zeros(n), radius
    if jnp.shape(centre) != (d,):
        raise ValueError(f"centre must have shape {(d,)}, got {jnp.shape(centre)}.")
    check_finite("centre", centre)
    z = np.asarray(matrices.times(p.A, jnp.asarray(centre, p.dtype)), np.float64)
    return z, radius + float(np.linalg.norm(np.asarray(centre, np.float64)))


def _reached(p: Problem, radius: float, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between what the logits stay, on the ball around the centre with logits z."""
    rows = np.sqrt(np.asarray(matrices.row_squares(p.A), np.float64)) * (1 + _ROUNDING)
    width = rows * radius + _ROUNDING * np.abs(z)
    return z - width, z + width


def _smallest_total(p: Problem, radius: float, z: np.ndarray, shift: float) -> float:
    """e^{−shift} α, from below, on the ball around the centre with logits z; zero or less where nothing is known."""
    norm = lambda v: float(np.linalg.norm(np.asarray(matrices.adjoint(p.A, jnp.asarray(v, p.dtype)), np.float64)))
    name, lost = p.activation.name, radius * (1 + _ROUNDING)
    if name == "cosh":
        total, slope = (np.exp(np.abs(z) - shift) / 2 * (1 + sign * np.exp(-2 * np.abs(z))) for sign in (1, -1))
        inside = float(total.sum()) * (1 - _ROUNDING) - norm(np.sign(z) * slope) * lost
        return max(p.shape[0] * math.exp(-shift), inside)
    if name not in ("exp", "res_exp"):
        return 0.0
    top = float(z.max())
    powers = np.exp(z - top)
    total = float(powers.sum()) * (1 - _ROUNDING * z.any())
    exponential = total * np.exp(top - shift - norm(powers / powers.sum()) * lost)
    if name == "exp":
        return exponential
    linear = float(z.sum()) - _ROUNDING * float(np.abs(z).sum()) - norm(np.ones_like(z)) * lost
    return exponential + math.exp(-shift) * linear


def _residual_bounds(p: Problem, radius: float, z: np.ndarray) -> tuple[float, float, float, float]:
    """Of the norms of the residual and of its first three derivatives along a unit vector of logits, on the ball around z."""
    name = p.activation.name
    if name not in _SUPREMA:
        raise ValueError(f"there are bounds for the activations {sorted(_SUPREMA)}, got {name!r}.")
    low, high = _reached(p, radius, z)
    shift = 0.0
    if p.form == "normalized" and name != "identity":  # u/α is what counts
        shift = float(z.max()) if name == "exp" else max(0.0, float(np.abs(z).max() if name != "res_exp" else z.max()))
    with np.errstate(over="ignore", invalid="ignore"):
        s = _SUPREMA[name](low, high, shift)
        b = float(np.linalg.norm(np.asarray(p.b, np.float64)))
        if p.form != "normalized":
            b_in, total = (b, float(s.u.sum())) if p.form == "rescaled" else (0.0, 1.0)
            size = float(np.linalg.norm(s.u)) + b * total
            first = float(s.du.max()) + b_in * float(np.linalg.norm(s.du))
            return size, first, float(s.d2u.max()) * (1 + b_in), float(s.d3u.max()) * (1 + b_in)
        alpha = _smallest_total(p, radius, z, shift)
        if not alpha > 0:
            return math.inf, math.inf, math.inf, math.inf
        F, a = (np.linalg.norm(part) / alpha for part in (s.u, s.du))  # NumPy's own: they overflow to inf
        m1, m2, m3 = (part.max() / alpha for part in (s.du, s.d2u, s.d3u))
        return (
            float(F + b),
            float(m1 + F * a),
            float(m2 + 2 * m1 * a + F * (m2 + 2 * a**2)),
            float(m3 + 3 * m2 * a + 3 * m1 * m2 + 6 * m1 * a**2 + F * (m3 + 6 * a * m2 + 6 * a**3)),
        )


def _general_derivatives(p: Problem, radius: float, z: np.ndarray, centre: Any) -> tuple[float, float, float]:
    c, f1, f2, f3 = _residual_bounds(p, radius, z)
    predict = f1
    if p.form != "normalized":  # predict is u itself
        with np.errstate(over="ignore", invalid="ignore"):
            slopes = _SUPREMA[p.activation.name](*_reached(p, radius, z), 0.0).du
        predict = float(np.nan_to_num(slopes, nan=math.inf).max())
    if not np.isfinite([f1, f2, f3]).all():
        return predict, math.inf, math.inf
    # From the centre: the residual there, with what cancels in it, and how far it moves.
    there = p.residual(jnp.zeros(p.shape[1], p.dtype) if centre is None else jnp.asarray(centre, p.dtype))
    with np.errstate(over="ignore"):
        lost = _CANCELLED * float(np.finfo(p.dtype).eps) * c
        c = min(c, np.linalg.norm(np.asarray(there, np.float64)) * (1 + _ROUNDING) + lost + f1 * _norms(p)[0] * radius)
        return predict, float(f1 * f1 + c * f2), float(c * f3 + 3 * f1 * f2)


def _negative_part(p: Problem, radius: float | None) -> float:
    if _is_softmax(p):
        return 0.5 * _spread(p)
    check_positive("radius", radius)
    assert radius is not None
    c, _, f2, _ = _residual_bounds(p, radius, np.zeros(p.shape[0]))
    return c * f2

r"""How curved a regression can be on a ball ‖x − c‖ ≤ R, before any x is seen: normaliser,
Lipschitz constants, convexity.

Each function returns the form of the papers and ours, which is proved in its docstring. [D] and [S]
assume ‖A‖, ‖x‖ ≤ R with R ≥ 4 and state constants that carry e^{R²}; their full text was not at
hand, and the exponents below are as remembered (arguments, not facts). Ours do not carry them for
softmax: all derivatives of the softmax are bounded, whatever the logits.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (30, 3)) / 3
    >>> p = sn.regression.softmax(A, jnp.full(30, 1 / 30))
    >>> w = sn.regression.convexity_weight(p, strength=0.1)
    >>> strong = sn.regression.softmax(A, jnp.full(30, 1 / 30), weights=w.ours)
    >>> bool(sn.ntk.extreme_eigenvalues(strong.hessian(5 * jnp.ones(3))).smallest > 0.1)
    True

Source: [S] arXiv 2309.13482, [D] arXiv 2304.10411; MATHEMATICS.md#regression-bounds; the proofs of
ours are ours.
"""

import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import (
    as_dtype,
    check_number,
    check_positive,
    is_concrete,
)
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale, host_norm
from softntk.activations import SUPREMA
from softntk.regression._problem import Problem

# units in the last place that a residual may be off by, relative to what it is a difference of
_CANCELLED = 1e3
_ROUNDING = 1e-6  # what norms, computed in the precision of A, may be off by, relative


class Bound(NamedTuple):
    """The papers' form and ours; upper bounds are +inf, and lower ones zero, where nothing is
    known.
    """

    paper: float
    ours: float


class LipschitzBounds(NamedTuple):
    """Of the prediction, the gradient and the Hessian in x, each as a :class:`Bound`."""

    predict: Bound
    gradient: Bound
    hessian: Bound


def normaliser(
    p: Problem, radius: float, centre: Float[Array | np.ndarray, " d"] | None = None
) -> Bound:
    r"""Return how small α = 1ᵀu(Ax) can be on the ball ‖x − c‖ ≤ R.

    Papers: α ≥ n e^{−‖A‖R} for exp, from |z_i| ≤ ‖A‖R around c = 0. Ours: log Σe^{z_i} is convex,
    with the gradient Aᵀf, f = softmax(Ac), so that Σe^{z_i} ≥ Σe^{⟨a_i, c⟩} e^{−t}, t = ‖Aᵀf‖R;
    Σz_i is linear, and cosh is convex and at least one:

        exp: α(c) e^{−t},        res_exp: Σe^{⟨a_i, c⟩} e^{−t} + Σ⟨a_i, c⟩ − ‖Aᵀ1‖R,
        cosh: max(n, α(c) − ‖Aᵀsinh(Ac)‖R).

    Around zero, t = ‖ā‖R with ā the mean of the rows of A: rows that average to zero have t = 0,
    whatever their size.

    Args:
        p: the problem.
        radius: R > 0.
        centre: c, [d]; None: zero.

    Returns:
        A :class:`Bound`, both clipped at zero; zero for sinh and the like, whose sum may vanish;
        +inf if it overflows.

    Raises:
        ValueError: p no regression; radius not positive; centre not finite or of another shape than
            [d]; tracers.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> normaliser(sn.regression.softmax(jnp.array([[1.0], [-1.0]]), jnp.ones(2)), 1.0).ours
        2.0

    Source: [D], the lower bound β on ⟨exp(Ax), 1⟩.
    """
    _check_problem(p)
    radius = _known_positive("radius", radius)
    z, reach = _around(p, radius, centre)
    n, largest = p.shape[0], _norms(p)[0] * reach
    name = p.activation.name
    ours = _smallest_total(p, radius, z, reach - radius, 0.0)
    paper = {"exp": math.exp(-largest), "cosh": 1.0, "res_exp": math.exp(-largest) - largest}.get(
        name, 0.0
    )
    return Bound(float(n * max(paper, 0.0)), float(max(ours, 0.0)))


def lipschitz(
    p: Problem,
    radius: float,
    centre: Float[Array | np.ndarray, " d"] | None = None,
    *,
    exponents: tuple[float, float, float] = (2.0, 8.0, 20.0),
) -> LipschitzBounds:
    r"""Return Lipschitz constants of predict, gradient and Hessian on the ball ‖x − c‖ ≤ R.

    **Ours, softmax** (any R). Along a direction h in the logits let y = h − E_f h, V = E_f y², r =
    max h − min h ≤ √2‖h‖ and o = max c − min c ≤ 1 + max b − min b for the residual c = f − b. Then

    - f' = f∘y and ‖f'‖² = Σf²y² ≤ ¼·‖h‖²: diag(f) − ffᵀ has the quadratic form V ≤ r²/4 ≤ ‖h‖²/2,
      so its norm is at most ½.
    - L'' = ‖f'‖² + E_f[(c − E_f c)(y² − V)] = ‖f'‖² + E_f[(c − E_f c) y²], of modulus at most (¼ +
      o/2)‖h‖².
    - L''' = E_f[(c − E_f c)(y³ − 3yV)] + 3Σ f²y(y² − V). By convexity E|y|³ and E|y| are largest on
      two points at distance r: at most r³/8 and r/2. So the first term is at most o (1/8 + 3/8) r³.
      In the second, f_k|y_k| ≤ E|y|/2 ≤ r/4 (y has mean zero) and E|y² − V| ≤ √(V(M² − V)) ≤ 0.279
      r², M = max|y| (with V ≤ M(r − M), by Bhatia and Davis). Together at most (√2 o + 0.592)‖h‖³,
      r³ ≤ 2√2‖h‖³; and a symmetric form is as large on the diagonal as anywhere (Banach).

    **Ours, general** (softmax gets the smaller of the two): on |z_i − ⟨a_i, c⟩| ≤ ‖a_i‖R the
    suprema of |u|, …, |u'''| are known, and α ≥ :func:`normaliser`. Write F, a for the norms of the
    vectors of suprema of u/α and u'/α, and m₁, m₂, m₃ for the largest entries of those of u'/α,
    u''/α, u'''/α. Differentiating f = u/α along a unit vector, with |⟨v, h⟩| ≤ a and
    |⟨v', h²⟩| ≤ m₂,

        ‖f'‖ ≤ m₁ + Fa,    ‖f''‖ ≤ m₂ + 2m₁a + F(m₂ + 2a²),
        ‖f'''‖ ≤ m₃ + 3m₂a + 3m₁m₂ + 6m₁a² + F(m₃ + 6am₂ + 6a³),

    and ‖∇²L‖ ≤ ‖f'‖² + ‖r‖‖f''‖, ‖∇³L‖ ≤ ‖r‖‖f'''‖ + 3‖f'‖‖f''‖, with ‖r‖ ≤ F + ‖b‖ or, from the
    centre, ‖r(c)‖ + ‖f'‖‖A‖R. Rescaled and plain forms are linear in u: ‖r'‖ ≤ m₁ + ‖b‖a, ‖r''‖ ≤
    m₂(1 + ‖b‖), ‖r'''‖ ≤ m₃(1 + ‖b‖), ‖r‖ ≤ F + ‖b‖ Σ|u| (plain: with no b in the first three).

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
        ValueError: p no regression; radius not positive; another activation; centre not finite or
            of another shape than [d]; exponents that are not three numbers; tracers.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.softmax(jnp.eye(2), jnp.array([0.5, 0.5]))
        >>> round(lipschitz(p, 1.0).hessian.ours, 2), lipschitz(p, 1.0).hessian.paper > 1e100
        (2.01, True)

    Source: [D], [S], the lemmas on Lipschitz constants.
    """
    _check_problem(p)
    radius = _known_positive("radius", radius)
    powers = _checked_exponents(exponents)
    spectral = _norms(p)[0]
    z, reach = _around(p, radius, centre)
    in_logits = _general_derivatives(p, radius, z, reach - radius, centre)
    if _is_softmax(p):
        in_logits = tuple(map(min, in_logits, _softmax_derivatives(p)))
    largest_weight = float(np.max(np.asarray(p.weights, np.float64)))
    added = (0.0, largest_weight * largest_weight, 0.0)
    ours = [
        _times(c + w, *[spectral] * (i + 1)) * (1 + _ROUNDING)
        for i, (c, w) in enumerate(zip(in_logits, added, strict=True))
    ]
    n, size = p.shape[0], max(spectral, reach, 4.0)
    beta = normaliser(p, reach).paper / n
    scale = n**1.5 / beta / beta if beta > 0 else math.inf
    papers = [
        _times(_exp(_times(c, size, size)), scale) + _times(w, spectral, spectral)
        for c, w in zip(powers, added, strict=True)
    ]
    return LipschitzBounds(*(Bound(paper, mine) for paper, mine in zip(papers, ours, strict=True)))


def convexity_weight(
    p: Problem, strength: float, radius: float | None = None, *, constant: float = 20.0
) -> Bound:
    r"""Return how large w must be for ∇²L ≽ l I: w² ≥ C + l/σ_min(A)², where −C bounds the logits'
    Hessian from below.

    Papers: C = 20, for exp (for e^z + z it is false, see softntk/theory/LEDGER.md). Ours: from
    :func:`lipschitz`'s proof, without JᵀJ ≽ 0, which helps:

        softmax, everywhere: C = o/2 with o = 1 + max b − min b,        others, on ‖x‖ ≤ R: C = ‖c‖‖f''‖.

    For softmax E_f[(c − E_f c) y²] ≥ −(max c − min c) V and V ≤ ‖h‖²/2. Then Aᵀ(∇²_z L + w²)A ≽ (w²
    − C) σ_min(A)² I.

    Args:
        p: the problem; its own weights are not counted.
        strength: l > 0.
        radius: R; needed for all but softmax.
        constant: C of the papers. As remembered.

    Returns:
        A :class:`Bound` on w itself (not squared); +inf for A of rank below d.

    Raises:
        ValueError: p no regression; strength or radius not positive; constant negative; no radius
            where one is needed; tracers.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.softmax(jnp.eye(2), jnp.array([0.5, 0.5]))
        >>> [round(w, 3) for w in convexity_weight(p, 0.5)]
        [4.528, 1.0]

    Source: [D] and [S], the lemmas on positive definite Hessians.
    """
    _check_problem(p)
    strength = _known_positive("strength", strength)
    constant = _known("constant", check_number("constant", constant, at_least=0))
    radius = None if radius is None else _known_positive("radius", radius)
    if radius is None and not _is_softmax(p):
        raise ValueError(
            f"radius must be given for {p.form} {p.activation.name}: only softmax has a bound that holds everywhere."
        )
    smallest = _norms(p)[1]
    if smallest == 0:
        return Bound(math.inf, math.inf)
    # not squared, which may leave the range where the weight does not
    added = math.sqrt(strength) / smallest
    return Bound(
        *(
            math.hypot(math.sqrt(c), added) * (1 + _ROUNDING)
            for c in (constant, _negative_part(p, radius))
        )
    )


def _check_problem(p: Any) -> None:
    """Refuse what is no regression, half precision, whose rounding is not bounded here, and
    tracers.
    """
    if not isinstance(p, Problem):
        raise ValueError(
            f"p must be a regression, e.g. of softntk.regression._problem, got {type(p).__name__}."
        )
    if not all(map(is_concrete, jax.tree.leaves(p))):
        raise ValueError(
            "p must not be traced: bounds are numbers, computed outside of jit, vmap and grad."
        )
    if jnp.finfo(p.dtype).bits < 32:
        raise ValueError(
            f"p must be float32 or float64, got {p.dtype}: its rounding is not in the bounds. Convert A."
        )


def _known(name: str, value: Any) -> float:
    if not is_concrete(value):
        raise ValueError(
            f"{name} must not be traced: bounds are numbers, computed outside of jit, vmap and grad."
        )
    return value


def _known_positive(name: str, value: Any) -> float:
    return _known(name, check_positive(name, value))


def _checked_exponents(exponents: Any) -> list[float]:
    if not isinstance(exponents, list | tuple) or len(exponents) != 3:
        raise ValueError(
            f"exponents must be three numbers, for predict, gradient and Hessian, got {exponents!r}."
        )
    return [
        _known(f"exponents[{i}]", check_number(f"exponents[{i}]", q, at_least=0))
        for i, q in enumerate(exponents)
    ]


def _times(*factors: float) -> float:
    """Return the product of numbers ≥ 0, infinite where it overflows; zero times infinity is zero."""
    return 0.0 if 0.0 in factors else math.prod(map(float, factors))


def _is_softmax(p: Problem) -> bool:
    return p.form == "normalized" and p.activation.name == "exp"


def _exp(t: float) -> float:
    return math.exp(t) if t < 700 else math.inf


def _norms(p: Problem) -> tuple[float, float]:
    """Return (‖A‖ from above, σ_min(A) from below), zero where it is not told from zero."""
    n, d = p.shape
    eps = float(np.finfo(p.dtype).eps)
    A, scale = matrices.scale_to_unit(p.A), float(binary_scale(matrices.entries(p.A)).squeeze())
    if matrices.is_sparse(A):  # which has no QR; the Gram matrix squares the condition number
        squares = np.linalg.eigvalsh(np.asarray(matrices.gram(A, jnp.ones(n, p.dtype)), np.float64))
        error = 2 * math.sqrt(n) * eps * squares[-1]
        largest = math.sqrt(max(squares[-1] + error, 0.0))
        smallest = math.sqrt(max(squares[0] - error, 0.0))
    else:
        values = np.linalg.svd(np.asarray(jnp.linalg.qr(A, mode="r"), np.float64), compute_uv=False)
        error = 2 * math.sqrt(n) * eps * values[0]
        largest = values[0] + error
        smallest = max(values[-1] - error, 0.0)
    return float(largest) * scale, float(smallest) * scale if n >= d else 0.0


def _spread(p: Problem) -> float:
    b = np.asarray(p.b, np.float64)
    return 1.0 + float(b.max() - b.min())


def _softmax_derivatives(p: Problem) -> tuple[float, float, float]:
    o = _spread(p)
    return 0.5, 0.25 + 0.5 * o, math.sqrt(2) * o + 0.592


def _around(p: Problem, radius: float, centre: Any) -> tuple[np.ndarray, float]:
    """Return the logits at the centre, and how far from zero the ball reaches."""
    n, d = p.shape
    if centre is None:
        return np.zeros(n), radius
    centre = as_dtype("centre", centre, p.dtype, (d,))
    if not is_concrete(centre):
        raise ValueError(
            "centre must not be traced: bounds are numbers, computed outside of jit, vmap and grad."
        )
    z = np.asarray(matrices.times(p.A, centre), np.float64)
    if not np.isfinite(z).all():
        raise ValueError(
            f"centre must have logits that fit {p.dtype}, got overflowing ones. Take float64."
        )
    return z, min(radius + float(host_norm(np.asarray(centre, np.float64))), sys.float_info.max)


def _reached(
    p: Problem, radius: float, z: np.ndarray, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return between what the logits stay, on the ball around a centre of norm ``offset`` with
    logits z.
    """
    rows = np.asarray(matrices.row_norms(p.A), np.float64) * (1 + _ROUNDING)
    with np.errstate(over="ignore", invalid="ignore"):
        width = rows * (radius + _ROUNDING * offset)  # z itself is rounded, relative to ‖a_i‖‖c‖
        return z - width, z + width


def _adjoint_norm(p: Problem, v: np.ndarray) -> float:
    """Return ‖Aᵀv‖."""
    A, scale = matrices.scale_to_unit(p.A), float(binary_scale(matrices.entries(p.A)).squeeze())
    size = float(np.abs(v).max())
    if size == 0:
        return 0.0
    return _times(
        float(
            host_norm(np.asarray(matrices.adjoint(A, jnp.asarray(v / size, p.dtype)), np.float64))
        ),
        size,
        scale,
    )


def _smallest_total(p: Problem, radius: float, z: np.ndarray, offset: float, shift: float) -> float:
    """Return e^{−shift} α, from below, on the ball around a centre with logits z; zero or less
    where nothing is known.
    """
    name, reach = p.activation.name, radius * (1 + _ROUNDING)
    if name not in ("cosh", "exp", "res_exp"):
        return 0.0
    # What rounding of the logits at the centre may change of them.
    slack = _ROUNDING * offset * float(np.asarray(matrices.row_norms(p.A), np.float64).max())
    with np.errstate(over="ignore"):
        if name == "cosh":
            grown, shrunk = (np.exp(sign * np.abs(z) - shift) / 2 for sign in (1, -1))
            total = float((grown + shrunk).sum()) * (1 - _ROUNDING) * math.exp(-slack)
            if not math.isfinite(total):
                return math.inf
            inside = total - _times(
                _adjoint_norm(p, np.sign(z) * (grown - shrunk)), reach, math.exp(min(slack, 700.0))
            )
            return max(p.shape[0] * math.exp(-shift), inside)
        top = float(z.max())
        powers = np.exp(z - top)
        total = float(powers.sum()) * (1 - _ROUNDING * z.any())
        lost = _times(_adjoint_norm(p, powers / powers.sum()), reach) + slack
        exponential = total * float(np.exp(top - shift - lost))
    if name == "exp":
        return exponential
    linear = float(z.sum()) - len(z) * slack - _times(_adjoint_norm(p, np.ones_like(z)), reach)
    return exponential + _times(math.exp(-shift), abs(linear)) * math.copysign(1, linear)


def _residual_bounds(p: Problem, radius: float, z: np.ndarray, offset: float) -> list[float]:
    """Return bounds of the norms of the residual and of its first three derivatives along a unit
    vector of logits.
    """
    name = p.activation.name
    if name not in SUPREMA:
        raise ValueError(
            f"p must have another activation: there are bounds for the activations {sorted(SUPREMA)}, got {name!r}."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        bounds = _unchecked_bounds(p, *_reached(p, radius, z, offset), radius, z, offset)
    return [math.inf if math.isnan(bound) else float(bound) for bound in bounds]


def _unchecked_bounds(
    p: Problem, low: np.ndarray, high: np.ndarray, radius: float, z: np.ndarray, offset: float
) -> tuple:
    """Return the same, NaN where infinities meet."""
    name = p.activation.name
    shift = 0.0
    if p.form == "normalized":  # u/α is what counts
        shift = (
            float(z.max())
            if name == "exp"
            else max(0.0, float(np.abs(z).max() if name != "res_exp" else z.max()))
        )
    s = SUPREMA[name](low, high, shift)
    b = float(host_norm(np.asarray(p.b, np.float64)))
    if p.form != "normalized":
        b_in, total = (b, float(s.u.sum())) if p.form == "rescaled" else (0.0, 1.0)
        first = s.du.max() + _times(b_in, float(host_norm(s.du)))
        return host_norm(s.u) + b * total, first, s.d2u.max() * (1 + b_in), s.d3u.max() * (1 + b_in)
    alpha = np.float64(_smallest_total(p, radius, z, offset, shift))
    if not alpha > 0:
        return (math.inf,) * 4
    F, a = (host_norm(part) / alpha for part in (s.u, s.du))
    m1, m2, m3 = (part.max() / alpha for part in (s.du, s.d2u, s.d3u))
    return (
        F + b,
        m1 + F * a,
        m2 + 2 * m1 * a + F * (m2 + 2 * a**2),
        m3 + 3 * m2 * a + 3 * m1 * m2 + 6 * m1 * a**2 + F * (m3 + 6 * a * m2 + 6 * a**3),
    )


def _general_derivatives(
    p: Problem, radius: float, z: np.ndarray, offset: float, centre: Any
) -> tuple[float, float, float]:
    c, f1, f2, f3 = _residual_bounds(p, radius, z, offset)
    predict = f1
    if p.form != "normalized":  # predict is u itself
        with np.errstate(over="ignore", invalid="ignore"):
            slopes = SUPREMA[p.activation.name](*_reached(p, radius, z, offset), 0.0).du
        predict = float(np.nan_to_num(slopes, nan=math.inf).max())
    if not np.isfinite([f1, f2, f3]).all():
        return predict, math.inf, math.inf
    # From the centre: the residual there, with what cancels in it, and how far it moves.
    residual = p.residual(
        jnp.zeros(p.shape[1], p.dtype) if centre is None else jnp.asarray(centre, p.dtype)
    )
    with np.errstate(over="ignore", invalid="ignore"):
        rounding = _CANCELLED * float(np.finfo(p.dtype).eps) * c
        from_centre = (
            float(host_norm(np.asarray(residual, np.float64))) * (1 + _ROUNDING) + rounding
        )
        c = min(c, from_centre + _times(f1, _norms(p)[0], radius))
        return predict, _times(f1, f1) + _times(c, f2), _times(c, f3) + 3 * _times(f1, f2)


def _negative_part(p: Problem, radius: float | None) -> float:
    if _is_softmax(p):
        return 0.5 * _spread(p)
    assert radius is not None  # refused before
    c, _, f2, _ = _residual_bounds(p, radius, np.zeros(p.shape[0]), 0.0)
    return _times(c, f2)

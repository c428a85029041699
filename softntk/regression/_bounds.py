r"""Bounds of a regression on a ball ‖x − c‖ ≤ R: normaliser, Lipschitz constants, convexity.

Each function returns the bound of the papers and ours, which is proved in its docstring. The papers
[D] and [S] assume ‖A‖, ‖x‖ ≤ R with R ≥ 4 and state constants that carry e^{R²}. Their full text
was not available, so their exponents are arguments. Ours do not carry such a factor for softmax:
all derivatives of the softmax are bounded, whatever the logits.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (30, 3)) / 3
    >>> p = sn.regression.softmax(A, jnp.full(30, 1 / 30))
    >>> w = sn.regression.convexity_weight(p, strength=0.1)
    >>> strong = sn.regression.softmax(A, jnp.full(30, 1 / 30), weights=w.ours)
    >>> bool(sn.ntk.extreme_eigenvalues(strong.hessian(5 * jnp.ones(3))).smallest > 0.1)
    True

Source: [S] arXiv 2309.13482, [D] arXiv 2304.10411; MATHEMATICS.md#regression-bounds. The proofs of
our bounds are our own.
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
from softntk._linalg.norms import host_norm
from softntk.activations import ACTIVATIONS
from softntk.regression._logit_bounds import (
    ROUNDING_MARGIN,
    Ball,
    bound_normaliser,
    loss_derivative_bounds,
    negative_curvature,
    softmax_derivative_bounds,
)
from softntk.regression._problem import Problem
from softntk.regression._scaled_products import bound_singular_values, exp_or_inf, multiply

# The papers assume that R, their bound of ‖A‖ and ‖x‖, is at least this.
MIN_PAPER_RADIUS = 4.0


class Bound(NamedTuple):
    """The bound of the papers and ours.

    Upper bounds are +inf, and lower ones zero, where nothing is known.

    Attributes:
        paper: the bound that the papers state.
        ours: the bound that the docstring of the function proves.
    """

    paper: float
    ours: float


class LipschitzBounds(NamedTuple):
    """Lipschitz constants in x, each as a :class:`Bound`.

    Attributes:
        predict: Lipschitz constant of the prediction.
        gradient: Lipschitz constant of the gradient of the loss.
        hessian: Lipschitz constant of the Hessian of the loss, in the spectral norm.
    """

    predict: Bound
    gradient: Bound
    hessian: Bound


def normaliser(
    p: Problem, radius: float, centre: Float[Array | np.ndarray, " d"] | None = None
) -> Bound:
    r"""Return a lower bound of the normaliser α = 1ᵀu(Ax) on the ball ‖x − c‖ ≤ R.

    Use it to learn whether a normalized problem stays inside of its domain on the ball.

    Papers: α ≥ n e^{−‖A‖R} for exp, from |z_i| ≤ ‖A‖R around c = 0. In the same way α ≥ n for cosh
    and α ≥ n(e^{−‖A‖R} − ‖A‖R) for e^z + z. Around another c, ‖c‖ + R takes the place of R.

    Ours: log Σe^{z_i} is convex, with the gradient Aᵀf, f = softmax(Ac), so that
    Σe^{z_i} ≥ Σe^{⟨a_i, c⟩} e^{−t}, t = ‖Aᵀf‖R. Σz_i is linear. Any other u is at least its minimum
    on |z_i − ⟨a_i, c⟩| ≤ ‖a_i‖R, and a convex one (cosh, softplus) lies above its tangent:

        exp: α(c) e^{−t},        res_exp: Σe^{⟨a_i, c⟩} e^{−t} + Σ⟨a_i, c⟩ − ‖Aᵀ1‖R,
        others: Σ min u,         convex ones: max(Σ min u, α(c) − ‖Aᵀu'(Ac)‖R).

    Around zero, t = ‖ā‖R with ā the mean of the rows of A: rows that average to zero have t = 0,
    whatever their size.

    Args:
        p: the problem.
        radius: R > 0.
        centre: c, [d]; None: zero.

    Returns:
        A :class:`Bound`, both clipped at zero; zero where the sum may vanish, and for activations
        without an enclosure; +inf if it overflows.

    Raises:
        ValueError: p is not a regression; radius is not positive; centre is not finite, or not of
            shape [d]; an argument is traced.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> normaliser(sn.regression.softmax(jnp.array([[1.0], [-1.0]]), jnp.ones(2)), 1.0).ours
        2.0

    Source: [D], the lower bound β on ⟨exp(Ax), 1⟩.
    """
    _check_problem(p)
    radius = _concrete_positive("radius", radius)
    ball, max_norm = _ball_and_reach(p, radius, centre)
    # The papers bound every |z_i| by ‖A‖ ‖x‖.
    max_logit = bound_singular_values(p)[0] * max_norm
    ours = bound_normaliser(p, ball, 0.0)
    # The papers' functions, by name: another function that borrows a name has no such bound.
    paper_terms = {
        "exp": math.exp(-max_logit),
        "cosh": 1.0,
        "res_exp": math.exp(-max_logit) - max_logit,
    }
    paper = paper_terms.get(_table_name(p), 0.0)
    return Bound(float(p.shape[0] * max(paper, 0.0)), float(max(ours, 0.0)))


def lipschitz(
    p: Problem,
    radius: float,
    centre: Float[Array | np.ndarray, " d"] | None = None,
    *,
    exponents: tuple[float, float, float] = (2.0, 8.0, 20.0),
) -> LipschitzBounds:
    r"""Return Lipschitz constants of predict, gradient and Hessian on the ball ‖x − c‖ ≤ R.

    Use them for step sizes with a guarantee, and for the radius in which a Newton step converges.

    **Ours, softmax** (any R). Along a direction h in the logits let y = h − E_f h, V = E_f y²,
    r = max h − min h ≤ √2‖h‖ and o = max c − min c ≤ 1 + max b − min b for the residual c = f − b.
    Then

    - f' = f∘y and ‖f'‖² = Σf²y² ≤ ¼·‖h‖²: diag(f) − ffᵀ has the quadratic form V ≤ r²/4 ≤ ‖h‖²/2,
      so its norm is at most ½.
    - L'' = ‖f'‖² + E_f[(c − E_f c)(y² − V)] = ‖f'‖² + E_f[(c − E_f c) y²], of modulus at most
      (¼ + o/2)‖h‖².
    - L''' = E_f[(c − E_f c)(y³ − 3yV)] + 3Σ f²y(y² − V). By convexity E|y|³ and E|y| are largest on
      two points at distance r: at most r³/8 and r/2. So the first term is at most o (1/8 + 3/8) r³.
      In the second, f_k|y_k| ≤ E|y|/2 ≤ r/4 (y has mean zero) and, with M = max|y| and
      V ≤ M(r − M) by Bhatia and Davis, E|y² − V| ≤ √(V(M² − V)) ≤ 0.279 r². Together at most
      (√2 o + 0.592)‖h‖³, as r³ ≤ 2√2‖h‖³; and a symmetric form attains its norm on the diagonal
      (Banach).

    **Ours, general** (softmax gets the smaller of the two): on |z_i − ⟨a_i, c⟩| ≤ ‖a_i‖R the
    suprema of |u|, …, |u'''| are known, and α ≥ :func:`normaliser`. Write F, a for the norms of the
    vectors of suprema of u/α and u'/α, and m₁, m₂, m₃ for the largest entries of those of u'/α,
    u''/α, u'''/α. Differentiating f = u/α along a unit vector, with |⟨v, h⟩| ≤ a and
    |⟨v', h²⟩| ≤ m₂,

        ‖f'‖ ≤ m₁ + Fa,    ‖f''‖ ≤ m₂ + 2m₁a + F(m₂ + 2a²),
        ‖f'''‖ ≤ m₃ + 3m₂a + 3m₁m₂ + 6m₁a² + F(m₃ + 6am₂ + 6a³),

    and ‖∇²L‖ ≤ ‖f'‖² + ‖r‖‖f''‖, ‖∇³L‖ ≤ ‖r‖‖f'''‖ + 3‖f'‖‖f''‖, with ‖r‖ ≤ F + ‖b‖ or, from the
    centre, ‖r(c)‖ + ‖f'‖‖A‖R. Rescaled and plain forms are linear in u (plain: b = 0 in the first
    three):

        ‖r'‖ ≤ m₁ + ‖b‖a,    ‖r''‖ ≤ m₂(1 + ‖b‖),    ‖r'''‖ ≤ m₃(1 + ‖b‖),    ‖r‖ ≤ F + ‖b‖ Σ|u|.

    The weights add w² to the second; ‖A‖, ‖A‖² and ‖A‖³ turn logits into x.

    **Papers**: β⁻² n^{3/2} e^{qR²} with R = max(‖A‖, ‖x‖, 4), β the paper's bound on α/n.

    Args:
        p: the problem; its activation with an enclosure, and without jumps of the slope.
        radius: R > 0.
        centre: c, [d]; None: zero.
        exponents: q of the papers, for predict, gradient, Hessian. The defaults are from memory.

    Returns:
        :class:`LipschitzBounds`.

    Raises:
        ValueError: p is not a regression, or its activation has no enclosure or a slope that jumps;
            radius is not positive; centre is not finite, or not of shape [d]; exponents are not
            three numbers; an argument is traced.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.softmax(jnp.eye(2), jnp.array([0.5, 0.5]))
        >>> round(lipschitz(p, 1.0).hessian.ours, 2), lipschitz(p, 1.0).hessian.paper > 1e100
        (2.01, True)

    Source: [D], [S], the lemmas on Lipschitz constants.
    """
    # 1. Check the arguments.
    _check_problem(p)
    radius = _concrete_positive("radius", radius)
    paper_exponents = _checked_exponents(exponents)
    # 2. Bound the derivatives in the logits.
    spectral_norm = bound_singular_values(p)[0]
    ball, max_norm = _ball_and_reach(p, radius, centre)
    in_logits = loss_derivative_bounds(p, ball, centre)
    if _is_softmax(p):
        in_logits = tuple(map(min, in_logits, softmax_derivative_bounds(p)))
    # 3. Ours: turn logits into x by powers of ‖A‖; the penalty adds max w² to the second.
    max_weight = float(np.max(np.asarray(p.weights, np.float64)))
    penalty_terms = (0.0, max_weight * max_weight, 0.0)
    ours = [
        multiply(in_logit + penalty, *[spectral_norm] * (i + 1)) * (1 + ROUNDING_MARGIN)
        for i, (in_logit, penalty) in enumerate(zip(in_logits, penalty_terms, strict=True))
    ]
    # 4. Papers: β⁻² n^{3/2} e^{qR²}, plus the penalty.
    n = p.shape[0]
    paper_radius = max(spectral_norm, max_norm, MIN_PAPER_RADIUS)
    beta = normaliser(p, max_norm).paper / n
    paper_scale = n**1.5 / beta / beta if beta > 0 else math.inf
    papers = [
        multiply(exp_or_inf(multiply(exponent, paper_radius, paper_radius)), paper_scale)
        + multiply(penalty, spectral_norm, spectral_norm)
        for exponent, penalty in zip(paper_exponents, penalty_terms, strict=True)
    ]
    return LipschitzBounds(*(Bound(*pair) for pair in zip(papers, ours, strict=True)))


def convexity_weight(
    p: Problem, strength: float, radius: float | None = None, *, constant: float = 20.0
) -> Bound:
    r"""Return the smallest weight w for which ∇²L ≽ l I is proved.

    Use it to choose ``weights`` of a problem that has to be strongly convex. The condition is
    w² ≥ C + l/σ_min(A)², where −C bounds the Hessian in the logits from below.

    Papers: C = 20, stated for exp and e^z + z. It is returned for every activation, but for e^z + z
    it is false (softntk/theory/LEDGER.md). Ours, by the proof of :func:`lipschitz`, where JᵀJ ≽ 0
    is left out:

        softmax, everywhere:    C = o/2 with o = 1 + max b − min b
        others, on ‖x‖ ≤ R:     C = ‖c‖‖f''‖

    For softmax E_f[(c − E_f c) y²] ≥ −(max c − min c) V and V ≤ ‖h‖²/2. Then

        Aᵀ(∇²_z L + w²)A ≽ (w² − C) σ_min(A)² I.

    Args:
        p: the problem; its own weights are not counted.
        strength: l > 0.
        radius: R; needed for all but softmax.
        constant: C of the papers. The default is from memory.

    Returns:
        A :class:`Bound` on w itself (not squared); +inf for A of rank below d.

    Raises:
        ValueError: p is not a regression; strength or radius is not positive; constant is negative;
            radius is missing where it is needed; an argument is traced.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.softmax(jnp.eye(2), jnp.array([0.5, 0.5]))
        >>> [round(w, 3) for w in convexity_weight(p, 0.5)]
        [4.528, 1.0]

    Source: [D] and [S], the lemmas on positive definite Hessians.
    """
    # 1. Check the arguments.
    _check_problem(p)
    strength = _concrete_positive("strength", strength)
    constant = _require_concrete("constant", check_number("constant", constant, at_least=0))
    radius = None if radius is None else _concrete_positive("radius", radius)
    if radius is None and not _is_softmax(p):
        raise ValueError(
            f"radius must be given for {p.form} {p.activation.name}: only softmax has a bound that "
            "holds everywhere."
        )
    min_singular_value = bound_singular_values(p)[1]
    if min_singular_value == 0:
        return Bound(math.inf, math.inf)
    # 2. Bound the negative part of the Hessian in the logits; softmax needs no ball.
    our_constant = negative_curvature(p, None if _is_softmax(p) else radius)
    # 3. Solve for w. l/σ² is not formed: it may leave the range where its root does not.
    strength_part = math.sqrt(strength) / min_singular_value
    return Bound(
        *(
            math.hypot(math.sqrt(c), strength_part) * (1 + ROUNDING_MARGIN)
            for c in (constant, our_constant)
        )
    )


def _check_problem(p: object) -> None:
    """Refuse everything but a concrete :class:`Problem` of 32 or 64 bits."""
    if not isinstance(p, Problem):
        raise ValueError(
            f"p must be a regression, e.g. of softntk.regression.problem, got {type(p).__name__}."
        )
    if not all(map(is_concrete, jax.tree.leaves(p))):
        raise ValueError(
            "p must not be traced: bounds are numbers, computed outside of jit, vmap and grad."
        )
    # The margin for rounding is that of single precision.
    if jnp.finfo(p.dtype).bits < 32:
        raise ValueError(
            f"p must be float32 or float64, got {p.dtype}: its rounding is not in the bounds. "
            "Convert A."
        )


def _require_concrete(name: str, value: Any) -> Any:
    """Return the value; refuse a tracer."""
    if not is_concrete(value):
        raise ValueError(
            f"{name} must not be traced: bounds are numbers, computed outside of jit, vmap and "
            "grad."
        )
    return value


def _concrete_positive(name: str, value: Any) -> float:
    """Return a positive number, and refuse a tracer."""
    return _require_concrete(name, check_positive(name, value))


def _checked_exponents(exponents: object) -> list[float]:
    """Return three numbers ≥ 0."""
    if not isinstance(exponents, list | tuple) or len(exponents) != 3:
        raise ValueError(
            "exponents must be three numbers, for predict, gradient and Hessian, got "
            f"{exponents!r}."
        )
    names = [f"exponents[{i}]" for i in range(3)]
    return [
        _require_concrete(name, check_number(name, exponent, at_least=0))
        for name, exponent in zip(names, exponents, strict=True)
    ]


def _is_softmax(p: Problem) -> bool:
    """Return whether p is softmax regression."""
    return p.form == "normalized" and _table_name(p) == "exp"


def _table_name(p: Problem) -> str:
    """Return the name of the activation, empty for one that is not that entry of the table."""
    name = p.activation.name
    return name if ACTIVATIONS.get(name) == p.activation else ""


def _ball_and_reach(
    p: Problem, radius: float, centre: Float[Array | np.ndarray, " d"] | None
) -> tuple[Ball, float]:
    """Return the ball with the logits at its centre, and the largest ‖x‖ on it."""
    n, d = p.shape
    if centre is None:
        return Ball(radius, np.zeros(n), 0.0), radius
    x = _require_concrete("centre", as_dtype("centre", centre, p.dtype, (d,)))
    centre_logits = np.asarray(matrices.times(p.A, x), np.float64)
    if not np.isfinite(centre_logits).all():
        raise ValueError(
            f"centre must have logits that fit {p.dtype}, got overflowing ones. Take float64."
        )
    centre_norm = float(host_norm(np.asarray(x, np.float64)))
    # A sum that overflows is the largest number instead.
    max_norm = min(radius + centre_norm, sys.float_info.max)
    return Ball(radius, centre_logits, max_norm - radius), max_norm

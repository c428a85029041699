"""Statements of [S] and [D] on normalized regressions: definitions, derivatives, sizes, Lipschitz
constants, and one of [H].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from softntk import activations, regression
from softntk.theory._ledger import oracles as oracles
from softntk.theory._ledger.statement import (
    Case,
    Instance,
    Statement,
    equal,
)

AXES = {"A": "nd", "b": "n", "x": "d", "y": "d", "w": "n"}
SIZES = ((2, 1), (6, 3))


def draw(
    rng: np.random.Generator, size: tuple[int, int] | None = None, scale: float | None = None
) -> Case:
    """A, b in the simplex, two points of which the second is near the first or not, and weights."""
    n, d = SIZES[rng.integers(len(SIZES))] if size is None else size
    scale = float(rng.choice([0.1, 0.5, 1.5])) if scale is None else scale
    x = rng.normal(size=d)
    return {
        "A": scale * rng.normal(size=(n, d)),
        "b": rng.dirichlet(np.full(n, 0.5)),
        "x": x,
        "y": x + rng.choice([1e-3, 0.1, 1.0]) * rng.normal(size=d),
        "w": rng.uniform(0, 2, size=n),
    }


def one_size(rng: np.random.Generator) -> Case:
    """For what is compiled for every shape."""
    return draw(rng, (6, 3))


def problem(
    case: Case, name: str, weighted: bool = True, form: str = "normalized"
) -> regression.Problem:
    """That of softntk."""
    return regression.problem(case["A"], case["b"], name, form, case["w"] if weighted else 0.0)


def size(case: Case) -> float:
    """R = max(‖A‖, ‖x‖, ‖y‖); the papers ask for R ≥ 4 too, which only loosens bounds."""
    return float(
        max(np.linalg.norm(case["A"], 2), np.linalg.norm(case["x"]), np.linalg.norm(case["y"]))
    )


def reach(case: Case) -> float:
    """The radius of a ball around zero with both points."""
    return float(max(np.linalg.norm(case["x"]), np.linalg.norm(case["y"]))) * (1 + 1e-9)


def at(case: Case) -> jax.Array:
    """X for softntk."""
    return jnp.asarray(case["x"])


def simplex(case: Case) -> bool:
    """Whether b ≥ 0 and ‖b‖₁ ≤ 1, as [D] asks."""
    return bool(case["b"].sum() <= 1 + 1e-9 and (case["b"] >= 0).all())


# --- definitions and derivatives
# ----------------------------------------------------------------------------------

Measure = Callable[[Case, str, oracles.Derivatives], Instance]


def _derivative(
    name: str, measure: Measure, form: str = "normalized"
) -> Callable[[Case], Instance | None]:
    """Equalities are told where α is not lost against its terms."""

    def check(case: Case) -> Instance | None:
        true = oracles.regression(case["A"], case["b"], case["w"], case["x"], name, form)
        return measure(case, name, true) if abs(float(true.alpha)) >= 0.5 else None

    return check


def _slopes(case: Case, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """u, u' and α of softntk's table of activations."""
    u, du, _ = (
        np.asarray(part)
        for part in activations.get(name).jet(jnp.asarray(case["A"] @ case["x"]), 0.0)
    )
    return u, du, float(u.sum())


def _f_gradient(case: Case, name: str, true: oracles.Derivatives) -> Instance:
    u, du, alpha = _slopes(case, name)
    v, f = du / alpha, u / alpha
    return equal((np.diag(v) - np.outer(f, v)) @ case["A"], true.jacobian)


def _rank_two(case: Case, name: str, true: oracles.Derivatives) -> Instance:
    D = np.asarray(problem(case, name, weighted=False).hessian(at(case)).logit_diagonal)
    values = np.linalg.svd(np.asarray(true.logit_hessian) - np.diag(D), compute_uv=False)
    return equal(values[2], 0.0)._replace(value=float(values[2] / max(values[0], np.abs(D).max())))


def _gauss_newton(case: Case, name: str, true: oracles.Derivatives) -> Instance:
    J = np.asarray(true.jacobian)
    return equal(problem(case, name, weighted=False).gauss_newton(at(case)).as_matrix(), J.T @ J)


_MEASURES: tuple[tuple[str, str, Measure], ...] = (
    (
        "definition: loss",
        "L = ½‖f − b‖² + ½‖diag(w)Ax‖², f = u/⟨u, 1⟩",
        lambda c, u, t: equal(problem(c, u)(at(c)), t.loss),
    ),
    (
        "definition: f",
        "f = α⁻¹u, α = ⟨u, 1⟩",
        lambda c, u, t: equal(problem(c, u).predict(at(c)), t.f),
    ),
    (
        "derivative: du/dx",
        "du/dx_i = u'(Ax)∘A_{∗i}",
        lambda c, u, t: equal(_slopes(c, u)[1][:, None] * c["A"], t.jacobian_u),
    ),
    (
        "derivative: dα/dx",
        "dα/dx_i = ⟨u'(Ax), A_{∗i}⟩",
        lambda c, u, t: equal(_slopes(c, u)[1] @ c["A"], t.alpha_gradient),
    ),
    ("derivative: df/dx", "df/dx_i = dc/dx_i = v∘A_{∗i} − f⟨v, A_{∗i}⟩, v = u'/α", _f_gradient),
    (
        "derivative: dL/dx",
        "∇L = Aᵀ(v∘(c − ⟨c, f⟩) + w²∘Ax)",
        lambda c, u, t: equal(problem(c, u).gradient(at(c)), t.gradient),
    ),
    (
        "Hessian",
        "∇²L = Aᵀ(B + diag(w²))A",
        lambda c, u, t: equal(problem(c, u).hessian(at(c)).as_matrix(), t.hessian),
    ),
    (
        "Hessian: B = diagonal + rank two",
        "the third singular value of B − diag(D) vanishes",
        _rank_two,
    ),
    ("Hessian: part of Gauss and Newton", "(df/dx)ᵀ(df/dx), without u''", _gauss_newton),
    (
        "Hessian: weights",
        "∇²½‖diag(w)Ax‖² = Aᵀdiag(w²)A",
        lambda c, u, t: equal(c["A"].T @ (c["w"][:, None] ** 2 * c["A"]), t.penalty),
    ),
)
_PRINTED = ("definition: f", "Hessian: B = diagonal + rank two")


def _hyperbolic(case: Case, name: str, true: oracles.Derivatives) -> Instance:
    p = problem(case, name, form="rescaled")
    found = [
        np.asarray(p.gradient(at(case))).ravel(),
        np.asarray(p.hessian(at(case)).as_matrix()).ravel(),
    ]
    return equal(
        np.concatenate(found), np.concatenate([np.ravel(true.gradient), np.ravel(true.hessian)])
    )


# --- sizes
# --------------------------------------------------------------------------------------------------------


def _norm_of_u(name: str, scale: float) -> Callable[[Case], Instance]:
    def check(case: Case) -> Instance:
        bound = scale * math.sqrt(len(case["A"])) * math.exp(size(case) ** 2)
        return Instance(
            bound, float(np.linalg.norm(oracles.activation(name, case["A"] @ case["x"])))
        )

    return check


def _norm_of_f(name: str) -> Callable[[Case], Instance | None]:
    def check(case: Case) -> Instance | None:
        value = float(np.linalg.norm(oracles.prediction(name, case["A"] @ case["x"])))
        return Instance(1.0, value) if math.isfinite(value) else None

    return check


def _alpha(name: str, which: str) -> Callable[[Case], Instance]:
    """β ≤ α, for the bound of [D], which is for exp, or ours, which knows u."""

    def check(case: Case) -> Instance:
        p = regression.problem(
            case["A"], np.zeros(len(case["A"])), name if which == "ours" else "exp"
        )
        beta = regression.normaliser(p, float(np.linalg.norm(case["x"])) * (1 + 1e-9))
        return Instance(
            float(oracles.activation(name, case["A"] @ case["x"]).sum()), getattr(beta, which)
        )

    return check


def _positive(case: Case) -> Instance:
    z = case["A"] @ case["x"]
    return Instance(float(np.exp(z).sum()), -float(z.sum()))


# --- Lipschitz
# ----------------------------------------------------------------------------------------------------


def _step(case: Case) -> float:
    return float(np.linalg.norm(case["x"] - case["y"]))


def _ends(name: str, case: Case) -> tuple[np.ndarray, np.ndarray]:
    return tuple(oracles.activation(name, case["A"] @ case[end]) for end in "xy")  # pyright: ignore[reportReturnType]


def _u_moves(name: str) -> Callable[[Case], Instance]:
    def check(case: Case) -> Instance:
        R, (first, second) = size(case), _ends(name, case)
        constant = 2 * math.sqrt(len(case["A"])) * R * math.exp(R**2) + (
            R if name == "res_exp" else 0
        )
        return Instance(constant * _step(case), float(np.linalg.norm(first - second)))

    return check


def _alpha_moves(name: str) -> Callable[[Case], Instance]:
    def check(case: Case) -> Instance:
        first, second = _ends(name, case)
        return Instance(
            math.sqrt(len(first)) * float(np.linalg.norm(first - second)),
            abs(float(first.sum() - second.sum())),
        )

    return check


def _inverse_moves(name: str) -> Callable[[Case], Instance]:
    """With the β that [D] has for exp, and [S] as remembered for u = e^z + z."""

    def check(case: Case) -> Instance:
        alphas = [float(u.sum()) for u in _ends(name, case)]
        beta = regression.normaliser(
            regression.problem(case["A"], np.zeros(len(case["A"])), "exp"), reach(case)
        ).paper
        return Instance(beta**-2 * abs(alphas[0] - alphas[1]), abs(1 / alphas[0] - 1 / alphas[1]))

    return check


def _moves(name: str, what: str, which: str) -> Callable[[Case], Instance | None]:
    """Predictions, gradients or Hessians at two points of the ball, against a bound of
    softntk.regression.
    """

    def measured(case: Case, x: np.ndarray) -> np.ndarray:
        A, b, z = case["A"], case["b"], case["A"] @ x
        if what == "predict":
            return oracles.prediction(name, z)
        if what == "gradient":
            return A.T @ oracles.logit_gradient(name, z, b)
        return A.T @ oracles.logit_hessian(name, z, b) @ A

    def check(case: Case) -> Instance | None:
        constant = getattr(
            getattr(regression.lipschitz(problem(case, name, weighted=False), reach(case)), what),
            which,
        )
        changed = measured(case, case["x"]) - measured(case, case["y"])
        value = float(np.linalg.norm(changed, 2) if changed.ndim == 2 else np.linalg.norm(changed))
        return Instance(constant * _step(case), value) if math.isfinite(constant) else None

    return check


def _centred(rng: np.random.Generator) -> Case:
    """Small logits: where u = e^z + z has bounds at all."""
    return draw(rng, scale=0.1)


STATEMENTS = (
    *(
        Statement(
            f"[S] {title}",
            text,
            one_size,
            _derivative("res_exp", measure),
            AXES,
            True,
            20,
            "printed" if title in _PRINTED else "as remembered",
        )
        for title, text, measure in _MEASURES
    ),
    *(
        Statement(f"[D] {title}", text, one_size, _derivative("exp", measure), AXES, True, 20)
        for title, text, measure in _MEASURES
        if title
        in ("definition: loss", "derivative: dL/dx", "Hessian", "Hessian: B = diagonal + rank two")
    ),
    Statement(
        "[H] gradient and Hessian",
        "of ½‖cosh(Ax) − αb‖² + ½‖diag(w)Ax‖²",
        one_size,
        _derivative("cosh", _hyperbolic, "rescaled"),
        AXES,
        True,
        20,
    ),
    Statement(
        "[D] lemma: ‖exp(Ax)‖",
        "‖exp(Ax)‖ ≤ √n e^{R²}, ‖A‖, ‖x‖ ≤ R",
        draw,
        _norm_of_u("exp", 1.0),
        AXES,
    ),
    Statement(
        "[S] lemma: ‖u(x)‖", "‖exp(Ax) + Ax‖ ≤ 2√n e^{R²}", draw, _norm_of_u("res_exp", 2.0), AXES
    ),
    Statement("[D] lemma: ‖f‖ ≤ 1", "‖f‖ ≤ ‖f‖₁ = 1 for u = e^z", draw, _norm_of_f("exp"), AXES),
    Statement(
        "[S] lemma: ‖f‖ ≤ 1", "‖f‖ ≤ ‖f‖₁ = 1 for u = e^z + z", draw, _norm_of_f("res_exp"), AXES
    ),
    Statement(
        "[D] lemma: α ≥ β", "⟨exp(Ax), 1⟩ ≥ n e^{−‖A‖‖x‖}", draw, _alpha("exp", "paper"), AXES
    ),
    Statement(
        "[ours] α from below, exp",
        "⟨exp(Ax), 1⟩ ≥ our β (regression.normaliser)",
        draw,
        _alpha("exp", "ours"),
        AXES,
        source="ours",
    ),
    Statement(
        "[S] lemma: α ≥ β",
        "⟨exp(Ax) + Ax, 1⟩ ≥ n e^{−‖A‖‖x‖}, the β of exp",
        draw,
        _alpha("res_exp", "paper"),
        AXES,
    ),
    Statement(
        "[S] lemma: α > 0",
        "⟨exp(Ax) + Ax, 1⟩ ≥ 0 (told as −⟨Ax, 1⟩ ≤ ⟨exp(Ax), 1⟩), so that f is defined",
        draw,
        _positive,
        AXES,
    ),
    Statement(
        "[ours] α from below, res_exp",
        "⟨exp(Ax) + Ax, 1⟩ ≥ our β, which may be zero",
        _centred,
        _alpha("res_exp", "ours"),
        AXES,
        source="ours",
    ),
    Statement(
        "[D] Lipschitz: u", "‖exp(Ax) − exp(Ay)‖ ≤ 2√n R e^{R²}‖x − y‖", draw, _u_moves("exp"), AXES
    ),
    Statement(
        "[S] Lipschitz: u",
        "‖u(x) − u(y)‖ ≤ (2√n R e^{R²} + R)‖x − y‖",
        draw,
        _u_moves("res_exp"),
        AXES,
        source="ours",
    ),
    Statement(
        "[D] Lipschitz: α",
        "|α(x) − α(y)| ≤ √n ‖exp(Ax) − exp(Ay)‖",
        draw,
        _alpha_moves("exp"),
        AXES,
    ),
    Statement(
        "[S] Lipschitz: α", "|α(x) − α(y)| ≤ √n ‖u(x) − u(y)‖", draw, _alpha_moves("res_exp"), AXES
    ),
    Statement(
        "[D] Lipschitz: 1/α",
        "|1/α(x) − 1/α(y)| ≤ β⁻²|α(x) − α(y)|",
        draw,
        _inverse_moves("exp"),
        AXES,
    ),
    Statement(
        "[S] Lipschitz: 1/α",
        "|1/α(x) − 1/α(y)| ≤ β⁻²|α(x) − α(y)| for u = e^z + z, with the β of exp",
        draw,
        _inverse_moves("res_exp"),
        AXES,
    ),
    *(
        Statement(
            f"[{paper if which == 'paper' else 'ours'}] Lipschitz: {word}"
            + (f", {name}" if which == "ours" else ""),
            f"‖Δ{word}‖ ≤ {f'β⁻²n^{{3/2}}e^{{{q}R²}}, R ≥ 4, times' if which == 'paper' else 'our constant times'} ‖x − y‖"
            + (" for u = e^z + z, where it is finite" if name == "res_exp" else " for u = e^z"),
            sample,
            _moves(name, what, which),
            AXES,
            count=count,
            source="as remembered" if which == "paper" else "ours",
        )
        for paper, name, sample, count in (("D", "exp", draw, 60), ("S", "res_exp", _centred, 30))
        for what, word, q in (("predict", "f", 2), ("gradient", "∇L", 8), ("hessian", "∇²L", 20))
        for which in ("paper", "ours")
    ),
)

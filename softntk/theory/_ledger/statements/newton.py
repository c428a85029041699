"""Statements of [S] and [D] about convexity and the approximate Newton method, and the theorem of
Kantorovich.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from softntk import regression
from softntk.curvature import leverage, sketch
from softntk.theory._certificates.minimum import certify_minimum
from softntk.theory._ledger import oracles as oracles
from softntk.theory._ledger.statement import (
    TOLERANCE,
    Case,
    Instance,
    Statement,
    equal,
)
from softntk.theory._ledger.statements.regression import (
    AXES,
    draw,
    problem,
    simplex,
)

_EPSILON = 0.5
_FAILURE = 0.1

# --- convexity
# ----------------------------------------------------------------------------------------------------


def _parts(name: str, case: Case) -> dict[str, np.ndarray]:
    """B in the order in which [D] bounds it, from the quotient rule: v = u'/α, s = c − ⟨c, f⟩."""
    z, b = case["A"] @ case["x"], case["b"]
    u, alpha = oracles.activation(name, z), float(oracles.activation(name, z).sum())
    one, f = (1.0 if name == "res_exp" else 0.0), u / alpha
    v, bend, c = (np.exp(z) + one) / alpha, np.exp(z) / alpha, f - b
    s = c - c @ f
    both = np.outer(v, v * (f + s))
    return {
        "B₁": f @ f * np.outer(v, v),
        "B₂": -(both + both.T),
        "B₃": np.diag(v * v),
        "B₄": np.diag(bend * s),
    }


def _sum_of_parts(case: Case) -> Instance | None:
    z = case["A"] @ case["x"]
    if abs(oracles.activation("res_exp", z).sum()) < 0.5:
        return None
    return equal(
        sum(_parts("res_exp", case).values()), oracles.logit_hessian("res_exp", z, case["b"])
    )


def _part(name: str, which: str, bound: float) -> Callable[[Case], Instance | None]:
    def check(case: Case) -> Instance | None:
        value = float(np.linalg.norm(_parts(name, case)[which], 2)) if simplex(case) else math.nan
        return Instance(bound, value) if math.isfinite(value) else None

    return check


def _whole(name: str, constant: float) -> Callable[[Case], Instance | None]:
    def check(case: Case) -> Instance | None:
        if not simplex(case):
            return None
        B = oracles.logit_hessian(name, case["A"] @ case["x"], case["b"])
        return Instance(constant, float(np.linalg.norm(B, 2))) if np.isfinite(B).all() else None

    return check


def _unweighted(name: str) -> Callable[[Case], Instance | None]:
    """−λ_min(AᵀBA) against the terms that B is a sum of: they may cancel, all of them for one
    sample.
    """

    def check(case: Case) -> Instance | None:
        A = case["A"]
        H = A.T @ oracles.logit_hessian(name, A @ case["x"], case["b"]) @ A
        if not (simplex(case) and np.isfinite(H).all() and np.any(A)):
            return None
        terms = sum(
            float(np.linalg.norm(A.T @ part @ A, 2)) for part in _parts(name, case).values()
        )
        return Instance(TOLERANCE, max(-float(np.linalg.eigvalsh(H)[0]), 0.0) / terms)

    return check


def _convex(name: str, which: str) -> Callable[[Case], Instance | None]:
    """L ≤ λ_min(∇²L) with the weights that the bound asks for."""

    def check(case: Case) -> Instance | None:
        A, strength = case["A"], 0.1
        p = problem(case, name, weighted=False)
        radius = None if name == "exp" else float(np.linalg.norm(case["x"])) * (1 + 1e-9)
        w = getattr(regression.convexity_weight(p, strength, radius), which)
        if not (math.isfinite(w) and simplex(case)):
            return None
        H = (
            A.T
            @ (oracles.logit_hessian(name, A @ case["x"], case["b"]) + w**2 * np.eye(len(A)))
            @ A
        )
        return Instance(float(np.linalg.eigvalsh(H)[0]), strength) if np.isfinite(H).all() else None

    return check


def _tall(rng: np.random.Generator) -> Case:
    return draw(rng, (6, 3))


def _near_pole(rng: np.random.Generator) -> Case:
    """Where α = ⟨exp(Ax) + Ax, 1⟩ is small, if it has a zero along x."""
    case, low, high = draw(rng, (3, 2), 1.0), 0.0, 5.0
    alpha = lambda t: float(oracles.activation("res_exp", t * case["A"] @ case["x"]).sum())
    wanted = 10 ** rng.uniform(-2, 0)
    for _ in range(40 if alpha(high) < wanted else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if alpha(middle) < wanted else (middle, high)
    return {**case, "x": (high if low > 0 else 1.0) * case["x"]}


def _centred(rng: np.random.Generator) -> Case:
    return draw(rng, (6, 3), 0.1)


# --- sampling
# -----------------------------------------------------------------------------------------------------


def _rows(rng: np.random.Generator) -> Case:
    """Rows of very different lengths, one of them alone in its direction."""
    A = rng.normal(size=(300, 3)) * np.exp(rng.normal(size=(300, 1)))
    A[0], A[1:, 2] = [0.0, 0.0, 3.0], 0.0
    A[1:, 2] = rng.choice([0.0, 0.01]) * rng.normal(size=299)
    return {"A": A, "D": rng.uniform(0.1, 2, size=300), "seed": int(rng.integers(2**31))}


def _leverage(case: Case) -> Instance:
    A = np.sqrt(case["D"])[:, None] * case["A"]
    return equal(leverage.scores(case["A"], case["D"]), np.diag(A @ np.linalg.pinv(A)))


def _rank(case: Case) -> Instance:
    return equal(
        float(jnp.sum(leverage.scores(case["A"], case["D"]))),
        float(np.linalg.matrix_rank(case["A"])),
    )


def _distortion(approximate: np.ndarray, exact: np.ndarray) -> float:
    half = np.linalg.inv(np.linalg.cholesky(exact))
    return float(np.abs(np.linalg.eigvalsh(half @ approximate @ half.T) - 1).max())


@partial(jax.jit, static_argnames="size")
def _grams(key: jax.Array, pi: jax.Array, A: jax.Array, D: jax.Array, size: int) -> jax.Array:
    return jax.vmap(lambda key: sketch.draw(key, pi, size).gram(A, D))(jax.random.split(key, 20))


def _sampled(case: Case) -> Instance:
    """S = 3d log(2d/δ)/ε², the matrix Chernoff bound; ε against the (1 − δ)-quantile of 20 samples."""
    A, D = jnp.asarray(case["A"]), jnp.asarray(case["D"])
    d, exact = A.shape[1], case["A"].T @ (case["D"][:, None] * case["A"])
    size = math.ceil(3 * d * math.log(2 * d / _FAILURE) / _EPSILON**2)
    grams = np.asarray(
        _grams(jax.random.key(case["seed"]), sketch.probabilities("leverage", A, D), A, D, size)
    )
    return Instance(
        _EPSILON, float(np.quantile([_distortion(gram, exact) for gram in grams], 1 - _FAILURE))
    )


# --- Newton
# -------------------------------------------------------------------------------------------------------


def _strong(rng: np.random.Generator, size: tuple[int, int] = (6, 3)) -> Case:
    """A strongly convex softmax regression, where to start, and the error of its Hessians, εE with
    ‖E‖ = 1.
    """
    case, turn = draw(rng, size, 0.5), np.linalg.qr(rng.normal(size=(size[1], size[1])))[0]
    return {
        **case,
        "w": np.full(size[0], 2.0),
        "start": rng.normal(size=size[1]),
        "distance": float(10 ** rng.uniform(-3, 0)),
        "epsilon": float(rng.choice([0.0, 0.05, 0.2])),
        "E": turn @ np.diag(rng.choice([-1.0, 1.0], size=size[1])) @ turn.T,
    }


def _long(rng: np.random.Generator) -> Case:
    """The same with columns of different lengths: condition numbers up to 1e4."""
    case = _strong(rng, (3, 2))
    return {
        **case,
        "A": case["A"] * 10 ** rng.uniform(-2, 0, size=2),
        "distance": float(10 ** rng.uniform(-6, -2)),
    }


def _exact(rng: np.random.Generator) -> Case:
    return {**_long(rng), "epsilon": 0.0}


def _hessian(case: Case, x: np.ndarray) -> np.ndarray:
    A = case["A"]
    return A.T @ (oracles.logit_hessian("exp", A @ x, case["b"]) + np.diag(case["w"] ** 2)) @ A


def _gradient(case: Case, x: np.ndarray) -> np.ndarray:
    A = case["A"]
    return A.T @ (oracles.logit_gradient("exp", A @ x, case["b"]) + case["w"] ** 2 * (A @ x))


def _minimiser(case: Case) -> np.ndarray:
    x = np.zeros(case["A"].shape[1])
    for _ in range(50):
        x = x - np.linalg.solve(_hessian(case, x), _gradient(case, x))
    return x


def _approximate_step(case: Case, x: np.ndarray) -> np.ndarray:
    """Newton's with H̃ = L(I + εE)Lᵀ for H = LLᵀ, so that (1 − ε)H ≼ H̃ ≼ (1 + ε)H."""
    half = np.linalg.cholesky(_hessian(case, x))
    H = half @ (np.eye(len(x)) + case["epsilon"] * case["E"]) @ half.T
    return x - np.linalg.solve(H, _gradient(case, x))


def _from(case: Case, distance: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    """x*, a start at that distance, l and M."""
    best = _minimiser(case)
    x = best + distance * case["start"] / np.linalg.norm(case["start"])
    strength = float(np.linalg.eigvalsh(_hessian(case, best))[0])
    reach = float(max(np.linalg.norm(best), np.linalg.norm(x)))
    return best, x, strength, regression.lipschitz(problem(case, "exp"), reach).hessian.ours


def _contraction(euclidean: bool) -> Callable[[Case], Instance | None]:
    """In the norm of the papers, or in that of ∇²L(x*), in which (1 ± ε) is told."""

    def check(case: Case) -> Instance | None:
        best, x, strength, M = _from(case, case["distance"])
        bent = case["distance"] * M
        if not bent < strength or np.linalg.norm(case["E"], 2) > 1 + 1e-9:
            return None
        after = _approximate_step(case, x)
        half = np.eye(len(x)) if euclidean else np.linalg.cholesky(_hessian(case, best)).T
        factor = 2 * (case["epsilon"] + bent / (strength - bent))
        return Instance(
            factor * float(np.linalg.norm(half @ (x - best))),
            float(np.linalg.norm(half @ (after - best))),
        )

    return check


def _iterations(case: Case) -> Instance | None:
    """From where 2(ε + rM/(l − rM)) ≤ ½: ⌈log₂(r₀/ε)⌉ steps to ε = r₀/1000."""
    _, _, strength, M = _from(case, 1.0)
    room = 0.25 - case["epsilon"]
    distance = room / (1 + room) * strength / M
    best, x, _, _ = _from(case, min(distance, 1.0))
    distance = float(np.linalg.norm(x - best))
    for _ in range(math.ceil(math.log2(1000))):
        x = _approximate_step(case, x)
    return Instance(distance / 1000, float(np.linalg.norm(x - best)))


def _kantorovich(case: Case) -> Instance | None:
    best, x, _, _ = _from(case, 0.1 * case["distance"])
    found = certify_minimum(problem(case, "exp"), x)
    return Instance(found.error, float(np.linalg.norm(x - best))) if found.holds else None


_STARTS = {**AXES, "start": "d", "E": "dd"}
_SAMPLES = {"A": "nd", "D": "n"}

STATEMENTS = (
    Statement(
        "[S] Hessian: B = B₁ + B₂ + B₃ + B₄",
        "f·f vvᵀ − v(v∘(f + s))ᵀ − (v∘(f + s))vᵀ + diag(v²) + diag(u''/α ∘ s)",
        _tall,
        _sum_of_parts,
        AXES,
        True,
    ),
    *(
        Statement(
            f"[D] size of {which}",
            f"‖{which}‖ ≤ {bound:g} for u = e^z, b ≥ 0, ‖b‖₁ ≤ 1",
            draw,
            _part("exp", which, bound),
            AXES,
            source="ours",
        )
        for which, bound in (("B₁", 1.0), ("B₂", 6.0), ("B₃", 1.0), ("B₄", 2.0))
    ),
    Statement(
        "[D] lemma: −20 I ≼ B ≼ 20 I",
        "for u = e^z, b ≥ 0, ‖b‖₁ ≤ 1",
        draw,
        _whole("exp", 20.0),
        AXES,
    ),
    Statement(
        "[S] lemma: −20 I ≼ B ≼ 20 I",
        "for u = e^z + z, b ≥ 0, ‖b‖₁ ≤ 1",
        draw,
        _whole("res_exp", 20.0),
        AXES,
    ),
    Statement(
        "[D] Hessian is PSD without weights",
        "AᵀBA ≽ 0, w = 0",
        draw,
        _unweighted("exp"),
        AXES,
        True,
    ),
    Statement(
        "[S] Hessian is PSD without weights",
        "AᵀBA ≽ 0, w = 0, as the abstract reads",
        draw,
        _unweighted("res_exp"),
        AXES,
        True,
        source="printed",
    ),
    Statement(
        "[D] lemma: convexity",
        "∇²L ≽ l I for w² ≥ 20 + l/σ_min(A)²",
        _tall,
        _convex("exp", "paper"),
        AXES,
    ),
    Statement(
        "[ours] convexity, exp",
        "∇²L ≽ l I for w² ≥ C + l/σ_min(A)², our C (regression.convexity_weight)",
        _tall,
        _convex("exp", "ours"),
        AXES,
        source="ours",
    ),
    Statement(
        "[S] lemma: convexity",
        "∇²L ≽ l I for w² ≥ 20 + l/σ_min(A)², u = e^z + z",
        _near_pole,
        _convex("res_exp", "paper"),
        AXES,
    ),
    Statement(
        "[ours] convexity, res_exp",
        "∇²L ≽ l I for w² ≥ C + l/σ_min(A)², u = e^z + z, our C",
        _centred,
        _convex("res_exp", "ours"),
        AXES,
        count=30,
        source="ours",
    ),
    Statement(
        "[D] leverage scores",
        "τ_i = (A(AᵀA)⁻¹Aᵀ)_ii of diag(√D)A",
        _rows,
        _leverage,
        _SAMPLES,
        True,
        10,
    ),
    Statement("[D] leverage scores: sum", "Σ τ_i = d", _rows, _rank, _SAMPLES, True, 10),
    Statement(
        "[S] lemma: sparsifier",
        "(1 − ε)AᵀDA ≼ Ã ≼ (1 + ε)AᵀDA with probability 1 − δ, s = 3d log(2d/δ)/ε² rows by leverage",
        _rows,
        _sampled,
        _SAMPLES,
        count=5,
    ),
    Statement(
        "[S] lemma: one Newton step",
        "r₊ ≤ 2rM/(l − rM) r, r = ‖x − x*‖, u = e^z, our M",
        _exact,
        _contraction(True),
        _STARTS,
        count=40,
    ),
    Statement(
        "[S] lemma: one approximate Newton step",
        "r₊ ≤ 2(ε + rM/(l − rM)) r, r = ‖x − x*‖, (1 − ε)H ≼ H̃ ≼ (1 + ε)H",
        _long,
        _contraction(True),
        _STARTS,
        count=40,
    ),
    Statement(
        "[ours] one approximate Newton step",
        "r₊ ≤ 2(ε + ‖x − x*‖M/(l − ‖x − x*‖M)) r, r = ‖x − x*‖ in the norm of ∇²L(x*)",
        _long,
        _contraction(False),
        _STARTS,
        count=40,
        source="ours",
    ),
    Statement(
        "[S] theorem: iterations",
        "log₂(r₀/ε) steps to ε where the factor is at most ½, u = e^z, our M",
        _strong,
        _iterations,
        _STARTS,
        count=10,
    ),
    Statement(
        "[ours] Kantorovich",
        "‖x* − x₀‖ ≤ the error of theory.certify_minimum",
        _strong,
        _kantorovich,
        _STARTS,
        count=10,
        source="ours",
    ),
)

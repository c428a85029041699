"""Statements of [G] about the network before it is trained: its definitions, its derivatives, its
weights, its kernel.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from softntk import networks, ntk
from softntk.theory import bounds
from softntk.theory._ledger import oracles as oracles
from softntk.theory._ledger.statement import (
    TOLERANCE,
    Case,
    Instance,
    Statement,
    equal,
)

FAILURE = 0.1
"""δ."""

TWICE = bounds.Constants(concentration=2.0)
"""C = 2 in B, which one neuron's logits need: P(|N(0, 1)| > C√log(nk/δ)) is small against δ/nk for
C > √2 only.
"""

_SHAPE = (4, 6, 2, 128)
_AXES = {"x": "nd", "W": "dm", "a": "mk", "Y": "nk"}


def points(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """In the unit ball, near its surface, [n, d]."""
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * rng.uniform(0.5, 1, size=(n, 1))


def draw(
    rng: np.random.Generator, shape: tuple[int, int, int, int] = _SHAPE, sigma: float | None = None
) -> Case:
    """Points, weights and readouts in pairs, and targets in [−1, 1]."""
    n, d, k, m = shape
    sigma = float(rng.choice([0.1, 0.3, 1.0])) if sigma is None else sigma
    W, a = sigma * rng.normal(size=(d, m // 2)), rng.choice([-1.0, 1.0], size=(m // 2, k))
    return {
        "x": points(rng, n, d),
        "W": np.concatenate([W, W], axis=1),
        "a": np.concatenate([a, -a]),
        "Y": rng.uniform(-1, 1, size=(n, k)),
        "sigma": sigma,
    }


def moved(rng: np.random.Generator) -> Case:
    """The same with other weights than at the start: pairs differ."""
    case = draw(rng)
    return {**case, "W": case["W"] + 0.3 * rng.normal(size=case["W"].shape)}


def network(
    case: Case, parameterization: str = "ntk", sigma: float = 1.0
) -> tuple[networks.Network, networks.Parameters]:
    """That of softntk; sigma matters to its infinite kernel alone."""
    m, k = case["a"].shape
    net = networks.two_layer(
        "softmax", width=m, out_dim=k, sigma=sigma, parameterization=parameterization
    )
    return net, networks.Parameters(hidden=jnp.asarray(case["W"]), readout=jnp.asarray(case["a"]))


def growth(case: Case, constants: bounds.Constants = TWICE) -> float:
    """B."""
    n, k = case["Y"].shape
    return bounds.growth(n, k, case["sigma"], FAILURE, constants)


def calm(case: Case, constants: bounds.Constants = TWICE) -> bool:
    """Whether B bounds all logits: the event that the lemmas live on."""
    return bool(np.abs(case["x"] @ case["W"]).max() <= growth(case, constants))


# --- definitions
# --------------------------------------------------------------------------------------------------


def _network(case: Case) -> Instance:
    net, params = network(case, "paper")
    m = len(case["a"])
    powers = np.exp(case["x"] @ case["W"])
    return equal(
        net.apply_fn(params, case["x"]), m * (powers / powers.sum(axis=1)[:, None]) @ case["a"]
    )


def _double(case: Case) -> Instance:
    net, params = network(case, "paper")
    return Instance(
        TOLERANCE, float(np.abs(net.apply_fn(params, case["x"])).max()) / len(case["a"])
    )


def _softmax_slopes(case: Case) -> Instance:
    f = oracles.softmax(case["z"][None])[0]
    return equal(np.diag(f) - np.outer(f, f), oracles.softmax_jacobian(case["z"]))


def _row_gradients(case: Case) -> Instance:
    net, params = network(case)
    rows = networks.row_factors(net.architecture, params, jnp.asarray(case["x"]))
    g = np.asarray(rows.slopes)[:, None] * (case["a"].T[None] - np.asarray(rows.means)[:, :, None])
    return equal(
        np.einsum("id,ilr->ildr", case["x"], g),
        oracles.output_jacobian(case["W"], case["a"], case["x"]),
    )


@jax.jit
def _pulled_back(case: Case) -> jax.Array:
    net, params = network(case)
    return jax.grad(lambda p: 0.5 * jnp.sum((net.apply_fn(p, case["x"]) - case["Y"]) ** 2))(
        params
    ).hidden


def _loss_gradient(case: Case) -> Instance:
    residual = oracles.forward(case["W"], case["a"], case["x"]) - case["Y"]
    return equal(_pulled_back(case), oracles.gradient(case["W"], case["a"], case["x"], residual))


def _kernel(case: Case) -> Instance:
    J = np.asarray(oracles.output_jacobian(case["W"], case["a"], case["x"]))
    net, params = network(case)
    return equal(
        ntk.empirical(net, params, case["x"]), np.einsum("ildr,jqdr->ijlq", J, J, optimize=True)
    )


def _definite(case: Case) -> Instance:
    n, k = case["Y"].shape
    net, params = network(case)
    H = (
        np.asarray(ntk.empirical(net, params, case["x"]))
        .transpose(0, 2, 1, 3)
        .reshape(n * k, n * k)
    )
    values = np.linalg.eigvalsh(H)
    return Instance(TOLERANCE, float(max(np.abs(H - H.T).max(), -values[0]) / values[-1]))


def _limit(case: Case) -> Instance:
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = weights / weights.sum()
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    x, sigma, dots = case["x"], case["sigma"], case["x"] @ case["x"].T
    mean = lambda q: np.sum(weights * np.exp(np.sqrt(q) * nodes))
    H = np.zeros_like(dots)
    for i in range(len(x)):
        for j in range(len(x)):
            q = sigma**2 * dots[[i, i, j], [i, j, j]]
            other = q[1] / np.sqrt(q[0]) * first + np.sqrt(max(q[2] - q[1] ** 2 / q[0], 0)) * second
            H[i, j] = (
                np.sum(np.outer(weights, weights) * np.exp(np.sqrt(q[0]) * first + other))
                / mean(q[0])
                / mean(q[2])
            )
    return equal(network(case, sigma=sigma)[0].kernel_fn(x, None, "ntk"), dots * H)


# --- the weights at the start
# -------------------------------------------------------------------------------------


def _chances(neurons: int) -> Any:
    def sample(rng: np.random.Generator) -> Case:
        n, k, d = (int(rng.choice(sizes)) for sizes in ((1, 4, 16), (1, 3), (2, 4)))
        m = 1 if neurons == 1 else int(rng.choice([16, 128, 1024]))
        return {
            "x": points(rng, n, d),
            "k": k,
            "sigma": float(rng.uniform(0.5, 2)),
            "m": m,
            "seed": int(rng.integers(2**31)),
        }

    return sample


def _largest_logit(constants: bounds.Constants) -> Any:
    def check(case: Case) -> Instance:
        x, draws = case["x"], 4000 if case["m"] == 1 else 300
        W = case["sigma"] * np.random.default_rng(case["seed"]).normal(
            size=(x.shape[1], draws * case["m"])
        )
        largest = np.abs(x @ W).max(axis=0).reshape(draws, case["m"]).max(axis=1)
        return Instance(
            bounds.growth(len(x), case["k"], case["sigma"], FAILURE, constants),
            float(np.quantile(largest, 1 - FAILURE)),
        )

    return check


def _powers(case: Case) -> Instance | None:
    powers = np.exp(case["x"] @ case["W"])
    return (
        Instance(math.exp(growth(case)), float(max(powers.max(), 1 / powers.min())))
        if calm(case)
        else None
    )


def _normaliser(case: Case) -> Instance | None:
    alpha = np.exp(case["x"] @ case["W"]).sum(axis=1).min()
    return Instance(float(alpha), len(case["a"]) * math.exp(-growth(case))) if calm(case) else None


def _shares(case: Case) -> Instance | None:
    f = oracles.softmax(case["x"] @ case["W"])
    return (
        Instance(math.exp(2 * growth(case)) / len(case["a"]), float(f.max()))
        if calm(case)
        else None
    )


def _norm_of_shares(case: Case) -> Instance | None:
    f = oracles.softmax(case["x"] @ case["W"])
    bound = math.exp(2 * growth(case)) / math.sqrt(len(case["a"]))
    return Instance(bound, float(np.linalg.norm(f, axis=1).max())) if calm(case) else None


def _exponentials(case: Case) -> Instance | None:
    powers = np.exp(case["x"] @ case["W"])
    bound = math.sqrt(len(case["a"])) * math.exp(growth(case))
    return Instance(bound, float(np.linalg.norm(powers, axis=1).max())) if calm(case) else None


# --- concentration
# ------------------------------------------------------------------------------------------------


def _few(rng: np.random.Generator) -> Case:
    n, k = int(rng.integers(1, 5)), int(rng.integers(1, 3))
    sigma = float(rng.choice([0.1, 0.25, 0.5]))
    return {
        "x": points(rng, n, 6),
        "k": k,
        "sigma": sigma,
        "m": int(rng.choice([256, 2048])),
        "seed": int(rng.integers(2**31)),
    }


def _concentration(case: Case) -> Instance:
    """At the width m the bound of the width that is asked for, times the root of their ratio."""
    x, k, sigma, m = (case[name] for name in ("x", "k", "sigma", "m"))
    rng, H = np.random.default_rng(case["seed"]), oracles.limit(x, sigma, k)
    smallest = float(np.linalg.eigvalsh(H)[0])
    wanted = bounds.required_width("softmax", len(x), smallest, k=k, sigma=sigma, failure=FAILURE)
    errors = []
    for _ in range(20):
        drawn = draw(rng, (len(x), x.shape[1], k, m), sigma)
        errors.append(np.linalg.norm(oracles.kernel(drawn["W"], drawn["a"], x) - H))
    return Instance(smallest / 4 * math.sqrt(wanted / m), float(np.quantile(errors, 1 - FAILURE)))


def wide(rng: np.random.Generator) -> Case:
    """Wide enough for H(0) to be near H*, mostly."""
    return draw(rng, (3, 8, 2, 8192), 0.2)


def smallest(case: Case) -> float:
    """λ."""
    return float(np.linalg.eigvalsh(oracles.limit(case["x"], case["sigma"]))[0])


def near(case: Case) -> bool:
    """Whether ‖H(0) − H*‖_F ≤ λ/4."""
    H = oracles.limit(case["x"], case["sigma"], case["a"].shape[1])
    return bool(
        np.linalg.norm(oracles.kernel(case["W"], case["a"], case["x"]) - H) <= smallest(case) / 4
    )


def _smallest(case: Case) -> Instance | None:
    values = np.linalg.eigvalsh(oracles.kernel(case["W"], case["a"], case["x"]))
    return Instance(float(values[0]), 0.75 * smallest(case)) if near(case) else None


def _residual(case: Case) -> Instance:
    return Instance(
        float(case["Y"].size),
        float(np.sum((oracles.forward(case["W"], case["a"], case["x"]) - case["Y"]) ** 2)),
    )


# --- the table
# ----------------------------------------------------------------------------------------------------


def _sizes(rng: np.random.Generator) -> Case:
    return {
        "n": int(rng.integers(2, 1000)),
        "smallest": float(10 ** rng.uniform(-3, 0)),
        "accuracy": float(10 ** rng.uniform(-6, -1)),
        "sigma": float(rng.uniform(0.05, 1)),
    }


def _order(case: Case) -> Instance:
    relu, exp, softmax = bounds.table(
        case["n"], case["smallest"], case["accuracy"], sigma=case["sigma"]
    )
    same = exp.width == softmax.width and exp.steps == softmax.steps
    return Instance(
        min(softmax.width / relu.width, softmax.steps / relu.steps) if same else 0.0, 1.0
    )


def _vanishing(case: Case) -> Instance:
    """The exponent of n beyond 2 in the width, without logarithms, at n² and at n."""

    def beyond(n: int) -> float:
        B = bounds.growth(n, 1, case["sigma"], FAILURE)
        log = math.log(
            bounds.required_width("softmax", n, 1.0, sigma=case["sigma"], failure=FAILURE)
        )
        found = (log - 2 * math.log(math.log(n / FAILURE))) / math.log(n) - 2
        assert math.isclose(found, 18 * B / math.log(n), rel_tol=1e-6)
        return found

    return Instance(beyond(case["n"]), beyond(case["n"] ** 2))


STATEMENTS = (
    Statement(
        "[G] definition: network", "F = m⟨a, softmax(Wᵀx)⟩", moved, _network, _AXES, True, 20
    ),
    Statement(
        "[G] definition: double trick",
        "F(0) = 0 for neurons in pairs ±a",
        draw,
        _double,
        _AXES,
        True,
        20,
    ),
    Statement(
        "[G] derivative of softmax",
        "∂f/∂z = diag(f) − ffᵀ",
        lambda rng: {"z": rng.normal(size=8) * rng.choice([0.1, 1, 5])},
        _softmax_slopes,
        {"z": "m"},
        True,
    ),
    Statement(
        "[G] derivative of F",
        "∂F_ℓ(x)/∂w_r = m f_r (a_ℓr − ⟨a_ℓ, f⟩) x",
        moved,
        _row_gradients,
        _AXES,
        True,
        20,
    ),
    Statement(
        "[G] gradient of the loss",
        "∂L/∂w_r = m Σ_iℓ (F − Y)_iℓ f_ir (a_ℓr − ⟨a_ℓ, f_i⟩) x_i",
        moved,
        _loss_gradient,
        _AXES,
        True,
        20,
    ),
    Statement(
        "[G] definition: kernel",
        "H[i,j,ℓ,ℓ'] = ⟨∂F_ℓ(x_i)/∂W, ∂F_ℓ'(x_j)/∂W⟩",
        moved,
        _kernel,
        _AXES,
        True,
        20,
    ),
    Statement(
        "[G] kernel: symmetric, PSD", "H = Hᵀ, λ_min(H) ≥ 0", moved, _definite, _AXES, True, 20
    ),
    Statement(
        "[G] definition: infinite kernel",
        "H*[i,j] = ⟨x_i, x_j⟩ E[e^{w(x_i + x_j)}]/(E[e^{wx_i}] E[e^{wx_j}])",
        lambda rng: draw(rng, (3, 6, 1, 2)),
        _limit,
        _AXES,
        True,
        10,
    ),
    Statement(
        "[G] lemma: |⟨w_r, x_i⟩| ≤ B, C = 1",
        "for one r and all i with probability 1 − δ, B = max(Cσ√log(nk/δ), 1), C = 1",
        _chances(1),
        _largest_logit(bounds.AS_REMEMBERED),
        {"x": "nd"},
    ),
    Statement(
        "[G] lemma: |⟨w_r, x_i⟩| ≤ B, C = 2",
        "for one r and all i with probability 1 − δ, B = max(Cσ√log(nk/δ), 1), C = 2",
        _chances(1),
        _largest_logit(TWICE),
        {"x": "nd"},
    ),
    Statement(
        "[G] lemma: |⟨w_r, x_i⟩| ≤ B, every r",
        "for all m neurons r and all i with probability 1 − δ, C = 2: B has no m in it",
        _chances(2),
        _largest_logit(TWICE),
        {"x": "nd"},
        count=20,
    ),
    Statement(
        "[G] lemma: exp(⟨w_r, x_i⟩)",
        "e^{−B} ≤ exp(⟨w_r, x_i⟩) ≤ e^B where B bounds the logits",
        draw,
        _powers,
        _AXES,
        source="ours",
    ),
    Statement(
        "[G] lemma: ‖exp(Wᵀx_i)‖",
        "‖exp(Wᵀx_i)‖ ≤ √m e^B",
        draw,
        _exponentials,
        _AXES,
        source="ours",
    ),
    Statement("[G] lemma: α from below", "α_i ≥ m e^{−B}", draw, _normaliser, _AXES, source="ours"),
    Statement(
        "[G] lemma: entries of softmax", "f_ir ≤ e^{2B}/m", draw, _shares, _AXES, source="ours"
    ),
    Statement("[G] lemma: ‖f_i‖", "‖f_i‖ ≤ e^{2B}/√m", draw, _norm_of_shares, _AXES, source="ours"),
    Statement(
        "[G] lemma: H(0) near H*",
        "‖H(0) − H*‖_F ≤ λ/4 with probability 1 − δ at m = λ⁻²n²k²e^{18B}log²(nk/δ); scaled: at m/s it is √s times that",
        _few,
        _concentration,
        {"x": "nd"},
        count=15,
    ),
    Statement(
        "[G] lemma: λ_min(H(0))",
        "λ_min(H(0)) ≥ ¾λ where ‖H(0) − H*‖_F ≤ λ/4",
        wide,
        _smallest,
        _AXES,
        count=20,
    ),
    Statement(
        "[G] lemma: loss at the start",
        "‖F(0) − Y‖² ≤ nk for targets in [−1, 1]",
        draw,
        _residual,
        _AXES,
    ),
    Statement("[G] table: order", "width and steps: relu ≤ exp = softmax", _sizes, _order),
    Statement(
        "[G] table: n^{2+o(1)}",
        "the exponent beyond 2, 18B/log n, falls with n",
        _sizes,
        _vanishing,
    ),
)

"""Statements of [G]: the network and its kernel, their definitions and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np

from softntk import networks, ntk
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import (
    EQUALITY_TOLERANCE,
    Case,
    Instance,
    Statement,
    equal,
)
from softntk.theory._ledger.statements.network_cases import (
    NETWORK_AXES,
    build_network,
    draw_network,
    perturbed_case,
)


def check_network(case: Case) -> Instance:
    """Compare the outputs of "paper" networks with F = m⟨a, softmax⟩."""
    # Written out with exp and a plain sum, so that the shifted softmax of the package is tested
    # too.
    net, params = build_network(case, "paper")
    m = len(case["a"])
    powers = np.exp(case["x"] @ case["W"])
    shares = powers / powers.sum(axis=1)[:, None]
    return equal(net.apply_fn(params, case["x"]), m * shares @ case["a"])


def check_double_trick(case: Case) -> Instance:
    """Measure |F(0)|/m, which must vanish."""
    # Outputs of "paper" networks grow like m, hence the division.
    net, params = build_network(case, "paper")
    largest_output = float(np.abs(net.apply_fn(params, case["x"])).max())
    return Instance(EQUALITY_TOLERANCE, largest_output / len(case["a"]))


def check_softmax_jacobian(case: Case) -> Instance:
    """Compare diag(f) − ffᵀ with automatic differentiation."""
    # softmax works on rows, hence the additional axis.
    f = oracles.softmax(case["z"][None])[0]
    return equal(np.diag(f) - np.outer(f, f), oracles.softmax_jacobian(case["z"]))


def check_output_derivative(case: Case) -> Instance:
    """Compare the row factors of softntk with the Jacobian of the outputs."""
    # The package keeps g as slopes [n, m] and means [n, k]; put together they are [n, k, m].
    net, params = build_network(case)
    rows = networks.row_factors(net.architecture, params, jnp.asarray(case["x"]))
    centred_readout = case["a"].T[None] - np.asarray(rows.means)[:, :, None]
    g = np.asarray(rows.slopes)[:, None] * centred_readout
    return equal(
        np.einsum("id,ilr->ildr", case["x"], g),
        oracles.output_jacobian(case["W"], case["a"], case["x"]),
    )


@jax.jit
def _loss_gradient(case: dict[str, jax.Array]) -> jax.Array:
    net, params = build_network(case)

    def loss(params: networks.Parameters) -> jax.Array:
        return 0.5 * jnp.sum((net.apply_fn(params, case["x"]) - case["Y"]) ** 2)

    return jax.grad(loss)(params).hidden


def check_loss_gradient(case: Case) -> Instance:
    """Compare the gradient through softntk's network with the formula."""
    residual = oracles.forward(case["W"], case["a"], case["x"]) - case["Y"]
    arrays = {name: jnp.asarray(case[name]) for name in ("x", "W", "a", "Y")}
    return equal(
        _loss_gradient(arrays), oracles.gradient(case["W"], case["a"], case["x"], residual)
    )


def check_kernel(case: Case) -> Instance:
    """Compare the empirical kernel with J Jᵀ."""
    # Both have rows (i, j) before outputs (ℓ, ℓ').
    J = np.asarray(oracles.output_jacobian(case["W"], case["a"], case["x"]))
    net, params = build_network(case)
    return equal(
        ntk.empirical(net, params, case["x"]), np.einsum("ildr,jqdr->ijlq", J, J, optimize=True)
    )


def check_kernel_semidefinite(case: Case) -> Instance:
    """Measure the asymmetry of H and its negative eigenvalues, relative to the largest one."""
    # Rows (i, ℓ) and columns (j, ℓ') make a square matrix of the four axes.
    n, k = case["Y"].shape
    net, params = build_network(case)
    blocks = np.asarray(ntk.empirical(net, params, case["x"]))
    H = blocks.transpose(0, 2, 1, 3).reshape(n * k, n * k)
    eigenvalues = np.linalg.eigvalsh(H)
    violation = max(np.abs(H - H.T).max(), -eigenvalues[0])
    return Instance(EQUALITY_TOLERANCE, float(violation / eigenvalues[-1]))


def check_infinite_kernel(case: Case) -> Instance:
    """Compare the infinite kernel with Gauss–Hermite quadrature of its definition."""
    # 1. Nodes and weights of N(0, 1), and of two independent standard normal variables.
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = weights / weights.sum()
    pair_weights = np.outer(weights, weights)
    first_normal, second_normal = np.meshgrid(nodes, nodes, indexing="ij")

    def mean_power(q: float) -> float:
        return float(np.sum(weights * np.exp(np.sqrt(q) * nodes)))

    # 2. E[e^{g₁ + g₂}]/(E[e^{g₁}] E[e^{g₂}]) for logits (g₁, g₂) of covariance q, by Cholesky.
    x = case["x"]
    dots = x @ x.T
    H = np.zeros_like(dots)
    for i in range(len(x)):
        for j in range(len(x)):
            q11, q12, q22 = case["sigma"] ** 2 * dots[[i, i, j], [i, j, j]]
            residual_deviation = np.sqrt(max(q22 - q12**2 / q11, 0))
            first_logit = np.sqrt(q11) * first_normal
            second_logit = q12 / np.sqrt(q11) * first_normal + residual_deviation * second_normal
            joint_mean = np.sum(pair_weights * np.exp(first_logit + second_logit))
            H[i, j] = joint_mean / mean_power(q11) / mean_power(q22)
    net = build_network(case, sigma=case["sigma"])[0]
    return equal(net.kernel_fn(x, None, "ntk"), dots * H)


STATEMENTS = (
    # The network, and its first derivatives.
    Statement(
        "[G] definition: network",
        "F = m⟨a, softmax(Wᵀx)⟩",
        perturbed_case,
        check_network,
        NETWORK_AXES,
        equality=True,
        count=20,
    ),
    Statement(
        "[G] definition: double trick",
        "F(0) = 0 for neurons in pairs ±a",
        draw_network,
        check_double_trick,
        NETWORK_AXES,
        equality=True,
        count=20,
    ),
    Statement(
        "[G] derivative of softmax",
        "∂f/∂z = diag(f) − ffᵀ",
        lambda rng: {"z": rng.normal(size=8) * rng.choice([0.1, 1, 5])},
        check_softmax_jacobian,
        {"z": "m"},
        equality=True,
    ),
    Statement(
        "[G] derivative of F",
        "∂F_ℓ(x)/∂w_r = m f_r (a_ℓr − ⟨a_ℓ, f⟩) x",
        perturbed_case,
        check_output_derivative,
        NETWORK_AXES,
        equality=True,
        count=20,
    ),
    Statement(
        "[G] gradient of the loss",
        "∂L/∂w_r = m Σ_iℓ (F − Y)_iℓ f_ir (a_ℓr − ⟨a_ℓ, f_i⟩) x_i",
        perturbed_case,
        check_loss_gradient,
        NETWORK_AXES,
        equality=True,
        count=20,
    ),
    # The kernel, and its limit of infinite width.
    Statement(
        "[G] definition: kernel",
        "H[i,j,ℓ,ℓ'] = ⟨∂F_ℓ(x_i)/∂W, ∂F_ℓ'(x_j)/∂W⟩",
        perturbed_case,
        check_kernel,
        NETWORK_AXES,
        equality=True,
        count=20,
    ),
    Statement(
        "[G] kernel: symmetric, PSD",
        "H = Hᵀ, λ_min(H) ≥ 0",
        perturbed_case,
        check_kernel_semidefinite,
        NETWORK_AXES,
        equality=True,
        count=20,
    ),
    Statement(
        "[G] definition: infinite kernel",
        "H*[i,j] = ⟨x_i, x_j⟩ E[e^{w(x_i + x_j)}]/(E[e^{wx_i}] E[e^{wx_j}])",
        lambda rng: draw_network(rng, (3, 6, 1, 2)),
        check_infinite_kernel,
        NETWORK_AXES,
        equality=True,
        count=10,
    ),
)

"""Oracles of the ledger: NumPy and dense automatic differentiation of the definitions.

Nothing here imports softntk, so that a fault of the package cannot hide in its own measurement.

| symbol | meaning | shape |
|---|---|---|
| x, W, a | points, hidden weights, readout | [n, d], [d, m], [m, k] |
| f | softmax shares of the hidden units | [n, m] |
| g | row factors: ∂F_ℓ(x_i)/∂w_r = g_{iℓr} x_i | [n, k, m] |
| H, H* | kernel and its limit of infinite width, rows (i, ℓ) | [nk, nk] |
| A, b, w | design matrix, target, weights of a regression | [n, d], [n], [n] |
| z, u, α | logits Ax, u(z), the normaliser Σu | [n], [n], number |
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Real = np.ndarray | jax.Array

QUICK_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options: each program runs a few times and takes longer to compile than to run."""

# --- two-layer networks


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the softmax of each row."""
    # Subtracting the largest logit of a row cancels, and prevents overflow.
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def forward(W: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return F = √m softmax(xW) a, [n, k]."""
    return np.sqrt(len(a)) * softmax(x @ W) @ a


def row_factors(W: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return g, [n, k, m], of the softmax network: ∂F_ℓ(x_i)/∂w_r = g_{iℓr} x_i."""
    # ∂f_r/∂z_s = f_r(δ_rs − f_s), contracted with the readout
    f = softmax(x @ W)
    return np.sqrt(len(a)) * f[:, None, :] * (a.T[None] - (f @ a)[:, :, None])


def kernel_of_factors(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Return H_{iℓ,jq} = ⟨x_i, x_j⟩⟨g_iℓ, g_jq⟩, [nk, nk]."""
    n, k = g.shape[:2]
    return np.einsum("ij,ilr,jqr->iljq", x @ x.T, g, g, optimize=True).reshape(n * k, n * k)


def kernel(W: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return H of the softmax network, [nk, nk]."""
    return kernel_of_factors(x, row_factors(W, a, x))


def plain_kernel(name: str, W: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return H of F = m^{−1/2} u(xW) a for u = exp or relu, [nk, nk]."""
    z = x @ W
    slopes = np.exp(z) if name == "exp" else (z > 0).astype(np.float64)
    return kernel_of_factors(x, slopes[:, None, :] * a.T[None] / np.sqrt(len(a)))


def limit_kernel(x: np.ndarray, sigma: float, k: int = 1) -> np.ndarray:
    """Return H* of the softmax network, [nk, nk]."""
    # E[e^{w(x + x')}]/(E[e^{wx}]E[e^{wx'}]) = e^{σ²⟨x, x'⟩}; outputs do not mix
    dots = x @ x.T
    return np.kron(dots * np.exp(sigma**2 * dots), np.eye(k))


def gradient(W: np.ndarray, a: np.ndarray, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Return the gradient of ½‖F − Y‖² in W, [d, m], for the residual F − Y."""
    # Jᵀ of the softmax applied to residual · aᵀ, row by row
    f = softmax(x @ W)
    output_slopes = residual @ a.T
    centred_slopes = output_slopes - np.sum(f * output_slopes, axis=1, keepdims=True)
    return np.sqrt(len(a)) * x.T @ (f * centred_slopes)


@partial(jax.jit, compiler_options=QUICK_COMPILATION)
def output_jacobian(W: Real, a: Real, x: Real) -> jax.Array:
    """Return ∂F/∂W, [n, k, d, m], by automatic differentiation."""

    def output(W: Real) -> jax.Array:
        powers = jnp.exp(x @ W)
        return jnp.sqrt(float(len(a))) * (powers @ a) / jnp.sum(powers, axis=1)[:, None]

    return jax.jacrev(output)(W)


@partial(jax.jit, compiler_options=QUICK_COMPILATION)
def softmax_jacobian(z: Real) -> jax.Array:
    """Return ∂softmax(z)/∂z, [m, m], by automatic differentiation."""
    return jax.jacfwd(lambda z: jnp.exp(z) / jnp.sum(jnp.exp(z)))(z)


def log_width_for_every_unit(
    n: int, k: int, smallest: float, sigma: float, failure: float
) -> float:
    """Return log m for m = λ⁻²n²k²e^{18B}log²(nk/δ) with B = max(√2 σ √log(nkm/δ), 1).

    The width stands on both sides. The right side grows like the root of log m, so that the fixed
    point is unique and iteration finds it.
    """
    # In logarithms, because the widths overflow.
    log_ratio = math.log(n * k / failure)
    log_factor = 2 * math.log(n * k / smallest) + 2 * math.log(log_ratio)
    log_width = 0.0
    for _ in range(200):
        B = max(math.sqrt(2) * sigma * math.sqrt(log_ratio + max(log_width, 0.0)), 1.0)
        log_width = log_factor + 18 * B
    return log_width


# --- training and score estimation


def kernel_descent(gram: np.ndarray, labels: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """Return the coefficients c of gradient descent with a constant kernel: F(x) = Σ k(x, x_i) c_i.

    Args:
        gram: the kernel of the training points, [n, n].
        labels: targets, [n, k].
        rate: step size.
        steps: number of steps, from F = 0.
    """
    coefficients = np.zeros_like(labels)
    for _ in range(steps):
        coefficients = coefficients + rate * (labels - gram @ coefficients)
    return coefficients


def posterior_moments(
    x: np.ndarray, means: np.ndarray, deviations: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of X₀ given X_t = x, [n] each, by Bayes' rule.

    X₀ is a mixture of Gaussians on the line with equal weights, and X_t = αX₀ + √(1 − α²) noise.
    """
    # 1. The density of X_t under each component, and the component's posterior probability.
    noise_variance = 1 - alpha**2
    total_variance = alpha**2 * deviations**2 + noise_variance
    offsets = x[:, None] - alpha * means
    densities = np.exp(-(offsets**2) / (2 * total_variance)) / np.sqrt(total_variance)
    probabilities = densities / densities.sum(axis=1, keepdims=True)
    # 2. Within a component X₀ given X_t is Gaussian.
    component_means = means + alpha * deviations**2 / total_variance * offsets
    component_variances = deviations**2 * noise_variance / total_variance
    # 3. The moments of the mixture.
    mean = np.sum(probabilities * component_means, axis=1)
    second_moment = np.sum(probabilities * (component_variances + component_means**2), axis=1)
    return mean, second_moment - mean**2


# --- regressions

_DERIVATIVES: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    "exp": lambda z: (np.exp(z), np.exp(z), np.exp(z)),
    "res_exp": lambda z: (np.exp(z) + z, np.exp(z) + 1, np.exp(z)),
    "cosh": lambda z: (np.cosh(z), np.sinh(z), np.cosh(z)),
    "sinh": lambda z: (np.sinh(z), np.cosh(z), np.sinh(z)),
}
"""u, u' and u'' by name, by NumPy."""

_TRACEABLE: dict[str, Callable[[Real], jax.Array]] = {
    "exp": jnp.exp,
    "res_exp": lambda z: jnp.exp(z) + z,
    "cosh": jnp.cosh,
    "sinh": jnp.sinh,
}
"""u by name, for automatic differentiation."""


def activation(name: str, z: np.ndarray) -> np.ndarray:
    """Return u(z)."""
    return _DERIVATIVES[name](z)[0]


def prediction(name: str, z: np.ndarray) -> np.ndarray:
    """Return f = u/α."""
    u = activation(name, z)
    return u / u.sum()


def prediction_jacobian(name: str, z: np.ndarray) -> np.ndarray:
    """Return ∂f/∂z by the quotient rule, [n, n]."""
    u, du, _ = _DERIVATIVES[name](z)
    return np.diag(du) / u.sum() - np.outer(u, du) / u.sum() ** 2


def residual_curvature(name: str, z: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Σ c_i ∂²f_i in the logits, [n, n], with c = f − b, by the quotient rule used twice."""
    u, du, d2u = _DERIVATIVES[name](z)
    alpha = u.sum()
    c = u / alpha - b
    # ∂²(u_i/α) by the quotient rule: u_i'' once, products of first derivatives, and ∂α twice
    mixed = np.outer(c * du, du)
    return (
        np.diag(c * d2u) / alpha
        - (mixed + mixed.T) / alpha**2
        - (c @ u) * np.diag(d2u) / alpha**2
        + 2 * (c @ u) * np.outer(du, du) / alpha**3
    )


def logit_gradient(name: str, z: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the gradient of ½‖f − b‖² in the logits, [n]."""
    return prediction_jacobian(name, z).T @ (prediction(name, z) - b)


def logit_hessian(name: str, z: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Hessian of ½‖f − b‖² in the logits, [n, n]."""
    J = prediction_jacobian(name, z)
    return J.T @ J + residual_curvature(name, z, b)


class Derivatives(NamedTuple):
    """The quantities of the papers and their derivatives, by automatic differentiation.

    Attributes:
        alpha: α.
        alpha_gradient: ∂α/∂x, [d].
        jacobian_u: ∂u(Ax)/∂x, [n, d].
        f: u/α, [n].
        jacobian: ∂f/∂x, [n, d].
        loss: the loss with its penalty.
        gradient: gradient of the loss in x, [d].
        hessian: Hessian of the loss in x, [d, d].
        penalty: the Hessian of ½‖diag(w)Ax‖² in x, [d, d].
        logit_hessian: Hessian in the logits of the loss without its penalty, [n, n].
    """

    alpha: Real
    alpha_gradient: Real
    jacobian_u: Real
    f: Real
    jacobian: Real
    loss: Real
    gradient: Real
    hessian: Real
    penalty: Real
    logit_hessian: Real


@partial(jax.jit, static_argnames=("name", "form"), compiler_options=QUICK_COMPILATION)
def regression(
    A: Real, b: Real, w: Real, x: Real, name: str, form: str = "normalized"
) -> Derivatives:
    """Return everything that the papers differentiate, from the definitions."""
    # 1. The functions, each from its definition.
    u = _TRACEABLE[name]

    def normaliser(x: Real) -> jax.Array:
        return jnp.sum(u(A @ x))

    def f(x: Real) -> jax.Array:
        return u(A @ x) / normaliser(x)

    def penalty(x: Real) -> jax.Array:
        return 0.5 * jnp.sum((w * (A @ x)) ** 2)

    def fit(z: Real) -> jax.Array:
        v = u(z)
        residuals = {
            "normalized": v / jnp.sum(v) - b,
            "rescaled": v - jnp.sum(v) * b,
            "plain": v - b,
        }
        return 0.5 * jnp.sum(residuals[form] ** 2)

    def loss(x: Real) -> jax.Array:
        return fit(A @ x) + penalty(x)

    # 2. Their derivatives, forward where there are few inputs, in reverse for one output.
    return Derivatives(
        alpha=normaliser(x),
        alpha_gradient=jax.grad(normaliser)(x),
        jacobian_u=jax.jacfwd(lambda x: u(A @ x))(x),
        f=f(x),
        jacobian=jax.jacfwd(f)(x),
        loss=loss(x),
        gradient=jax.grad(loss)(x),
        hessian=jax.hessian(loss)(x),
        penalty=jax.hessian(penalty)(x),
        logit_hessian=jax.hessian(fit)(A @ x),
    )


# --- row sampling


def spectral_distortion(approximate: np.ndarray, exact: np.ndarray) -> float:
    """Return the smallest ε with (1 − ε) exact ≼ approximate ≼ (1 + ε) exact."""
    # Eigenvalues of L⁻¹ approximate L⁻ᵀ for exact = LLᵀ.
    root_inverse = np.linalg.inv(np.linalg.cholesky(exact))
    return float(np.abs(np.linalg.eigvalsh(root_inverse @ approximate @ root_inverse.T) - 1).max())


def two_row_failure_probability(size: int, epsilon: float) -> float:
    """Return P(|2N/s − 1| > ε) for N ~ Bin(s, ½), by summing the binomial distribution.

    It is the probability that s draws of two orthogonal rows of equal leverage (d = 2) are no
    (1 ± ε)-approximation, because the sampled Gram matrix has the eigenvalues 2N/s and 2 − 2N/s.
    """
    failures = [N for N in range(size + 1) if abs(2 * N / size - 1) > epsilon]
    # In logarithms, because the binomial coefficients overflow.
    log_total = math.lgamma(size + 1) - size * math.log(2)
    return math.fsum(
        math.exp(log_total - math.lgamma(N + 1) - math.lgamma(size - N + 1)) for N in failures
    )

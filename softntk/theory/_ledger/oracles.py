"""What the ledger measures with: NumPy and dense automatic differentiation of the definitions,
nothing of softntk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Each program runs a few times and takes longer to compile."""

# --- two-layer softmax networks, F = √m softmax(xW) a
# ----------------------------------------------------------------


def softmax(z: np.ndarray) -> np.ndarray:
    """Of each row."""
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def forward(W: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """F, [n, k]."""
    return np.sqrt(len(a)) * softmax(x @ W) @ a


def factors(W: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """∂F_ℓ(x_i)/∂w_r = g_{iℓr} x_i: g, [n, k, m]."""
    f = softmax(x @ W)
    return np.sqrt(len(a)) * f[:, None, :] * (a.T[None] - (f @ a)[:, :, None])


def kernel(W: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """H, [nk, nk] with rows (i, ℓ)."""
    g = factors(W, a, x)
    n, k = g.shape[:2]
    return np.einsum("ij,ilr,jqr->iljq", x @ x.T, g, g, optimize=True).reshape(n * k, n * k)


def limit(x: np.ndarray, sigma: float, k: int = 1) -> np.ndarray:
    """H*, [nk, nk]."""
    dots = x @ x.T
    return np.kron(dots * np.exp(sigma**2 * dots), np.eye(k))


def gradient(W: np.ndarray, a: np.ndarray, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Of ½‖F − Y‖² in W, [d, m]."""
    f = softmax(x @ W)
    inner = residual @ a.T
    return np.sqrt(len(a)) * x.T @ (f * (inner - np.sum(f * inner, axis=1, keepdims=True)))


@partial(jax.jit, compiler_options=_QUICK)
def output_jacobian(W: Any, a: Any, x: Any) -> jax.Array:
    """∂F/∂W, [n, k, d, m], by automatic differentiation."""

    def output(W: Any) -> jax.Array:
        powers = jnp.exp(x @ W)
        return jnp.sqrt(float(len(a))) * (powers @ a) / jnp.sum(powers, axis=1)[:, None]

    return jax.jacrev(output)(W)


@partial(jax.jit, compiler_options=_QUICK)
def softmax_jacobian(z: Any) -> jax.Array:
    """∂softmax(z)/∂z, [m, m], by automatic differentiation."""
    return jax.jacfwd(lambda z: jnp.exp(z) / jnp.sum(jnp.exp(z)))(z)


# --- regressions
# --------------------------------------------------------------------------------------------------

_JETS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    "exp": lambda z: (np.exp(z), np.exp(z), np.exp(z)),
    "res_exp": lambda z: (np.exp(z) + z, np.exp(z) + 1, np.exp(z)),
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "exp": jnp.exp,
    "res_exp": lambda z: jnp.exp(z) + z,
    "cosh": jnp.cosh,
}


def activation(name: str, z: np.ndarray) -> np.ndarray:
    """Of the logits: u."""
    return _JETS[name](z)[0]


def prediction(name: str, z: np.ndarray) -> np.ndarray:
    """F = u/α."""
    u = activation(name, z)
    return u / u.sum()


def slopes(name: str, z: np.ndarray) -> np.ndarray:
    """∂f/∂z by the quotient rule, [n, n]."""
    u, du, _ = _JETS[name](z)
    return np.diag(du) / u.sum() - np.outer(u, du) / u.sum() ** 2


def second_part(name: str, z: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ c_i ∂²f_i in the logits, [n, n], c = f − b, by the quotient rule twice."""
    u, du, d2u = _JETS[name](z)
    alpha = u.sum()
    c = u / alpha - b
    mixed = np.outer(c * du, du)
    return (
        np.diag(c * d2u) / alpha
        - (mixed + mixed.T) / alpha**2
        - (c @ u) * np.diag(d2u) / alpha**2
        + 2 * (c @ u) * np.outer(du, du) / alpha**3
    )


def logit_gradient(name: str, z: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of ½‖f − b‖² in the logits."""
    return slopes(name, z).T @ (prediction(name, z) - b)


def logit_hessian(name: str, z: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of ½‖f − b‖² in the logits."""
    J = slopes(name, z)
    return J.T @ J + second_part(name, z, b)


class Derivatives(NamedTuple):
    """By automatic differentiation in x, but for the last, in z."""

    alpha: Any
    alpha_gradient: Any
    jacobian_u: Any
    f: Any
    jacobian: Any
    loss: Any
    gradient: Any
    hessian: Any
    penalty: Any
    logit_hessian: Any


@partial(jax.jit, static_argnames=("name", "form"), compiler_options=_QUICK)
def regression(A: Any, b: Any, w: Any, x: Any, name: str, form: str = "normalized") -> Derivatives:
    """Everything that the papers differentiate, from the definitions."""
    u = _FUNCTIONS[name]
    total = lambda x: jnp.sum(u(A @ x))
    f = lambda x: u(A @ x) / total(x)
    penalty = lambda x: 0.5 * jnp.sum((w * (A @ x)) ** 2)

    def fit(z: Any) -> jax.Array:
        v = u(z)
        r = {"normalized": v / jnp.sum(v) - b, "rescaled": v - jnp.sum(v) * b, "plain": v - b}[form]
        return 0.5 * jnp.sum(r**2)

    loss = lambda x: fit(A @ x) + penalty(x)
    return Derivatives(
        total(x),
        jax.grad(total)(x),
        jax.jacfwd(lambda x: u(A @ x))(x),
        f(x),
        jax.jacfwd(f)(x),
        loss(x),
        jax.grad(loss)(x),
        jax.hessian(loss)(x),
        jax.hessian(penalty)(x),
        jax.hessian(fit)(A @ x),
    )

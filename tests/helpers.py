"""What tests share: tolerances by precision, dumb oracles, data."""

from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softntk

TOLERANCE = {"float32": 2e-5, "float64": 1e-10}


def assert_close(
    actual: Any, desired: Any, dtype: str = "float64", *, rtol: float | None = None
) -> None:
    """|actual − desired| ≤ rtol · max|desired|, everything finite; rtol defaults to that of the
    precision.
    """
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    assert actual.shape == desired.shape, f"shapes {actual.shape} and {desired.shape}"
    assert np.isfinite(actual).all(), "the actual values are not finite"
    assert np.isfinite(desired).all(), "the desired values are not finite"
    rtol = TOLERANCE[dtype] if rtol is None else rtol
    error, size = np.max(np.abs(actual - desired), initial=0), np.max(np.abs(desired), initial=0)
    assert error <= rtol * size, (
        f"error {error:.3g} of {size:.3g} exceeds {rtol:.1g}, relative {error / size if size else np.inf:.3g}"
    )


def slow_except(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """The cases of a parametrised test; those that are not ``fast`` are marked slow: they compile
    more than they test.
    """
    cases = list(cases)
    assert fast, "something is to run always"
    assert all(case in cases for case in fast), f"not among the cases: {fast}"
    return [
        case
        if case in fast
        else pytest.param(*case if isinstance(case, tuple) else (case,), marks=pytest.mark.slow)
        for case in cases
    ]


def cast(tree: Any, dtype: str) -> Any:
    """The same numbers in another precision."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def cache_size(program: Any) -> int:
    """How many programs a compiled function holds."""
    return program._cache_size()


def points(seed: int, n: int, d: int, dtype: str = "float64") -> jax.Array:
    """N points of about unit norm in d dimensions."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)) / np.sqrt(d), dtype)


def class_predictions(
    seed: int, n: int = 200, k: int = 4, dtype: str = "float64"
) -> tuple[jax.Array, np.ndarray]:
    """Random probabilities [n, k], and labels drawn from them."""
    generator = np.random.default_rng(seed)
    odds = np.exp(2 * generator.normal(size=(n, k)))
    probabilities = odds / odds.sum(1, keepdims=True)
    labels = np.array([generator.choice(k, p=row) for row in probabilities])
    return jnp.asarray(probabilities, dtype), labels


def dense_jacobian(apply_fn: Callable, params: Any, x: jax.Array) -> jax.Array:
    """The Jacobian of all outputs in all weights, [n, k, p], by automatic differentiation."""
    out = jax.eval_shape(apply_fn, params, x)
    return jnp.concatenate(
        [
            leaf.reshape(*out.shape, -1)
            for leaf in jax.tree.leaves(jax.jacobian(apply_fn)(params, x))
        ],
        axis=-1,
    )


def dense_kernels(
    apply_fn: Callable, params: Any, x1: jax.Array, x2: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The empirical NTK as the product of two dense Jacobians, by the name that ``ntk.empirical``
    gives each form.
    """
    j1 = dense_jacobian(apply_fn, params, x1)
    j2 = j1 if x2 is None else dense_jacobian(apply_fn, params, x2)
    full = jnp.einsum("ilp,jmp->ijlm", j1, j2)
    diagonal = jnp.einsum("ijll->ijl", full)
    return {"full": full, "diagonal": diagonal, "mean": diagonal.mean(-1)}


def ring(modes: int = 8, d: int = 2) -> Any:
    """Modes of standard deviation 0.15 on a circle of radius 2."""
    angles = 2 * np.pi * np.arange(modes) / modes
    means = np.zeros((modes, d))
    means[:, :2] = 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return softntk.diffusion.GaussianMixture(
        jnp.full(modes, 1 / modes),
        jnp.asarray(means, jnp.float32),
        jnp.tile(0.15**2 * jnp.eye(d), (modes, 1, 1)),
    )


def relative_score_error(sde: Any, f: Any, mixture: Any, t: float, n: int = 2000) -> float:
    """E‖s − s*‖²/E‖s*‖² of a denoiser, by n draws."""
    x = sde.perturb(jax.random.key(77), t, mixture.sample(jax.random.key(78), n))
    exact = mixture.score(sde, t, x)
    return float(jnp.sum((softntk.diffusion.score(sde, f)(t, x) - exact) ** 2) / jnp.sum(exact**2))


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Normal:
    """N(0, σ²I) in three dimensions: X_t is normal of variance α²σ² + h."""

    sigma: jax.Array

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        return self.sigma * jax.random.normal(key, (n, 3), self.sigma.dtype)

    def score(self, sde: Any, t: Any, x: jax.Array) -> jax.Array:
        return -x / self.variance(sde, t)

    def variance(self, sde: Any, t: Any) -> jax.Array:
        return sde.alpha(t) ** 2 * self.sigma**2 + sde.variance(t)


def normal(dtype: str = "float64") -> Normal:
    """N(0, I/4)."""
    make: Any = Normal  # chex makes its ``__init__``
    return make(sigma=jnp.asarray(0.5, dtype))

"""The tests' own tools: tolerances by precision, dumb oracles, data."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

TOLERANCE = {"float32": 2e-5, "float64": 1e-10}


def assert_close(actual: Any, desired: Any, dtype: str = "float64", *, rtol: float | None = None) -> None:
    """|actual − desired| ≤ rtol · max|desired|, everything finite; rtol defaults to that of the precision."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    assert actual.shape == desired.shape, f"shapes {actual.shape} and {desired.shape}"
    assert np.isfinite(actual).all(), "the actual values are not finite"
    assert np.isfinite(desired).all(), "the desired values are not finite"
    rtol = TOLERANCE[dtype] if rtol is None else rtol
    error, size = np.max(np.abs(actual - desired), initial=0), np.max(np.abs(desired), initial=0)
    assert error <= rtol * size, (
        f"error {error:.3g} of {size:.3g} exceeds {rtol:.1g}, relative {error / size if size else np.inf:.3g}"
    )


def first(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """The cases of a parametrised test; those that are not ``kept`` are marked slow: they compile more than they test."""
    cases = list(cases)
    assert kept, "something is to be kept"
    assert all(case in cases for case in kept), f"not among the cases: {kept}"
    return [
        case if case in kept else pytest.param(*case if isinstance(case, tuple) else (case,), marks=pytest.mark.slow)
        for case in cases
    ]


def cast(tree: Any, dtype: str) -> Any:
    """The same numbers in another precision."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def points(seed: int, n: int, d: int, dtype: str = "float64") -> jax.Array:
    """N points of about unit norm in d dimensions."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)) / np.sqrt(d), dtype)


def dense_jacobian(apply_fn: Callable, params: Any, x: jax.Array) -> jax.Array:
    """The Jacobian of all outputs in all weights, [n, k, p], by automatic differentiation."""
    out = jax.eval_shape(apply_fn, params, x)
    return jnp.concatenate(
        [leaf.reshape(*out.shape, -1) for leaf in jax.tree.leaves(jax.jacobian(apply_fn)(params, x))], axis=-1
    )


def dense_kernels(apply_fn: Callable, params: Any, x1: jax.Array, x2: jax.Array | None = None) -> dict[str, jax.Array]:
    """The empirical NTK as the product of two dense Jacobians, by the name that ``ntk.empirical`` gives each form."""
    j1 = dense_jacobian(apply_fn, params, x1)
    j2 = j1 if x2 is None else dense_jacobian(apply_fn, params, x2)
    full = jnp.einsum("ilp,jmp->ijlm", j1, j2)
    diagonal = jnp.einsum("ijll->ijl", full)
    return {"full": full, "diagonal": diagonal, "mean": diagonal.mean(-1)}

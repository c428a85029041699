"""What a network of the user's is called with, and its Jacobian by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


class OwnNetwork(NamedTuple):
    """A function of the user's and what it is called with.

    Attributes:
        apply_fn: ``apply_fn(params, x, **apply_kwargs)`` is [n, k] or [n].
        params: the weights, with whatever else the library keeps beside them.
        x: points, [n, …].
        apply_kwargs: further arguments.
        weights: what is differentiated by, arrays alone.
        outputs: ``outputs(weights, x)`` is [n, k], by hand.
    """

    apply_fn: Callable
    params: Any
    x: jax.Array
    apply_kwargs: dict[str, Any]
    weights: Any
    outputs: Callable

    def jacobian(self, x: jax.Array | None = None) -> np.ndarray:
        """Return the derivative of all outputs at x in all weights, [n, k, p]."""
        points = self.x if x is None else x
        leaves = jax.tree.leaves(jax.jit(jax.jacobian(self.outputs))(self.weights, points))
        shape = jax.eval_shape(self.outputs, self.weights, points).shape
        return np.concatenate(
            [np.asarray(leaf, np.float64).reshape(*shape, -1) for leaf in leaves], axis=-1
        )

    def kernel(self, x1: jax.Array | None = None, x2: jax.Array | None = None) -> np.ndarray:
        """Return the empirical kernel, [n1, n2, k, k]."""
        return np.einsum("ilp,jmp->ijlm", self.jacobian(x1), self.jacobian(x2))


def draw(seed: int, *shape: int, dtype: str) -> jax.Array:
    """Return normal numbers that both precisions hold exactly."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32), dtype)


def cast(tree: Any, dtype: str) -> Any:
    """Return the tree with its floating-point arrays in this precision."""

    def convert(leaf: Any) -> Any:
        floating = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(convert, tree)

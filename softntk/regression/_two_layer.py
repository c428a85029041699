r"""Two-layer regressions ½‖h(A₂ g(A₁ x)) − b‖² + ½‖diag(w) A₁ x‖².

The softmax is in the outer or in the inner layer:

    outer    softmax(A₂ relu(A₁ x))        arXiv 2308.08358
    inner    u(A₂ softmax(A₁ x))           arXiv 2311.15390

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A1 = jax.random.normal(jax.random.key(0), (5, 3))
    >>> A2 = jax.random.normal(jax.random.key(1), (4, 5))
    >>> p = sn.regression.two_layer(A1, A2, jnp.full(4, 0.25))
    >>> round(float(p.predict(jnp.ones(3)).sum()), 5)
    1.0
"""

from collections.abc import Callable
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk import activations
from softntk._core.validation import (
    as_dtype,
    as_floating,
    as_rows,
    as_weights,
    check_choice,
)
from softntk._linalg.products import product
from softntk.activations import Activation
from softntk.regression._residual_problem import ResidualProblem, nonnegative, structure_of

# An activation, and whether it is normalized.
Layer = tuple[Activation, bool]

# Names of layers that divide by their sum -> names of the activations that they normalize.
NORMALIZED_LAYERS = {
    family: activation.name
    for activation in activations.ACTIVATIONS.values()
    for family, normalized in activation.families
    if normalized
}


def two_layer(
    A1: Float[Array | np.ndarray, "m d"],
    A2: Float[Array | np.ndarray, "n m"],
    b: Float[Array | np.ndarray, " n"],
    *,
    inner: str | Activation = "relu",
    outer: str | Activation = "softmax",
    weights: float | Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " m"] = 0.0,
) -> ResidualProblem:
    r"""Return the problem min over x of ½‖h(A₂ g(A₁ x)) − b‖² + ½‖diag(w) A₁ x‖².

    Use it where A₁ and A₂ are data and x, the input of the inner layer, is unknown.

    Args:
        A1: [m, d].
        A2: [n, m].
        b: the target, [n].
        inner: g: "softmax", "res_softmax", or an activation u, by name or itself, elementwise.
        outer: h: as ``inner``.
        weights: w ≥ 0, a scalar or [m].

    Returns:
        A problem p: ``p(x)``, ``predict``, ``residual``, ``gradient``, ``check``, and ``hessian``
        and ``gauss_newton``, which are lineax operators on [d]. Where relu has a kink its
        derivative is zero.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, negative weights, an unknown name.

    Example:
        >>> import jax.numpy as jnp
        >>> A1 = A2 = jnp.eye(2)
        >>> p = two_layer(A1, A2, jnp.array([0.5, 0.5]), inner="softmax", outer="identity")
        >>> float(p(jnp.zeros(2))), p.gauss_newton(jnp.zeros(2)).mv(jnp.array([1.0, -1.0])).tolist()
        (0.0, [0.25, -0.25])

    Source: arXiv 2308.08358 (softmax outside), arXiv 2311.15390 (inside).
    """
    # 1. Check the arguments; A1 decides the dtype.
    A1 = as_rows("A1", A1)
    m, d = A1.shape
    dtype = A1.dtype
    A2 = as_dtype("A2", as_rows("A2", A2, m), dtype)
    target = as_dtype("b", as_floating("b", b, (len(A2),)), dtype, finite=False)
    w = as_weights("weights", weights, dtype, (), (m,))
    # 2. Compose the layers.
    maps = _compose(_find_layer("inner", inner), _find_layer("outer", outer))
    return ResidualProblem(
        data=(A1, A2, w), target=target, maps=maps, structure=structure_of(jnp.zeros(d, dtype))
    )


def _find_layer(argument: str, layer: str | Activation) -> Layer:
    """Return the activation of a layer, and whether it is normalized."""
    if isinstance(layer, Activation):
        return layer, False
    layer_name = check_choice(argument, layer, {**NORMALIZED_LAYERS, **activations.ACTIVATIONS})
    activation = activations.get(NORMALIZED_LAYERS.get(layer_name, layer_name))
    return activation, layer_name in NORMALIZED_LAYERS


def _apply_layer(layer: Layer, z: Array) -> Array:
    """Return u(z), or u(z)/1ᵀu(z)."""
    activation, normalized = layer
    return activations.normalize(activation, z) if normalized else activation.u(z)


@lru_cache  # one function for each pair of layers, so that nothing is compiled again
def _compose(inner: Layer, outer: Layer) -> Callable[[tuple, Array], tuple[Array, Array]]:
    """Return (data, x) -> the prediction h(A₂ g(A₁ x)) and the penalty diag(w) A₁ x."""

    def maps(data: tuple[Array, Array, Array], x: Array) -> tuple[Array, Array]:
        A1, A2, w = data
        z = product(A1, x)
        hidden_values = _apply_layer(inner, z)
        return _apply_layer(outer, product(A2, hidden_values)), nonnegative(w) * z

    return maps

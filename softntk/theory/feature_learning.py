r"""Feature learning in one step: a large gradient step on the hidden weights, then ridge regression
on the readout.

With inputs x ~ N(0, I) and a target that depends on ⟨θ, x⟩ only, the first gradient of the hidden
weights is nearly of rank one and points along θ as far as the target has a linear part; a step that
is large enough turns features that see all directions alike into features that see θ. Ridge
regression on new samples tells what that is worth, against random features (no step).

    W₁ = W₀ − η ∇_W ½ΣΣ(F−Y)²,      prediction = φ₁(x)ᵀ (Φ₁ᵀΦ₁ + ρ)⁻¹ Φ₁ᵀ Y,   F = φ a.

Per neuron the gradient is of order n/√m, so η = s√m/n with s of order one moves every neuron by as
much as it is long.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk import networks
    >>> from softntk.theory import feature_learning as fl
    >>> d, m, n = 16, 128, 400
    >>> net = networks.two_layer("relu", width=m, sigma=d**-0.5)
    >>> _, params = net.init_fn(jax.random.key(0), (-1, d))
    >>> theta = jnp.eye(d)[0]
    >>> f = fl.target("polynomial", theta, degree=2)
    >>> x = jax.random.normal(jax.random.key(1), (n, d))
    >>> after = fl.one_step(net, params, x, f(x), 5 * m**0.5 / n)
    >>> found = fl.alignment(params, after, theta)
    >>> float(found.change) > 0.8 > 0.3 > float(found.before)
    True

Source: Ba et al. (2022), arXiv 2205.01445; Damian, Lee and Soltanolkotabi (2022), arXiv 2206.15144.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import (
    as_floating,
    as_rows,
    check_choice,
    check_key,
    check_number,
)
from softntk._core.validation.on_host import (
    Targets,
    as_kernel_of,
    as_targets,
    check_known,
    known_number,
)
from softntk._linalg.kernel_eigenbasis import cross_validated_ridge, decompose, target_unit
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.networks import Network, Parameters, Points, row_factors
from softntk.theory._arguments import (
    as_points,
    check_network,
    check_parameters,
    check_weights,
)
from softntk.theory._target_functions import TARGETS as TARGETS
from softntk.theory._target_functions import Directions, orthonormal
from softntk.theory._target_functions import hermite as hermite
from softntk.theory._target_functions import target as target


def one_step(
    net: Network, params: Parameters, x: Points, y: Targets, learning_rate: float
) -> Parameters:
    r"""Return the weights after one step of gradient descent on the hidden weights alone, W − η ∇_W
    ½ΣΣ(F−Y)².

    Args:
        net: the network; antisymmetric initialisation makes F zero, so that the step sees the
            targets only.
        params: its weights.
        x: [n, d].
        y: [n, k], or [n] for one output.
        learning_rate: η > 0, which may be traced; s√m/n with s of order one and more is a large
            step.

    Returns:
        The new :class:`~softntk.networks.Parameters`; readout and bias as they were. Weights are
        infinite, never NaN, where the gradient is beyond the largest number of the precision (a
        plain exponential far out).

    Raises:
        ValueError: net no network, or params not of it; learning_rate not positive; x or y of wrong
            shape or dtype, or not finite.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=8)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 2))
        >>> bool(jnp.all(one_step(net, params, jnp.eye(2), jnp.zeros((2, 1)), 0.1).hidden == params.hidden))  # F = 0 = Y
        True

    Source: Ba et al. (2022), arXiv 2205.01445 (one step on the first layer).
    """
    net = check_network("net", net)
    params = check_parameters("params", params, net)
    rate = check_number("learning_rate", learning_rate, above=0)
    x = as_points("x", x, params)
    y = as_targets("y", y, x.shape[0], params.readout.shape[1])
    return replace(
        params, hidden=_stepped(net, params, x, y, jnp.asarray(rate, params.hidden.dtype))
    )


@partial(jax.jit, static_argnums=0)
def _stepped(net: Network, params: Parameters, x: Array, y: Array, rate: Array) -> Array:
    outputs, pull_back = jax.vjp(
        lambda hidden: net.apply_fn(replace(params, hidden=hidden), x), params.hidden
    )
    common = jnp.promote_types(outputs.dtype, y.dtype)
    residual = outputs.astype(common) - y.astype(common)
    # The gradient is linear in the residual, which is of order one in its own unit.
    unit = binary_scale(residual)
    (slope,) = pull_back((residual / unit).astype(outputs.dtype))
    hidden = params.hidden - rate * unit[0, 0].astype(rate.dtype) * slope
    return jnp.where(jnp.isnan(hidden), jnp.inf, hidden)


@record
class Alignment:
    """How much of the hidden weights lies in the directions of the target, U with orthonormal
    columns; all in [0, 1].

    Attributes:
        before: ‖UᵀW₀‖_F/‖W₀‖_F; about √(r/d) for random weights.
        after: ‖UᵀW₁‖_F/‖W₁‖_F.
        change: ‖UᵀΔW‖_F/‖ΔW‖_F, zero without a change.
        leading: ‖Uᵀv‖ for the first left singular vector v of ΔW.
    """

    before: Float[Array, ""]
    after: Float[Array, ""]
    change: Float[Array, ""]
    leading: Float[Array, ""]


def alignment(params: Parameters, params_after: Parameters, direction: Directions) -> Alignment:
    r"""Return the alignment of the hidden weights, and of their change, with the direction (or
    directions) of the target.

    Args:
        params: weights before.
        params_after: and after.
        direction: [d], or [d, r] for r of them; they need not be orthonormal.

    Returns:
        :class:`Alignment`.

    Raises:
        ValueError: direction of wrong shape, not finite, or linearly dependent (zero).

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk.networks import Parameters
        >>> readout = jnp.ones((2, 1))
        >>> before, after = (Parameters(hidden=h, readout=readout) for h in (jnp.eye(2), jnp.array([[4.0, 3.0], [0.0, 1.0]])))
        >>> found = alignment(before, after, jnp.array([2.0, 0.0]))
        >>> round(float(found.before), 4), float(found.change)
        (0.7071, 1.0)

    Source: Ba et al. (2022), arXiv 2205.01445 (the gradient is nearly of rank one).
    """
    before = _checked_hidden("params", params)
    after = _checked_hidden("params_after", params_after)
    if after.shape != before.shape:
        raise ValueError(
            f"params_after must have hidden weights of the shape of params, {before.shape}, got {after.shape}. Both are of "
            "one network."
        )
    if params_after.readout.shape != params.readout.shape:
        raise ValueError(
            f"params_after must have the readout of params, {params.readout.shape}, got {params_after.readout.shape}. Both are "
            "of one network."
        )
    basis = orthonormal(direction, before.shape[0])
    change = after - before
    leading = jnp.linalg.svd(change / binary_scale(change), full_matrices=False)[0][:, :1]
    shares = [_share(basis, part) for part in (before, after, change)]
    still = jnp.all(change == 0)
    return Alignment(
        before=shares[0],
        after=shares[1],
        change=shares[2],
        leading=jnp.where(still, 0, _share(basis, leading)),
    )


def _checked_hidden(name: str, params: Parameters) -> Float[Array, "d m"]:
    hidden = check_weights(name, params).hidden
    return as_floating(f"{name}.hidden", hidden, half=False)


def _share(basis: Float[Array, "d r"], matrix: Float[Array, "d m"]) -> Array:
    matrix = matrix / binary_scale(matrix)
    whole = scaled_norm(matrix)
    inside = scaled_norm(jnp.matmul(basis.T, matrix, precision="highest").astype(matrix.dtype))
    return jnp.minimum(inside / jnp.where(whole > 0, whole, 1), 1)


def corrupt(
    kind: str,
    y: Targets,
    size: float,
    *,
    key: PRNGKeyArray | None = None,
    gram: Float[Array | np.ndarray, "n n"] | None = None,
) -> Float[Array, "n k"]:
    r"""Return labels with noise: ``gaussian``, sign ``flips``, or the worst of its size for a
    kernel, ``adversarial``.

    - gaussian: y + size·N(0, 1).
    - flips: −y for a share ``size`` of the points, drawn without replacement.
    - adversarial: y ± size √n q, q the eigenvector of the lowest eigenvalue of the kernel: of all
      noise e of that norm the one that costs an interpolant most, √(eᵀH⁻¹e). The sign is that which
      makes (y + e)ᵀH⁻¹(y + e) the larger.

    Args:
        kind: of the noise.
        y: [n, k], or [n] for one output.
        size: ≥ 0, which may be traced but for flips; a share of at most 1 for flips.
        key: for gaussian and flips.
        gram: H, for adversarial.

    Returns:
        [n, k].

    Raises:
        ValueError: kind unknown, size negative or a share above 1, key or gram missing, y integer
            or not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> float(jnp.sum(corrupt("flips", jnp.ones((10, 1)), 0.3, key=jax.random.key(0))))
        4.0

    Source: Zhang et al. (2017), arXiv 1611.03530 (random labels); Arora et al. (2019), arXiv
    1901.08584, section 5 (yᵀH⁻¹y).
    """
    kinds = {"gaussian": "key", "flips": "key", "adversarial": "gram"}
    check_choice("kind", kind, kinds)
    y = as_floating("y", y)
    y = as_rows("y", y[:, None] if y.ndim == 1 else y)
    samples = len(y)
    size = check_number("size", size, at_least=0, at_most=1 if kind == "flips" else None)
    if gram is not None:
        as_kernel_of(y, "gram", gram)
    key = None if key is None else check_key("key", key)
    if kind == "adversarial":
        if gram is None:
            raise ValueError(
                "gram is needed for adversarial noise, got None. Pass the kernel on the points of y, [n, n]."
            )
        check_known("y", y)
        q = decompose(gram).vectors[:, :1]
        signs = np.where(q.T @ np.asarray(y, np.float64) < 0, -1.0, 1.0)
        return y + jnp.asarray(size, y.dtype) * jnp.asarray(samples**0.5 * q * signs, y.dtype)
    if key is None:
        raise ValueError(f"key is needed for {kind} noise, got None. Pass e.g. jax.random.key(0).")
    if kind == "gaussian":
        return y + jnp.asarray(size, y.dtype) * jax.random.normal(key, y.shape, y.dtype)
    number = round(known_number("size", size) * samples)
    flipped = jnp.zeros(samples, bool).at[jax.random.permutation(key, samples)[:number]].set(True)
    return jnp.where(flipped[:, None], -y, y)


def features(net: Network, params: Parameters, x: Points) -> Float[Array, "n m"]:
    r"""Return φ(x), what the readout multiplies: F = φ a.

    Args:
        net: the network.
        params: its weights.
        x: [n, d].

    Returns:
        [n, m]; +inf in rows outside the domain.

    Raises:
        ValueError: net no network, or params not of it; x of wrong shape or dtype, or not finite.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=4)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 2))
        >>> round(float(jnp.sum(features(net, params, jnp.eye(2))[0])), 4)  # √m times a softmax
        2.0

    Source: MATHEMATICS.md#two-layer-networks.
    """
    net = check_network("net", net)
    params = check_parameters("params", params, net)
    x = as_points("x", x, params)
    rows = row_factors(net.architecture, params, x)
    return jnp.where(rows.valid[:, None], rows.features, jnp.inf)


def ridge_features(
    train: Float[Array | np.ndarray, "n m"],
    y: Targets,
    test: Float[Array | np.ndarray, "t m"],
    ridge: float | None = None,
) -> Float[Array, "t k"]:
    r"""Return the ridge regression on features, φ_test (ΦᵀΦ + ρ I)⁻¹ Φᵀ Y, through the singular
    values of Φ in float64.

    Args:
        train: Φ, features of the training points, [n, m].
        y: targets, [n, k], or [n] for one output.
        test: features of the test points, [t, m].
        ridge: ρ > 0; None for the one of generalised cross-validation on the training points, which
            uses no others.

    Returns:
        Predictions, [t, k]; zero where all training features are.

    Raises:
        ValueError: ridge not positive; features or targets of wrong shape or dtype, or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> phi = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> ridge_features(phi, phi @ jnp.array([[2.0], [3.0]]), 2 * phi[2:], ridge=1e-3).round(1)
        Array([[10.]], dtype=float32)

    Source: Hoerl and Kennard (1970), Technometrics 12(1), 55-67; Golub, Heath and Wahba (1979) for
    the choice of the ridge.
    """
    for name, values in (("train", train), ("y", y), ("test", test)):
        check_known(name, values)
    train = as_rows("train", train)
    test = as_rows("test", test)
    if test.shape[1] != train.shape[1]:
        raise ValueError(
            f"test must have as many features as train, got shapes {train.shape} and {test.shape}."
        )
    targets = np.asarray(as_targets("y", y, train.shape[0]), np.float64)
    ridge = None if ridge is None else known_number("ridge", ridge, above=0)
    # In units of the largest feature and the largest target; the ridge is in that of squared
    # features.
    unit = target_unit(np.asarray(train, np.float64))
    scale = target_unit(targets)
    left, sizes, right = np.linalg.svd(np.asarray(train, np.float64) / unit, full_matrices=False)
    components = left.T @ (targets / scale)
    if ridge is None:
        # Of what no feature reaches only the size matters: one more direction, and others without
        # targets.
        beyond = np.zeros((len(targets) - len(sizes), targets.shape[1]))
        missed = np.sum((targets / scale) ** 2, axis=0) - np.sum(components**2, axis=0)
        beyond[:1] = np.sqrt(np.maximum(missed, 0))
        values = np.append(sizes**2, np.zeros(len(beyond)))
        error = 2 * len(values) ** 0.5 * float(jnp.finfo(train.dtype).eps) * sizes[0]
        ridge, _ = cross_validated_ridge(
            values, np.concatenate([components, beyond]), max(error**2, 1e-300)
        )
    else:
        ridge = ridge / unit / unit
    denominators = sizes**2 + ridge
    factors = np.where(denominators > 0, sizes / np.where(denominators > 0, denominators, 1), 0)
    weights = right.T @ (components * factors[:, None])
    with np.errstate(over="ignore"):
        predictions = scale * (np.asarray(test, np.float64) / unit @ weights)
        return jnp.asarray(predictions, train.dtype)

r"""Feature learning by one large gradient step on the hidden weights, then ridge on the readout.

With inputs x ~ N(0, I) and a target that depends on ⟨θ, x⟩ only, the first gradient of the hidden
weights is nearly of rank one and points along θ as far as the target has a linear part. A step that
is large enough turns features that treat all directions equally into features that depend on θ.
Ridge regression on new samples measures the gain over random features (no step). With features φ
and readout a, F = φ a, the two parts are

    W₁ = W₀ − η ∇_W ½ΣΣ(F−Y)²,      prediction = φ₁(x)ᵀ (Φ₁ᵀΦ₁ + ρI)⁻¹ Φ₁ᵀ Y.

The gradient of one neuron is of order n/√m, so η = s√m/n with s of order one moves every neuron by
about its own length.

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
    >>> shares = fl.alignment(params, after, theta)
    >>> float(shares.change) > 0.8 > 0.3 > float(shares.before)
    True

Source: Ba et al. (2022), arXiv 2205.01445; Damian, Lee and Soltanolkotabi (2022), arXiv 2206.15144.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._core.validation import as_floating, as_rows, check_number
from softntk._core.validation.on_host import Targets, as_targets, check_known, known_number
from softntk._linalg.kernel_eigenbasis import cross_validated_ridge, target_unit
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.networks import Network, Parameters, Points, row_factors
from softntk.theory._arguments import (
    as_points,
    check_network,
    check_parameters,
    check_weights,
)
from softntk.theory._label_noise import corrupt as corrupt
from softntk.theory._target_functions import TARGETS as TARGETS
from softntk.theory._target_functions import Directions, orthonormalise
from softntk.theory._target_functions import hermite as hermite
from softntk.theory._target_functions import target as target


def one_step(
    net: Network, params: Parameters, x: Points, y: Targets, learning_rate: float
) -> Parameters:
    r"""Return the weights after one gradient step on the hidden weights, W − η ∇_W ½ΣΣ(F−Y)².

    Use it to see which directions of the input one large step already finds. Readout and bias stay.

    Args:
        net: the network; antisymmetric initialisation makes F zero, so that the step sees the
            targets only.
        params: its weights.
        x: [n, d].
        y: [n, k], or [n] for one output.
        learning_rate: η > 0, which may be traced; s√m/n with s of order one or more is a large
            step.

    Returns:
        The new :class:`~softntk.networks.Parameters`. Where the gradient is beyond the largest
        number of the precision (a plain exponential of large logits), weights are infinite, never
        NaN.

    Raises:
        ValueError: net no network, or params not of it; learning_rate not positive; x or y of wrong
            shape or dtype, or not finite.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=8)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 2))
        >>> after = one_step(net, params, jnp.eye(2), jnp.zeros((2, 1)), 0.1)
        >>> bool(jnp.all(after.hidden == params.hidden))  # F = 0 = Y
        True

    Source: Ba et al. (2022), arXiv 2205.01445 (one step on the first layer).
    """
    net = check_network("net", net)
    params = check_parameters("params", params, net)
    rate = check_number("learning_rate", learning_rate, above=0)
    x = as_points("x", x, params)
    y = as_targets("y", y, x.shape[0], params.readout.shape[1])
    step_size = jnp.asarray(rate, params.hidden.dtype)
    return replace(params, hidden=_step_hidden_weights(net, params, x, y, step_size))


@partial(jax.jit, static_argnums=0)
def _step_hidden_weights(
    net: Network, params: Parameters, x: Array, y: Array, step_size: Array
) -> Array:
    """Return W − η ∇_W ½‖F − Y‖², infinite where the gradient overflows."""
    outputs, pull_back = jax.vjp(
        lambda hidden: net.apply_fn(replace(params, hidden=hidden), x), params.hidden
    )
    common_dtype = jnp.promote_types(outputs.dtype, y.dtype)
    residual = outputs.astype(common_dtype) - y.astype(common_dtype)
    # The gradient is linear in the residual: pull back a residual of order one, then rescale, so
    # that products inside the backward pass neither over- nor underflow.
    residual_unit = binary_scale(residual)
    (gradient,) = pull_back((residual / residual_unit).astype(outputs.dtype))
    hidden = params.hidden - step_size * residual_unit[0, 0].astype(step_size.dtype) * gradient
    return jnp.where(jnp.isnan(hidden), jnp.inf, hidden)


@record
class Alignment:
    """Shares of the hidden weights that lie in the directions of the target; all in [0, 1].

    U, [d, r], is an orthonormal basis of the directions, and ΔW = W₁ − W₀.

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
    r"""Return the alignment of the hidden weights, and of their change, with the target directions.

    Use it after :func:`one_step`, or after any training, to measure feature learning.

    Args:
        params: weights before the training.
        params_after: weights after it.
        direction: [d], or [d, r] for r of them; they need not be orthonormal.

    Returns:
        :class:`Alignment`.

    Raises:
        ValueError: direction of wrong shape, not finite, zero, or with linearly dependent columns;
            params or params_after not the weights of one network, or in half precision.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk.networks import Parameters
        >>> readout = jnp.ones((2, 1))
        >>> before = Parameters(hidden=jnp.eye(2), readout=readout)
        >>> after = Parameters(hidden=jnp.array([[4.0, 3.0], [0.0, 1.0]]), readout=readout)
        >>> shares = alignment(before, after, jnp.array([2.0, 0.0]))
        >>> round(float(shares.before), 4), float(shares.change)
        (0.7071, 1.0)

    Source: Ba et al. (2022), arXiv 2205.01445 (the gradient is nearly of rank one).
    """
    # 1. Both sets of weights must be those of one network.
    initial_weights = _check_hidden("params", params)
    final_weights = _check_hidden("params_after", params_after)
    if final_weights.shape != initial_weights.shape:
        raise ValueError(
            "params_after must have hidden weights of the shape of params, "
            f"{initial_weights.shape}, got {final_weights.shape}. Both are of one network."
        )
    if params_after.readout.shape != params.readout.shape:
        raise ValueError(
            f"params_after must have the readout of params, {params.readout.shape}, "
            f"got {params_after.readout.shape}. Both are of one network."
        )
    # 2. Shares of W₀, W₁, ΔW and of the first left singular vector of ΔW in the span of U.
    basis = orthonormalise(direction, initial_weights.shape[0])
    change = final_weights - initial_weights
    leading = jnp.linalg.svd(change / binary_scale(change), full_matrices=False)[0][:, :1]
    shares = [_share_in_span(basis, matrix) for matrix in (initial_weights, final_weights, change)]
    # Without a change the singular vector is arbitrary.
    is_unchanged = jnp.all(change == 0)
    return Alignment(
        before=shares[0],
        after=shares[1],
        change=shares[2],
        leading=jnp.where(is_unchanged, 0, _share_in_span(basis, leading)),
    )


def _check_hidden(name: str, params: Parameters) -> Float[Array, "d m"]:
    """Return the hidden weights; refuse half precision, which LAPACK does not have."""
    hidden = check_weights(name, params).hidden
    return as_floating(f"{name}.hidden", hidden, half=False)


def _share_in_span(basis: Float[Array, "d r"], matrix: Float[Array, "d m"]) -> Array:
    """Return ‖UᵀM‖_F/‖M‖_F, zero for M = 0."""
    # A quotient of norms, in the unit of the matrix.
    matrix = matrix / binary_scale(matrix)
    total_norm = scaled_norm(matrix)
    projection = jnp.matmul(basis.T, matrix, precision="highest").astype(matrix.dtype)
    projected_norm = scaled_norm(projection)
    # Rounding may carry the quotient past one.
    return jnp.minimum(projected_norm / jnp.where(total_norm > 0, total_norm, 1), 1)


def features(net: Network, params: Parameters, x: Points) -> Float[Array, "n m"]:
    r"""Return the features φ(x) that the readout multiplies, F = φ a.

    Use them with :func:`ridge_features` to refit the readout after a step on the hidden weights.

    Args:
        net: the network.
        params: its weights.
        x: [n, d].

    Returns:
        φ, [n, m]; +inf in rows of x outside the network's domain.

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
    # Rows whose normaliser vanishes or overflows are marked, and become infinite.
    rows = row_factors(net.architecture, params, x)
    return jnp.where(rows.valid[:, None], rows.features, jnp.inf)


def ridge_features(
    train: Float[Array | np.ndarray, "n m"],
    y: Targets,
    test: Float[Array | np.ndarray, "t m"],
    ridge: float | None = None,
) -> Float[Array, "t k"]:
    r"""Return the ridge regression on features, φ_test (ΦᵀΦ + ρ I)⁻¹ Φᵀ Y.

    Use it to compare learned with random :func:`features`. It is computed from the singular values
    of Φ, in float64 on the host.

    Args:
        train: Φ, features of the training points, [n, m].
        y: targets, [n, k], or [n] for one output.
        test: features of the test points, [t, m].
        ridge: ρ > 0; None chooses it by generalised cross-validation on the training points.

    Returns:
        Predictions, [t, k]; zero if all training features are zero.

    Raises:
        ValueError: ridge not positive; features or targets of wrong shape or dtype, traced, or not
            finite.

    Example:
        >>> import jax.numpy as jnp
        >>> phi = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> ridge_features(phi, phi @ jnp.array([[2.0], [3.0]]), 2 * phi[2:], ridge=1e-3).round(1)
        Array([[10.]], dtype=float32)

    Source: Hoerl and Kennard (1970), Technometrics 12(1), 55-67; Golub, Heath and Wahba (1979) for
    the choice of the ridge.
    """
    # 1. Check the arguments.
    for name, array in (("train", train), ("y", y), ("test", test)):
        check_known(name, array)
    train = as_rows("train", train)
    test = as_rows("test", test)
    if test.shape[1] != train.shape[1]:
        raise ValueError(
            f"test must have as many features as train, got shapes {train.shape} and {test.shape}."
        )
    targets = np.asarray(as_targets("y", y, train.shape[0]), np.float64)
    ridge = None if ridge is None else known_number("ridge", ridge, above=0)
    # 2. Φ = L diag(σ) R, in units of the largest feature and of the largest target.
    feature_unit = target_unit(np.asarray(train, np.float64))
    scale = target_unit(targets)
    scaled_features = np.asarray(train, np.float64) / feature_unit
    left_vectors, singular_values, right_vectors = np.linalg.svd(
        scaled_features, full_matrices=False
    )
    components = left_vectors.T @ (targets / scale)
    # 3. The ridge, in the unit of squared features.
    if ridge is None:
        ridge = _choose_ridge(
            targets / scale, singular_values, components, float(jnp.finfo(train.dtype).eps)
        )
    else:
        ridge = ridge / feature_unit / feature_unit
    # 4. Filter the components: σ/(σ² + ρ), zero where both are.
    denominators = singular_values**2 + ridge
    is_positive = denominators > 0
    factors = np.where(is_positive, singular_values / np.where(is_positive, denominators, 1), 0)
    weights = right_vectors.T @ (components * factors[:, None])
    with np.errstate(over="ignore"):
        predictions = scale * (np.asarray(test, np.float64) / feature_unit @ weights)
        return jnp.asarray(predictions, train.dtype)


def _choose_ridge(
    targets: Float[np.ndarray, "n k"],
    singular_values: Float[np.ndarray, " r"],
    components: Float[np.ndarray, "r k"],
    eps: float,
) -> float:
    """Return the ridge that generalised cross-validation chooses, above rounding of the features.

    The part of the targets outside the span of Φ enters by its norm only. So one extra direction of
    eigenvalue zero carries all of it, and the components along the others are zero.
    """
    # The norm of that part, by Pythagoras.
    outside = np.zeros((len(targets) - len(singular_values), targets.shape[1]))
    unreached = np.sum(targets**2, axis=0) - np.sum(components**2, axis=0)
    outside[:1] = np.sqrt(np.maximum(unreached, 0))
    eigenvalues = np.append(singular_values**2, np.zeros(len(outside)))
    error = 2 * len(eigenvalues) ** 0.5 * eps * singular_values[0]
    ridge, _ = cross_validated_ridge(
        eigenvalues, np.concatenate([components, outside]), max(error**2, 1e-300)
    )
    return ridge

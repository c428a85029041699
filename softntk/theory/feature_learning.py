r"""Feature learning in one step: a large gradient step on the hidden weights, then ridge regression on the readout.

With inputs x ~ N(0, I) and a target that depends on ⟨θ, x⟩ only, the first gradient of the hidden weights is nearly of rank one
and points along θ as far as the target has a linear part; a step that is large enough turns features that see all directions
alike into features that see θ. Ridge regression on new samples tells what that is worth, against random features (no step).

    W₁ = W₀ − η ∇_W ½ΣΣ(F−Y)²,      prediction = φ₁(x)ᵀ (Φ₁ᵀΦ₁ + ρ)⁻¹ Φ₁ᵀ Y,   F = φ a.

Per neuron the gradient is of order n/√m, so η = s√m/n with s of order one moves every neuron by as much as it is long.

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

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import activations
from softntk._records import record
from softntk._validation import check_finite, check_floating, check_positive, check_positive_int, check_rows
from softntk.networks import Network, Parameters, Points, row_factors
from softntk.theory._spectral import cross_validated_ridge, decompose

Targets = Float[Array | np.ndarray, "n k"]
Directions = Float[Array | np.ndarray, " d"] | Float[Array | np.ndarray, "d r"]


def one_step(net: Network, params: Parameters, x: Points, y: Targets, learning_rate: float) -> Parameters:
    r"""The weights after one step of gradient descent on the hidden weights alone, W − η ∇_W ½ΣΣ(F−Y)².

    Args:
        net: the network; antisymmetric initialisation makes F zero, so that the step sees the targets only.
        params: its weights.
        x: [n, d].
        y: [n, k].
        learning_rate: η > 0; s√m/n with s of order one and more is a large step.

    Returns:
        The new :class:`~softntk.networks.Parameters`; readout and bias as they were.

    Raises:
        ValueError: learning_rate not positive; x or y of wrong shape or dtype, or not finite.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=8)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 2))
        >>> bool(jnp.all(one_step(net, params, jnp.eye(2), jnp.zeros((2, 1)), 0.1).hidden == params.hidden))  # F = 0 = Y
        True

    Source: Ba et al. (2022), arXiv 2205.01445 (one step on the first layer).
    """
    check_positive("learning_rate", learning_rate)
    check_rows("x", x)
    check_floating("y", y)
    if jnp.shape(y) != (x.shape[0], params.readout.shape[1]):
        raise ValueError(f"y must have shape [n, k], {(x.shape[0], params.readout.shape[1])}, got {jnp.shape(y)}.")
    check_finite("y", y)
    slope = _hidden_gradient(net, params, jnp.asarray(x), jnp.asarray(y))
    return replace(params, hidden=params.hidden - learning_rate * slope)


@partial(jax.jit, static_argnums=0)
def _hidden_gradient(net: Network, params: Parameters, x: Array, y: Array) -> Array:
    loss = lambda hidden: 0.5 * jnp.sum((net.apply_fn(replace(params, hidden=hidden), x) - y) ** 2)
    return jax.grad(loss)(params.hidden)


@record
class Alignment:
    """How much of the hidden weights lies in the directions of the target, U with orthonormal columns; all in [0, 1].

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
    r"""Alignment of the hidden weights, and of their change, with the direction (or directions) of the target.

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
    basis = _orthonormal(direction, params.hidden.shape[0])
    change = params_after.hidden - params.hidden
    leading = jnp.linalg.svd(change, full_matrices=False)[0][:, :1]
    shares = [_share(basis, part) for part in (params.hidden, params_after.hidden, change)]
    still = jnp.all(change == 0)
    return Alignment(before=shares[0], after=shares[1], change=shares[2], leading=jnp.where(still, 0, _share(basis, leading)))


def _share(basis: Float[Array, "d r"], matrix: Float[Array, "d m"]) -> Array:
    whole = jnp.sqrt(jnp.sum(matrix**2))
    inside = jnp.sqrt(jnp.sum(jnp.matmul(basis.T, matrix, precision="highest") ** 2))
    return jnp.minimum(inside / jnp.where(whole > 0, whole, 1), 1)


def _orthonormal(direction: Directions, d: int) -> Float[Array, "d r"]:
    check_floating("direction", direction)
    if jnp.ndim(direction) not in (1, 2) or jnp.shape(direction)[0] != d:
        raise ValueError(f"direction must have shape [d] or [d, r] with d = {d}, got {jnp.shape(direction)}.")
    check_finite("direction", direction)
    columns = jnp.asarray(direction).reshape(d, -1)
    basis, triangle = jnp.linalg.qr(columns)
    pivots = np.abs(np.asarray(jnp.diagonal(triangle), np.float64))
    if columns.shape[1] > d or not pivots.min() > 1e-5 * pivots.max():
        raise ValueError(
            "direction must have linearly independent columns that are not zero. Leave out those that repeat others."
        )
    return basis


def hermite(degree: int, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """He_k(z)/√k!, the Hermite polynomials that are orthonormal under N(0, 1), by √(k+1) h_{k+1} = z h_k − √k h_{k−1}.

    Args:
        degree: k ≥ 0.
        z: any shape.

    Returns:
        The values, of the shape of z.

    Raises:
        ValueError: degree negative or no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(hermite(2, jnp.array(3.0)) * 2**0.5), 4)  # z² − 1
        8.0

    Source: Szegő (1939), Orthogonal Polynomials, 5.5.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
        raise ValueError(f"degree must be an integer of at least 0, got {degree!r}.")
    before, now = jnp.zeros_like(z), jnp.ones_like(z)
    for j in range(degree):
        before, now = now, (z * now - math.sqrt(j) * before) / math.sqrt(j + 1)
    return now


def _polynomial(degree: int, z: Array) -> Array:
    return sum((hermite(j, z) for j in range(1, degree + 1)), jnp.zeros_like(z)) / math.sqrt(degree)


TARGETS: dict[str, Callable[[int, Array], Array]] = {
    "hermite": lambda degree, z: hermite(degree, z[:, 0]),
    "polynomial": lambda degree, z: _polynomial(degree, z[:, 0]),
    "staircase": lambda degree, z: jnp.sum(jnp.cumprod(z, axis=1), axis=1) / math.sqrt(z.shape[1]),
    "composition": lambda degree, z: jnp.tanh(_polynomial(degree, z[:, 0])),
}
"""Functions of the degree and of z = Uᵀx, [n, r] -> [n]; an entry of your own is known to :func:`target`."""


def target(kind: str, direction: Directions, degree: int = 2) -> Callable[[Points], Float[Array, "n 1"]]:
    r"""A target that depends on x through a few directions, z = Uᵀx with U orthonormal.

    ===========  ========================  =====================================================================================
    kind         f(x)                      for x ~ N(0, I)
    ===========  ========================  =====================================================================================
    hermite      He_k(z)/√k!               single index: the first gradient sees θ to order d^{(1−k)/2} only
    polynomial   Σ_{1≤j≤k} He_j(z)/√(k j!) single index with every degree up to k: the linear part shows the way to the others
    staircase    Σ_j z₁⋯z_j/√r             hierarchical: each of the r directions can be found once the ones before are known
    composition  tanh of the polynomial    hierarchical, and bounded
    ===========  ========================  =====================================================================================

    All have variance 1, but for the last, which is in (−1, 1).

    Args:
        kind: a name in ``TARGETS``.
        direction: [d] or [d, r]; more than one is used by the staircase alone. Orthonormalised, signs kept.
        degree: k ≥ 1; the staircase's is r.

    Returns:
        ``f(x [n, d]) -> [n, 1]``.

    Raises:
        ValueError: kind unknown, degree not a positive integer, direction as for :func:`alignment`.

    Example:
        >>> import jax.numpy as jnp
        >>> target("hermite", jnp.array([1.0, 0.0]), degree=2)(jnp.array([[3.0, 7.0]]))  # (9 − 1)/√2
        Array([[5.656854]], dtype=float32)

    Source: Damian, Lee and Soltanolkotabi (2022), arXiv 2206.15144; Abbe, Boix-Adsera and Misiakiewicz, arXiv 2202.08658.
    """
    if kind not in TARGETS:
        raise ValueError(activations.unknown("kind", kind, TARGETS))
    check_positive_int("degree", degree)
    basis = _orthonormal(direction, len(direction))
    signs = jnp.sign(jnp.sum(basis * jnp.asarray(direction).reshape(basis.shape), axis=0, keepdims=True))

    def function(x: Points) -> Float[Array, "n 1"]:
        check_rows("x", x)
        if x.shape[1] != len(basis):
            raise ValueError(f"x must have the {len(basis)} features of direction, got shape {x.shape}.")
        return TARGETS[kind](degree, jnp.matmul(x, basis * signs, precision="highest"))[:, None]

    return function


def corrupt(
    kind: str, y: Targets, size: float, *, key: PRNGKeyArray | None = None, gram: Float[Array | np.ndarray, "n n"] | None = None
) -> Float[Array, "n k"]:
    r"""Labels with noise: ``gaussian``, sign ``flips``, or the worst of its size for a kernel, ``adversarial``.

    - gaussian: y + size·N(0, 1).
    - flips: −y for a share ``size`` of the points, drawn without replacement.
    - adversarial: y ± size √n q, q the eigenvector of the lowest eigenvalue of the kernel: of all noise e of that norm
      the one that costs an interpolant most, √(eᵀH⁻¹e). The sign is that which makes (y + e)ᵀH⁻¹(y + e) the larger.

    Args:
        kind: of the noise.
        y: [n, k].
        size: ≥ 0; a share of at most 1 for flips.
        key: for gaussian and flips.
        gram: H, for adversarial.

    Returns:
        [n, k].

    Raises:
        ValueError: kind unknown, size negative or a share above 1, key or gram missing, y integer or not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> float(jnp.sum(corrupt("flips", jnp.ones((10, 1)), 0.3, key=jax.random.key(0))))
        4.0

    Source: Zhang et al. (2017), arXiv 1611.03530 (random labels); Arora et al. (2019), arXiv 1901.08584, section 5 (yᵀH⁻¹y).
    """
    kinds = {"gaussian": "key", "flips": "key", "adversarial": "gram"}
    if kind not in kinds:
        raise ValueError(activations.unknown("kind", kind, kinds))
    check_rows("y", y)
    if not (np.ndim(size) == 0 and size >= 0 and np.isfinite(size)) or (kind == "flips" and size > 1):
        raise ValueError(f"size must be at least 0 and finite, and a share of at most 1 for flips, got {size!r}.")
    y = jnp.asarray(y)
    if kind == "adversarial":
        if gram is None:
            raise ValueError("gram is needed for adversarial noise, got None. Pass the kernel on the points of y, [n, n].")
        if jnp.shape(gram) != (len(y), len(y)):
            raise ValueError(f"gram must have shape [n, n] for y of shape {y.shape}, got {jnp.shape(gram)}.")
        q = decompose(gram).vectors[:, :1]
        signs = np.where(q.T @ np.asarray(y, np.float64) < 0, -1.0, 1.0)
        return y + jnp.asarray(size * len(y) ** 0.5 * q * signs, y.dtype)
    if key is None:
        raise ValueError(f"key is needed for {kind} noise, got None. Pass e.g. jax.random.key(0).")
    if kind == "gaussian":
        return y + size * jax.random.normal(key, y.shape, y.dtype)
    flipped = jnp.zeros(len(y), bool).at[jax.random.permutation(key, len(y))[: round(size * len(y))]].set(True)
    return jnp.where(flipped[:, None], -y, y)


def features(net: Network, params: Parameters, x: Points) -> Float[Array, "n m"]:
    r"""φ(x), what the readout multiplies: F = φ a.

    Args:
        net: the network.
        params: its weights.
        x: [n, d].

    Returns:
        [n, m]; +inf in rows outside the domain.

    Raises:
        ValueError: x of wrong shape or dtype, or not finite.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=4)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 2))
        >>> round(float(jnp.sum(features(net, params, jnp.eye(2))[0])), 4)  # √m times a softmax
        2.0

    Source: MATH.md section 2.
    """
    check_rows("x", x)
    if x.shape[1] != params.hidden.shape[0]:
        raise ValueError(f"x must have the {params.hidden.shape[0]} features that params.hidden has, got shape {x.shape}.")
    rows = row_factors(net.architecture, params, jnp.asarray(x))
    return jnp.where(rows.valid[:, None], rows.features, jnp.inf)


def ridge_features(
    train: Float[Array | np.ndarray, "n m"],
    y: Targets,
    test: Float[Array | np.ndarray, "t m"],
    ridge: float | None = None,
) -> Float[Array, "t k"]:
    r"""Ridge regression on features: φ_test (ΦᵀΦ + ρ I)⁻¹ Φᵀ Y, through the singular values of Φ in float64 on the host.

    Args:
        train: Φ, features of the training points, [n, m].
        y: targets, [n, k].
        test: features of the test points, [t, m].
        ridge: ρ > 0; None for the one of generalised cross-validation on the training points, which uses no others.

    Returns:
        Predictions, [t, k].

    Raises:
        ValueError: ridge not positive; features or targets of wrong shape or dtype, or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> phi = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> ridge_features(phi, phi @ jnp.array([[2.0], [3.0]]), 2 * phi[2:], ridge=1e-3).round(1)
        Array([[10.]], dtype=float32)

    Source: Hoerl and Kennard (1970), Technometrics 12(1), 55-67; Golub, Heath and Wahba (1979) for the choice of the ridge.
    """
    for name, values in (("train", train), ("y", y), ("test", test)):
        check_rows(name, values)
    if jnp.shape(test)[1] != jnp.shape(train)[1]:
        raise ValueError(f"test must have as many features as train, got shapes {jnp.shape(train)} and {jnp.shape(test)}.")
    if len(y) != len(train):
        raise ValueError(f"y must have the {len(train)} rows of train, got shape {jnp.shape(y)}.")
    left, sizes, right = np.linalg.svd(np.asarray(train, np.float64), full_matrices=False)
    targets = np.asarray(y, np.float64)
    components = left.T @ targets
    if ridge is None:
        # Of what no feature reaches only the size matters: one more direction, and others without targets.
        beyond = np.zeros((len(targets) - len(sizes), targets.shape[1]))
        beyond[:1] = np.sqrt(np.maximum(np.sum(targets**2, axis=0) - np.sum(components**2, axis=0), 0))
        values = np.append(sizes**2, np.zeros(len(beyond)))
        error = 2 * len(values) ** 0.5 * float(jnp.finfo(jnp.result_type(train)).eps) * sizes[0]
        ridge, _ = cross_validated_ridge(values, np.concatenate([components, beyond]), max(error**2, 1e-300))
    check_positive("ridge", ridge)
    weights = right.T @ (components * (sizes / (sizes**2 + ridge))[:, None])
    return jnp.asarray(np.asarray(test, np.float64) @ weights, jnp.result_type(train))

"""Check which parts of neural_tangents work on this Python and JAX: ``python -m softntk.nt``.

Each part runs a small real case and is compared with a direct computation, in float64.
"""

import contextlib
import importlib.util
import platform
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, PyTree

from softntk import nt

# Largest difference from the direct computation, relative to its largest entry.
RELATIVE_TOLERANCE = 1e-6


class Row(NamedTuple):
    """One part of neural_tangents.

    Attributes:
        part: the name of the part.
        case: what was run, and against what.
        error: relative to the largest entry of the direct computation; NaN if it did not run.
        problem: what it raised, or "".
    """

    part: str
    case: str
    error: float
    problem: str

    @property
    def works(self) -> bool:
        """True if it ran and agrees."""
        return not self.problem and self.error <= RELATIVE_TOLERANCE


# Result of neural_tangents, and of the direct computation.
Pair = tuple[Any, Any]
# Name, case, and the function that runs both.
Part = tuple[str, str, Callable[[], Pair]]


def _points(n: int, *shape: int) -> np.ndarray:
    """Return n random points; equal for equal n."""
    return np.random.default_rng(n).normal(size=(n, *shape))


def _dense() -> tuple[Any, ...]:
    """Return a fully connected network of one hidden layer."""
    return nt.stax.serial(nt.stax.Dense(12, b_std=0.1), nt.stax.Erf(), nt.stax.Dense(2))


def _convolutional() -> tuple[Any, ...]:
    """Return a convolutional network of one hidden layer."""
    return nt.stax.serial(
        nt.stax.Conv(4, (3, 3)),
        nt.stax.Relu(),
        nt.stax.AvgPool((2, 2)),
        nt.stax.Flatten(),
        nt.stax.Dense(2),
    )


def _jacobian(f: Callable, params: PyTree, x: np.ndarray) -> np.ndarray:
    """Return the Jacobian of the two outputs at each point in the parameters, [n, 2, p]."""
    leaves = jax.tree.leaves(jax.jacobian(f)(params, jnp.asarray(x)))
    return np.concatenate([np.asarray(leaf).reshape(len(x), 2, -1) for leaf in leaves], axis=-1)


def _jacobian_product(f: Callable, params: PyTree, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Return J(x1) J(x2)ᵀ, [n1, n2, 2, 2]."""
    # i, j: points; l, q: outputs; p: parameters
    return np.einsum("ilp,jqp->ijlq", _jacobian(f, params, x1), _jacobian(f, params, x2))


def _limits() -> Iterator[Part]:
    """Yield the parts about kernels of infinite width."""

    def relu() -> Pair:
        x = _points(4, 3)
        w_std = 1.3
        hidden = nt.stax.Dense(1, W_std=w_std)
        kernel_fn = nt.stax.serial(hidden, nt.stax.Relu(), nt.stax.Dense(1))[2]
        # The kernels of Cho and Saul (2009).
        q = w_std**2 * x @ x.T / 3
        norm_products = np.sqrt(np.outer(np.diag(q), np.diag(q)))
        theta = np.arccos(np.clip(q / norm_products, -1, 1))
        derivative_kernel = (np.pi - theta) / (2 * np.pi)
        nngp = norm_products * np.sin(theta) / (2 * np.pi) + derivative_kernel * q
        direct_result = np.stack([nngp, nngp + q * derivative_kernel])
        return np.stack(kernel_fn(x, None, ("nngp", "ntk"))), direct_result

    def pooled() -> Pair:
        x = _points(2, 3, 3, 2)
        # The kernel of the pooled network is the mean over all pairs of pixels.
        conv_layer = nt.stax.Conv(1, (1, 1))
        pixel_kernel_fn = nt.stax.serial(conv_layer, nt.stax.Relu())[2]
        kernel_fn = nt.stax.serial(conv_layer, nt.stax.Relu(), nt.stax.GlobalAvgPool())[2]
        pixel_kernel = pixel_kernel_fn(x, None, "nngp", diagonal_spatial=False)
        return kernel_fn(x, None, "nngp"), np.mean(pixel_kernel, axis=(2, 3, 4, 5))

    def masked() -> Pair:
        x = _points(3, 5, 2)
        # Two masked positions after five others: the kernel is that of the five.
        padded_points = np.concatenate([x, np.full((3, 2, 2), 99.0)], axis=1)
        pooling_layers = (nt.stax.Conv(1, (1,)), nt.stax.Relu(), nt.stax.GlobalAvgPool())
        kernel_fn = nt.stax.serial(*pooling_layers)[2]
        return kernel_fn(padded_points, None, "ntk", mask_constant=99.0), kernel_fn(x, None, "ntk")

    def batched() -> Pair:
        x1 = _points(4, 3)
        x2 = _points(6, 3)
        kernel_fn = _dense()[2]
        return nt.batch(kernel_fn, batch_size=2)(x1, x2, "ntk"), kernel_fn(x1, x2, "ntk")

    yield "stax", "Dense, Relu: the arc-cosine kernels", relu
    yield "stax, images", "Conv, GlobalAvgPool: the mean over pixels", pooled
    yield "stax, masks", "masked positions: the shorter sequence", masked
    yield "batch", "blocks: the whole kernel", batched


def _empirical() -> Iterator[Part]:
    """Yield the parts about kernels of networks with parameters."""

    def kernel(build: Callable, x1: np.ndarray, x2: np.ndarray, implementation: IntEnum) -> Pair:
        init_fn, apply_fn = build()[:2]
        params = init_fn(jax.random.key(0), x1.shape)[1]
        ntk_options = {"trace_axes": (), "vmap_axes": 0, "implementation": implementation}
        computed = nt.empirical_ntk_fn(apply_fn, **ntk_options)(x1, x2, params)
        return computed, _jacobian_product(apply_fn, params, x1, x2)

    # 1. Every implementation on every network.
    tested_networks = {
        "fully connected": (_dense, _points(3, 4), _points(2, 4)),
        "convolutional": (_convolutional, _points(3, 6, 6, 2), _points(2, 6, 6, 2)),
    }
    if importlib.util.find_spec("flax") is not None:
        tested_networks["flax"] = (_flax, _points(3, 4), _points(2, 4))
    for implementation in nt.NtkImplementation:
        for name, arguments in tested_networks.items():
            part_name = f"empirical_ntk_fn, {implementation.name}"
            case = f"{name}: the product of Jacobians"
            yield part_name, case, partial(kernel, *arguments, implementation)

    # 2. Products, samples and expansions.
    def products() -> Pair:
        init_fn, apply_fn = _dense()[:2]
        params = init_fn(jax.random.key(0), (3, 4))[1]
        x = _points(3, 4)
        v = _points(3, 2)
        direct_result = np.einsum("ijlq,jq->il", _jacobian_product(apply_fn, params, x, x), v)
        return nt.empirical_ntk_vp_fn(apply_fn, x, None, params)(v), direct_result

    def monte_carlo() -> Pair:
        init_fn, apply_fn, _ = _dense()
        x = _points(3, 4)
        # The keys are split as neural_tangents does.
        key = jax.random.key(0)
        drawn_outputs = []
        for _ in range(5):
            key, draw_key = jax.random.split(key)
            init_key = jax.random.split(draw_key)[0]
            drawn_outputs.append(apply_fn(init_fn(init_key, x.shape)[1], x))
        sampled_kernel = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), 5)(
            x, None, "nngp"
        )
        return sampled_kernel, np.mean([f @ f.T / 2 for f in drawn_outputs], axis=0)

    def expansions() -> Pair:
        init_fn, apply_fn, _ = _dense()
        x = _points(3, 4)
        params = init_fn(jax.random.key(0), x.shape)[1]
        scaled_params = jax.tree.map(lambda leaf: 1.1 * leaf, params)

        def along_line(t: Any) -> Array:
            return apply_fn(jax.tree.map(lambda leaf: (1 + t) * leaf, params), x)

        # Derivatives along (1 + t) θ at t = 0; the expansions are evaluated at t = 0.1.
        first_derivative = jax.jacfwd(along_line)
        second_derivative = jax.jacfwd(first_derivative)
        taylor_terms = [
            along_line(0.0),
            0.1 * first_derivative(0.0),
            0.005 * second_derivative(0.0),
        ]
        computed = [
            nt.linearize(apply_fn, params)(scaled_params, x),
            nt.taylor_expand(apply_fn, params, 2)(scaled_params, x),
        ]
        return np.stack(computed), np.stack([taylor_terms[0] + taylor_terms[1], sum(taylor_terms)])

    yield "empirical_ntk_vp_fn", "a product: with the product of Jacobians", products
    yield "monte_carlo_kernel_fn", "five draws: the covariance of their outputs", monte_carlo
    yield "linearize, taylor_expand", "two orders: derivatives along the line", expansions


def _flax() -> tuple[Any, Any]:
    """Return a fully connected network of flax, as (init_fn, apply_fn)."""
    from flax import linen  # pyright: ignore[reportMissingImports]

    class Perceptron(linen.Module):
        """A network of one hidden layer."""

        @linen.compact
        def __call__(self, x: Array) -> Array:
            hidden = jnp.tanh(linen.Dense(8, param_dtype=x.dtype)(x))
            return linen.Dense(2, param_dtype=x.dtype)(hidden)

    network = Perceptron()
    return lambda key, shape: (None, network.init(key, jnp.zeros(shape))), network.apply


class _Regression(NamedTuple):
    """A regression problem for ``nt.predict``.

    Attributes:
        kernel_fn: the kernel function of the network.
        x: training points.
        x_test: test points.
        y: targets.
        gram: NTK of the training points.
        cross: NTK of test and training points.
    """

    kernel_fn: Callable
    x: np.ndarray
    x_test: np.ndarray
    y: np.ndarray
    gram: np.ndarray
    cross: np.ndarray


def _regression() -> _Regression:
    """Return a regression problem of six training and three test points."""
    x = _points(6, 4)
    x_test = _points(3, 4)
    kernel_fn = _dense()[2]
    gram = np.asarray(kernel_fn(x, None, "ntk"))
    cross = np.asarray(kernel_fn(x_test, x, "ntk"))
    return _Regression(kernel_fn, x, x_test, _points(6, 2), gram, cross)


def _predictions() -> Iterator[Part]:
    """Yield the parts about predictions of infinitely wide networks."""

    def flow(gram: np.ndarray, cross: np.ndarray, y: np.ndarray, t: float) -> np.ndarray:
        # Gradient flow from zero on the mean squared loss: cross gram⁻¹ (1 − e^{−t gram/|y|}) y.
        return cross @ np.linalg.solve(gram, y - scipy.linalg.expm(-gram * t / y.size) @ y)

    def ensemble() -> Pair:
        p = _regression()
        predict = nt.predict.gradient_descent_mse_ensemble(p.kernel_fn, p.x, p.y)
        predicted_values = predict(t=5.0, x_test=p.x_test, get="ntk")
        return predicted_values, flow(p.gram, p.cross, p.y, 5.0)

    def mse() -> Pair:
        p = _regression()
        predict = nt.predict.gradient_descent_mse(p.gram, p.y)
        predicted_values = predict(5.0, np.zeros_like(p.y), np.zeros((3, 2)), p.cross)
        direct_result = [flow(p.gram, p.gram, p.y, 5.0), flow(p.gram, p.cross, p.y, 5.0)]
        return np.concatenate(predicted_values), np.concatenate(direct_result)

    def ode() -> Pair:
        p = _regression()
        # The loss is the mean squared one, so that the flow is linear.
        predict = nt.predict.gradient_descent(
            lambda f, y: 0.5 * jnp.mean((f - y) ** 2), p.gram, p.y
        )
        return predict(5.0, np.zeros_like(p.y)), flow(p.gram, p.gram, p.y, 5.0)

    def posterior() -> Pair:
        p = _regression()
        gram = p.kernel_fn(p.x, None, "nngp")
        cross = p.kernel_fn(p.x_test, p.x, "nngp")
        predicted_values = nt.predict.gp_inference(gram, p.y)("nngp", cross)
        return predicted_values, cross @ np.linalg.solve(gram, p.y)

    def rate() -> Pair:
        p = _regression()
        # 2/λ_max of the Hessian of the loss, which is divided by the number of targets.
        largest_eigenvalue = np.linalg.eigvalsh(p.gram)[-1]
        return nt.predict.max_learning_rate(p.gram, p.y.size), 2 * p.y.size / largest_eigenvalue

    yield "predict.gradient_descent_mse_ensemble", "finite time: the matrix exponential", ensemble
    yield "predict.gradient_descent_mse", "training and test points: the matrix exponential", mse
    yield "predict.gradient_descent", "the differential equation: the matrix exponential", ode
    yield "predict.gp_inference", "the mean: a linear solve", posterior
    yield "predict.max_learning_rate", "the largest eigenvalue, dense", rate


def parts() -> list[Part]:
    """Return all parts: name, case, and the function that runs it."""
    return [*_limits(), *_empirical(), *_predictions()]


def check(part: Part) -> Row:
    """Run one part, and return whether it agrees with the direct computation."""
    name, case, run = part
    try:
        # Standard output is discarded: AUTO prints its operation counts.
        with jax.enable_x64(True), contextlib.redirect_stdout(None):
            actual, desired = (np.asarray(value, np.float64) for value in run())
        if actual.shape != desired.shape:
            return Row(name, case, float("nan"), f"shape {actual.shape} instead of {desired.shape}")
        error = float(np.max(np.abs(actual - desired)) / np.max(np.abs(desired)))
        return Row(name, case, error, "")
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else ""
        return Row(name, case, float("nan"), f"{type(error).__name__}: {first_line}")


def main() -> int:
    """Print the table; return 1 if any part does not work."""
    print(
        f"neural_tangents {nt.VERSION} through softntk.nt, Python {platform.python_version()}, "
        f"JAX {jax.__version__}, float64"
    )
    rows = []
    for part in parts():
        rows.append(row := check(part))
        verdict_text = "works" if row.works else f"FAILS {row.problem}"
        print(f"{row.part:42} {row.case:52} {row.error:8.1e}  {verdict_text}", flush=True)
    working_count = sum(row.works for row in rows)
    print(
        f"{working_count} of {len(rows)} parts work (error up to {RELATIVE_TOLERANCE} of the "
        "largest entry);"
    )
    print("neural_tangents.experimental is not available: it needs TensorFlow.")
    return int(working_count < len(rows))

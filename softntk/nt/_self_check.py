"""Which parts of neural_tangents work through softntk.nt on this Python and this JAX: ``python -m
softntk.nt``.

Each part runs a small real case and is compared with a direct computation, in float64.
"""

import contextlib
import importlib.util
import platform
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from softntk import nt

TOLERANCE = 1e-6


class Row(NamedTuple):
    """One part of neural_tangents.

    Attributes:
        part: its name.
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
        """Whether it ran and agrees."""
        return not self.problem and self.error <= TOLERANCE


Pair = tuple[Any, Any]
Part = tuple[str, str, Callable[[], Pair]]


def _points(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, *shape))


def _dense() -> tuple[Any, ...]:
    return nt.stax.serial(nt.stax.Dense(12, b_std=0.1), nt.stax.Erf(), nt.stax.Dense(2))


def _convolutional() -> tuple[Any, ...]:
    return nt.stax.serial(
        nt.stax.Conv(4, (3, 3)),
        nt.stax.Relu(),
        nt.stax.AvgPool((2, 2)),
        nt.stax.Flatten(),
        nt.stax.Dense(2),
    )


def _jacobian_product(f: Callable, params: Any, x1: Any, x2: Any) -> np.ndarray:
    j1, j2 = (
        np.concatenate(
            [
                np.asarray(leaf).reshape(len(x), 2, -1)
                for leaf in jax.tree.leaves(jax.jacobian(f)(params, jnp.asarray(x)))
            ],
            axis=-1,
        )
        for x in (x1, x2)
    )
    return np.einsum("ilp,jqp->ijlq", j1, j2)


def _limits() -> Iterator[Part]:
    def relu() -> Pair:
        x, w = _points(4, 3), 1.3
        kernel_fn = nt.stax.serial(nt.stax.Dense(1, W_std=w), nt.stax.Relu(), nt.stax.Dense(1))[2]
        q = w**2 * x @ x.T / 3
        norms = np.sqrt(np.outer(np.diag(q), np.diag(q)))
        theta = np.arccos(np.clip(q / norms, -1, 1))
        slope = (np.pi - theta) / (2 * np.pi)
        nngp = norms * np.sin(theta) / (2 * np.pi) + slope * q
        return np.stack(kernel_fn(x, None, ("nngp", "ntk"))), np.stack([nngp, nngp + q * slope])

    def pooled() -> Pair:
        x = _points(2, 3, 3, 2)
        pixels = nt.stax.serial(nt.stax.Conv(1, (1, 1)), nt.stax.Relu())[2]
        kernel_fn = nt.stax.serial(
            nt.stax.Conv(1, (1, 1)), nt.stax.Relu(), nt.stax.GlobalAvgPool()
        )[2]
        return kernel_fn(x, None, "nngp"), np.mean(
            pixels(x, None, "nngp", diagonal_spatial=False), axis=(2, 3, 4, 5)
        )

    def masked() -> Pair:
        x = _points(3, 5, 2)
        hidden = np.concatenate([x, np.full((3, 2, 2), 99.0)], axis=1)
        kernel_fn = nt.stax.serial(nt.stax.Conv(1, (1,)), nt.stax.Relu(), nt.stax.GlobalAvgPool())[
            2
        ]
        return kernel_fn(hidden, None, "ntk", mask_constant=99.0), kernel_fn(x, None, "ntk")

    def batched() -> Pair:
        x1, x2, kernel_fn = _points(4, 3), _points(6, 3), _dense()[2]
        return nt.batch(kernel_fn, batch_size=2)(x1, x2, "ntk"), kernel_fn(x1, x2, "ntk")

    yield "stax", "Dense, Relu: the arc-cosine kernels", relu
    yield "stax, images", "Conv, GlobalAvgPool: the mean over pixels", pooled
    yield "stax, masks", "masked positions: the shorter sequence", masked
    yield "batch", "blocks: the whole kernel", batched


def _empirical() -> Iterator[Part]:
    def kernel(build: Callable, x1: np.ndarray, x2: np.ndarray, implementation: Any) -> Pair:
        init_fn, apply_fn = build()[:2]
        params = init_fn(jax.random.key(0), x1.shape)[1]
        options = {"trace_axes": (), "vmap_axes": 0, "implementation": implementation}
        return nt.empirical_ntk_fn(apply_fn, **options)(x1, x2, params), _jacobian_product(
            apply_fn, params, x1, x2
        )

    networks = {
        "fully connected": (_dense, _points(3, 4), _points(2, 4)),
        "convolutional": (_convolutional, _points(3, 6, 6, 2), _points(2, 6, 6, 2)),
    }
    if importlib.util.find_spec("flax") is not None:
        networks["flax"] = (_flax, _points(3, 4), _points(2, 4))
    for implementation in nt.NtkImplementation:
        for name, arguments in networks.items():
            case = f"{name}: the product of Jacobians"
            yield (
                f"empirical_ntk_fn, {implementation.name}",
                case,
                lambda a=arguments, i=implementation: kernel(*a, i),
            )

    def products() -> Pair:
        init_fn, apply_fn = _dense()[:2]
        params, x, v = init_fn(jax.random.key(0), (3, 4))[1], _points(3, 4), _points(3, 2)
        return nt.empirical_ntk_vp_fn(apply_fn, x, None, params)(v), np.einsum(
            "ijlq,jq->il", _jacobian_product(apply_fn, params, x, x), v
        )

    def monte_carlo() -> Pair:
        (init_fn, apply_fn, _), x, key, outputs = _dense(), _points(3, 4), jax.random.key(0), []
        for _ in range(5):
            key, split = jax.random.split(key)
            outputs.append(apply_fn(init_fn(jax.random.split(split)[0], x.shape)[1], x))
        sampled = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), 5)(x, None, "nngp")
        return sampled, np.mean([f @ f.T / 2 for f in outputs], axis=0)

    def expansions() -> Pair:
        (init_fn, apply_fn, _), x = _dense(), _points(3, 4)
        params = init_fn(jax.random.key(0), x.shape)[1]
        moved = jax.tree.map(lambda leaf: 1.1 * leaf, params)
        f = lambda t: apply_fn(jax.tree.map(lambda leaf: (1 + t) * leaf, params), x)
        terms = [f(0.0), 0.1 * jax.jacfwd(f)(0.0), 0.005 * jax.jacfwd(jax.jacfwd(f))(0.0)]
        ours = [
            nt.linearize(apply_fn, params)(moved, x),
            nt.taylor_expand(apply_fn, params, 2)(moved, x),
        ]
        return np.stack(ours), np.stack([terms[0] + terms[1], sum(terms)])

    yield "empirical_ntk_vp_fn", "a product: with the product of Jacobians", products
    yield "monte_carlo_kernel_fn", "five draws: the covariance of their outputs", monte_carlo
    yield "linearize, taylor_expand", "two orders: derivatives along the line", expansions


def _flax() -> tuple[Any, Any]:
    from flax import linen  # pyright: ignore[reportMissingImports]

    class Perceptron(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(2, param_dtype=x.dtype)(
                jnp.tanh(linen.Dense(8, param_dtype=x.dtype)(x))
            )

    network = Perceptron()
    return lambda key, shape: (None, network.init(key, jnp.zeros(shape))), network.apply


def _predictions() -> Iterator[Part]:
    def problem() -> tuple[Any, ...]:
        x, test, y = _points(6, 4), _points(3, 4), _points(6, 2)
        kernel_fn = _dense()[2]
        return (
            kernel_fn,
            x,
            test,
            y,
            np.asarray(kernel_fn(x, None, "ntk")),
            np.asarray(kernel_fn(test, x, "ntk")),
        )

    def flow(gram: np.ndarray, cross: np.ndarray, y: np.ndarray, t: float) -> np.ndarray:
        return cross @ np.linalg.solve(gram, y - scipy.linalg.expm(-gram * t / y.size) @ y)

    def ensemble() -> Pair:
        kernel_fn, x, test, y, gram, cross = problem()
        predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y)
        return predict(t=5.0, x_test=test, get="ntk"), flow(gram, cross, y, 5.0)

    def mse() -> Pair:
        _, _, _, y, gram, cross = problem()
        out = nt.predict.gradient_descent_mse(gram, y)(
            5.0, np.zeros_like(y), np.zeros((3, 2)), cross
        )
        return np.concatenate(out), np.concatenate(
            [flow(gram, gram, y, 5.0), flow(gram, cross, y, 5.0)]
        )

    def ode() -> Pair:
        _, _, _, y, gram, _ = problem()
        predict = nt.predict.gradient_descent(lambda f, y: 0.5 * jnp.mean((f - y) ** 2), gram, y)
        return predict(5.0, np.zeros_like(y)), flow(gram, gram, y, 5.0)

    def posterior() -> Pair:
        kernel_fn, x, test, y, *_ = problem()
        gram, cross = kernel_fn(x, None, "nngp"), kernel_fn(test, x, "nngp")
        return nt.predict.gp_inference(gram, y)("nngp", cross), cross @ np.linalg.solve(gram, y)

    def rate() -> Pair:
        _, _, _, y, gram, _ = problem()
        return nt.predict.max_learning_rate(gram, y.size), 2 * y.size / np.linalg.eigvalsh(gram)[-1]

    yield "predict.gradient_descent_mse_ensemble", "finite time: the matrix exponential", ensemble
    yield "predict.gradient_descent_mse", "training and test points: the matrix exponential", mse
    yield "predict.gradient_descent", "the differential equation: the matrix exponential", ode
    yield "predict.gp_inference", "the mean: a linear solve", posterior
    yield "predict.max_learning_rate", "the largest eigenvalue, dense", rate


def parts() -> list[Part]:
    """Name, case, and a function that gives (what neural_tangents gives, what it should)."""
    return [*_limits(), *_empirical(), *_predictions()]


def check(part: Part) -> Row:
    """Run one part."""
    name, case, run = part
    try:
        with jax.enable_x64(True), contextlib.redirect_stdout(None):  # AUTO prints what it counts
            actual, desired = (np.asarray(value, np.float64) for value in run())
        if actual.shape != desired.shape:
            return Row(name, case, float("nan"), f"shape {actual.shape} instead of {desired.shape}")
        return Row(
            name, case, float(np.max(np.abs(actual - desired)) / np.max(np.abs(desired))), ""
        )
    except Exception as error:
        return Row(
            name,
            case,
            float("nan"),
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        )


def main() -> int:
    """Print the table; 1 if any part does not work."""
    print(
        f"neural_tangents {nt.VERSION} through softntk.nt, Python {platform.python_version()}, JAX {jax.__version__}, float64"
    )
    rows = []
    for part in parts():
        rows.append(row := check(part))
        verdict = "works" if row.works else f"FAILS {row.problem}"
        print(f"{row.part:42} {row.case:52} {row.error:8.1e}  {verdict}", flush=True)
    print(
        f"{sum(row.works for row in rows)} of {len(rows)} parts work (error up to {TOLERANCE} of the largest entry);"
    )
    print("neural_tangents.experimental is not available: it needs TensorFlow.")
    return int(not all(row.works for row in rows))

"""Ensembles of infinitely wide networks against propagated Gaussian processes, neural_tangents, the
posterior of a Gaussian process, and networks that are trained.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import assert_close, points

import softntk as sn
from softntk import nt

N, T = 5, 3
TIMES = np.array([0.0, 0.3, 4.0])


def kernels(seed, dtype="float64"):
    """An NTK and an NNGP kernel on five training and three other points, and targets."""
    roots = np.random.default_rng(seed).normal(size=(2, N + T, N + T + 2)) / np.sqrt(N + T)
    ntk, nngp = (np.asarray(root @ root.T, dtype).astype(float) for root in roots)
    y = np.random.default_rng(seed + 1).normal(size=(N, 2))
    return ntk, nngp, np.asarray(y, dtype).astype(float)


def arguments(ntk, nngp, dtype="float64"):
    """The kernels as arguments of predict_ensemble: at the training points, at the others."""
    ntk, nngp = np.asarray(ntk, dtype), np.asarray(nngp, dtype)
    train = {"gram": ntk[:N, :N], "nngp": nngp[:N, :N]}
    tests = {"cross": ntk[N:, :N], "nngp_cross": nngp[N:, :N], "prior": np.diag(nngp)[N:]}
    return train, tests


def flow_map(ntk, y, time):
    """The solution of dF/dt = −Θ(F_train − Y) on all points, as matrix and offset."""
    n = len(ntk)
    generator = np.zeros((n + N, n + N))
    generator[:n, :N], generator[:n, n:] = -ntk[:, :N], ntk[:, :N]
    solution = scipy.linalg.expm(time * generator)  # of (F, Y), Y constant
    return solution[:n, :n], solution[:n, n:] @ y


def descent_map(ntk, y, rate, steps):
    """The same for steps of gradient descent, one after the other."""
    step = np.eye(len(ntk))
    step[:, :N] -= rate * ntk[:, :N]
    matrix, offset = np.eye(len(ntk)), np.zeros((len(ntk), y.shape[1]))
    for _ in range(steps):
        matrix, offset = step @ matrix, step @ offset + rate * ntk[:, :N] @ y
    return matrix, offset


def check_prediction(found, maps, nngp, rows, rtol):
    """Compare means and variances with those of a Gaussian process that is mapped."""
    means = [offset[rows] for _, offset in maps]
    variances = [np.diag(matrix @ nngp @ matrix.T)[rows] for matrix, _ in maps]
    assert_close(found.mean, means, rtol=rtol)
    assert_close(found.variance, variances, rtol=rtol)


def test_flow_of_a_gaussian_process(dtype):
    ntk, nngp, y = kernels(0, dtype)
    train, tests = arguments(ntk, nngp, dtype)
    maps = [flow_map(ntk, y, time) for time in TIMES]
    rtol = 1e-9 if dtype == "float64" else 1e-4
    targets, times = np.asarray(y, dtype), np.asarray(TIMES, dtype)
    found = sn.ntk.predict_ensemble(**train, y=targets, times=times)
    check_prediction(found, maps, nngp, slice(0, N), rtol)
    found = sn.ntk.predict_ensemble(**train, y=targets, times=times, **tests)
    check_prediction(found, maps, nngp, slice(N, None), rtol)
    assert found.mean.dtype == found.variance.dtype == dtype


def test_descent_of_a_gaussian_process(dtype):
    ntk, nngp, y = kernels(3, dtype)
    train, tests = arguments(ntk, nngp, dtype)
    rate, steps = 0.4, [0, 1, 2, 30]
    maps = [descent_map(ntk, y, rate, count) for count in steps]
    rtol = 1e-9 if dtype == "float64" else 1e-4
    options: dict[str, Any] = {"y": np.asarray(y, dtype), "times": np.array(steps)}
    options["learning_rate"] = rate
    found = sn.ntk.predict_ensemble(**train, **options)
    check_prediction(found, maps, nngp, slice(0, N), rtol)
    found = sn.ntk.predict_ensemble(**train, **options, **tests)
    check_prediction(found, maps, nngp, slice(N, None), rtol)


def test_draws_that_are_trained_one_by_one(x64):
    """Mean and variance of 4,000 draws of the process, each with its own solution."""
    ntk, nngp, y = kernels(6)
    train, tests = arguments(ntk, nngp)
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(N + T), nngp, size=(4000, 2))
    matrix, offset = flow_map(ntk, y, 1.5)
    trained = np.einsum("xz,dkz->dxk", matrix, draws) + offset
    found = sn.ntk.predict_ensemble(**train, y=y, times=np.array([1.5]), **tests)
    deviation = np.sqrt(np.asarray(found.variance[0]))
    errors = (trained.mean(0)[N:] - np.asarray(found.mean[0])) / deviation[:, None]
    assert np.abs(errors).max() < 4 / np.sqrt(4000)
    ratios = trained[:, N:].std((0, 2), ddof=1) / deviation
    assert np.abs(ratios - 1).max() < 4 / np.sqrt(2 * 8000)


def test_agrees_with_neural_tangents(x64):
    """Their loss is divided by n k, so that their time is n k times as long."""
    kernel_fn = nt.stax.serial(nt.stax.Dense(1), nt.stax.Erf(), nt.stax.Dense(1))[2]
    x, test, y = points(0, 6, 3), points(1, 4, 3), points(2, 6, 2)
    predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, diag_reg=0.0)
    ntk_kernels = {"gram": kernel_fn(x, None, "ntk"), "nngp": kernel_fn(x, None, "nngp")}
    tests = {
        "cross": kernel_fn(test, x, "ntk"),
        "nngp_cross": kernel_fn(test, x, "nngp"),
        "prior": jnp.diagonal(kernel_fn(test, None, "nngp")),
    }
    for options, their_options in ((tests, {"x_test": test}), ({}, {})):
        for time in (7.0, 400.0):
            ours = sn.ntk.predict_ensemble(
                **ntk_kernels, y=y, times=np.array([time / y.size]), **options
            )
            mean, covariance = predict(t=time, get="ntk", compute_cov=True, **their_options)
            assert_close(ours.mean[0], mean, rtol=1e-7)
            assert_close(ours.variance[0], np.diag(covariance), rtol=1e-7)


def test_beginning_and_end(dtype):
    ntk, nngp, y = kernels(9, dtype)
    train, tests = arguments(ntk, nngp, dtype)
    y, ends = np.asarray(y, dtype), np.array([0.0, np.inf], dtype)
    found = sn.ntk.predict_ensemble(**train, y=y, times=ends, **tests)
    assert_close(found.mean[0], np.zeros((T, 2)))
    assert_close(found.variance[0], np.diag(nngp)[N:], dtype)
    # Where the last layer alone is trained, the end is the posterior without noise.
    last_layer = {"gram": train["nngp"], "nngp": train["nngp"]}
    last_tests = {**tests, "cross": tests["nngp_cross"]}
    found = sn.ntk.predict_ensemble(**last_layer, y=y, times=ends, **last_tests)
    posterior = sn.ntk.gp_posterior(
        train["nngp"], y, noise=0.0, cross=tests["nngp_cross"], prior=tests["prior"]
    )
    rtol = 1e-8 if dtype == "float64" else 3e-3
    assert_close(found.mean[1], posterior.mean, rtol=rtol)
    assert_close(found.variance[1], posterior.variance, rtol=rtol)
    # The training points are learnt.
    found = sn.ntk.predict_ensemble(**train, y=y, times=ends)
    assert_close(found.mean[1], y, dtype)
    assert float(found.variance[1].max()) <= 1e-6 * float(found.variance[0].max())
    assert_close(found.variance[0], np.diag(nngp)[:N], dtype)


def test_the_mean_is_that_of_predicted_training(dtype):
    ntk, nngp, y = kernels(12, dtype)
    train, tests = arguments(ntk, nngp, dtype)
    y, times = np.asarray(y, dtype), np.array([0.5, np.inf], dtype)
    gram, cross = train["gram"], tests["cross"]
    found = sn.ntk.predict_ensemble(**train, y=y, times=times, **tests)
    assert_close(found.mean, sn.ntk.predict_flow(gram, y, times, cross=cross), dtype)
    steps = np.array([3, 100])
    found = sn.ntk.predict_ensemble(**train, y=y, times=steps, learning_rate=0.3)
    assert_close(found.mean, sn.ntk.predict_gd(gram, y, 0.3, steps), dtype)


def test_kernels_of_several_outputs(x64):
    """Independent outputs as [n, n, k, k], and an NTK that mixes them."""
    ntk, nngp, y = kernels(15)
    train, tests = arguments(ntk, nngp)
    single = sn.ntk.predict_ensemble(**train, y=y, times=TIMES, **tests)
    full = lambda kernel, block: kernel[:, :, None, None] * block
    independent = {name: full(kernel, np.eye(2)) for name, kernel in train.items()}
    full_tests = {name: full(tests[name], np.eye(2)) for name in ("cross", "nngp_cross")}
    full_tests["prior"] = np.tile(tests["prior"][:, None], 2)
    found = sn.ntk.predict_ensemble(**independent, y=y, times=TIMES, **full_tests)
    assert_close(found.mean, single.mean)
    assert_close(found.variance, np.tile(single.variance[:, :, None], 2))
    # Mixed by one matrix, the outputs are independent along its eigenvectors.
    mixing = np.array([[2.0, 0.5], [0.5, 1.0]])
    values, vectors = np.linalg.eigh(mixing)
    mixed = {"gram": full(train["gram"], mixing), "nngp": independent["nngp"]}
    found = sn.ntk.predict_ensemble(**mixed, y=y, times=TIMES)
    parts = [
        sn.ntk.predict_ensemble(value * train["gram"], train["nngp"], y @ vectors, TIMES)
        for value in values
    ]
    variances = sum(
        np.asarray(part.variance)[:, :, None] * vectors[:, i] ** 2 for i, part in enumerate(parts)
    )
    assert_close(found.variance, variances)


def test_derivatives_at_equal_eigenvalues(x64):
    """Of a dense matrix exponential, at a multiple of the identity and where all differ."""
    _, nngp, y = kernels(18)
    generator = np.random.default_rng(0)
    cross, weights = generator.normal(size=(2, T, N))
    nngp_train, nngp_cross = nngp[:N, :N], nngp[N:, :N]
    prior = np.diag(nngp)[N:]
    direction = generator.normal(size=(N, N))
    direction = direction + direction.T

    def dense(gram, cross, time):
        decay = jax.scipy.linalg.expm(-time * gram)
        map_ = cross @ jnp.linalg.solve(gram, jnp.eye(N) - decay)
        variance = prior - 2 * jnp.sum(map_ * nngp_cross, 1)
        variance = variance + jnp.sum((map_ @ nngp_train) * map_, 1)
        at_training = jnp.diagonal(decay @ nngp_train @ decay)
        return jnp.sum(weights[:, 0] * variance) + jnp.sum(weights[0] * at_training)

    def ours(gram, cross, time):
        gram = (gram + gram.T) / 2
        times = jnp.reshape(time, 1)
        tests = {"cross": cross, "nngp_cross": nngp_cross, "prior": prior}
        at_tests = sn.ntk.predict_ensemble(gram, nngp_train, y, times, **tests).variance
        at_training = sn.ntk.predict_ensemble(gram, nngp_train, y, times).variance
        return jnp.sum(weights[:, 0] * at_tests[0]) + jnp.sum(weights[0] * at_training[0])

    for gram in (2 * np.eye(N), np.asarray(nngp_train)):
        at = (jnp.asarray(gram), jnp.asarray(cross * 0.1), jnp.asarray(0.7))
        assert_close(ours(*at), dense(*at), rtol=1e-9)
        tangents = (jnp.asarray(direction), jnp.asarray(weights), jnp.asarray(1.0))
        slopes = jax.grad(ours, (0, 1, 2))(*at)
        desired = jax.grad(dense, (0, 1, 2))(*at)
        # The slope in a kernel is compared along a symmetric direction.
        for tangent, slope, wanted in zip(tangents, slopes, desired, strict=True):
            assert_close(jnp.sum(slope * tangent), jnp.sum(wanted * tangent), rtol=1e-8)


def test_the_end_of_training_has_derivatives(x64):
    gram = jnp.eye(2)
    tests = {"cross": jnp.ones((1, 2)), "nngp_cross": jnp.ones((1, 2)) / 2, "prior": jnp.ones(1)}
    end = lambda gram: jnp.sum(
        sn.ntk.predict_ensemble(
            gram, jnp.eye(2), jnp.ones(2), jnp.array([jnp.inf]), **tests
        ).variance
    )
    slope = jax.grad(end)(gram)
    assert np.isfinite(slope).all()
    # Var = 1 − 2⟨a, k⟩ + ‖a‖² with a = Θ⁻¹1 and k = 1/2: da = −dΘ 1 at Θ = I.
    step = jnp.array([[1.0, 0.5], [0.5, -2.0]])
    assert_close(jnp.sum(slope * step), -(2 - 1) * jnp.sum(step))


@pytest.mark.parametrize("unit", [1e-30, 1e25])
def test_units(unit):
    """Of the NTK with the time, of the covariance, of the targets."""
    ntk, nngp, y = kernels(21, "float32")
    train, tests = arguments(ntk, nngp, "float32")
    y, times, unit = np.asarray(y, np.float32), np.asarray(TIMES, np.float32), np.float32(unit)
    plain = sn.ntk.predict_ensemble(**train, y=y, times=times, **tests)
    scaled_tests = {"cross": unit * tests["cross"], "nngp_cross": tests["nngp_cross"] / unit}
    found = sn.ntk.predict_ensemble(
        unit * train["gram"],
        train["nngp"] / unit,
        unit * y,
        times / unit,
        **scaled_tests,
        prior=tests["prior"] / unit,
    )
    assert_close(np.asarray(found.mean, float) / unit, plain.mean, rtol=1e-4)
    assert_close(np.asarray(found.variance, float) * unit, plain.variance, rtol=1e-4)


def test_covariances_near_the_largest_number():
    """Twice the covariance of two points overflows, what remains of it does not."""
    one, large = np.ones((1, 1), np.float32), np.full((1, 1), 2.5e38, np.float32)
    tests = {"cross": one, "nngp_cross": large, "prior": large[0]}
    times = np.log(np.array([2.0], np.float32))
    found = sn.ntk.predict_ensemble(one, large, one, times, **tests)
    assert_close(found.variance, [[0.25 * 2.5e38]], "float32")


def test_singular_kernels_and_divergent_descent(dtype):
    """Two equal points: what is learnt of them is their mean; nothing becomes NaN."""
    gram, y = jnp.ones((2, 2), dtype), jnp.asarray([[1.0], [3.0]], dtype)
    end = sn.ntk.predict_ensemble(gram, gram, y, jnp.asarray([jnp.inf], dtype))
    assert_close(end.mean[0], [[2.0], [2.0]], dtype)
    assert float(jnp.abs(end.variance).max()) < 1e-6
    tests = {"cross": gram[:1], "nngp_cross": gram[:1], "prior": jnp.ones(1, dtype)}
    for steps in (10, 1000):
        found = sn.ntk.predict_ensemble(
            gram, gram, y, np.array([steps]), learning_rate=5.0, **tests
        )
        assert not np.isnan(found.mean).any()
        assert np.isfinite(found.variance).all()
        assert float(found.variance[0, 0]) > 1e10


def test_compiled_and_in_a_batch(dtype):
    ntk, nngp, y = kernels(24, dtype)
    train, tests = arguments(ntk, nngp, dtype)
    times, y = jnp.asarray(TIMES, dtype), jnp.asarray(y, dtype)
    plain = sn.ntk.predict_ensemble(**train, y=y, times=times, **tests)
    predict = lambda scale, arrays: sn.ntk.predict_ensemble(
        scale * arrays["gram"], arrays["nngp"], y, times, **tests
    )
    scales = jnp.asarray([1.0, 2.0], dtype)
    found = jax.jit(jax.vmap(predict, (0, None)))(scales, jax.tree.map(jnp.asarray, train))
    assert_close(found.variance[0], plain.variance, dtype)
    assert_close(found.mean[0], plain.mean, dtype)
    assert found.variance.shape == (2, 3, T)
    # No times, too.
    assert sn.ntk.predict_ensemble(**train, y=y, times=times[:0]).variance.shape == (0, N)


GOOD_TRAIN, GOOD_TESTS = arguments(*kernels(27)[:2], "float32")
GOOD: dict[str, Any] = {**GOOD_TRAIN, "y": np.ones(N, np.float32), "times": np.ones(1, np.float32)}
GOOD |= GOOD_TESTS
WRONG = [
    ("gram", np.eye(4, dtype=np.float32), "y"),
    ("gram", "K", "gram"),
    ("nngp", np.eye(4, dtype=np.float32), "nngp must have the shape of gram"),
    ("nngp", np.triu(np.ones((N, N), np.float32)), "nngp as gram must be symmetric"),
    ("nngp", np.ones((N, N), int), "nngp"),
    ("nngp", None, "nngp"),
    ("y", np.ones(4, np.float32), "y must have shape"),
    ("times", np.array([-1.0], np.float32), "times must be non-negative"),
    ("times", np.array([np.nan], np.float32), "times must be non-negative"),
    ("times", [1], "times must be a floating-point array"),
    ("cross", None, "nngp_cross goes with cross"),
    ("cross", np.ones((T, 2), np.float32), "cross must have shape"),
    ("nngp_cross", None, "nngp_cross must be given with cross"),
    ("nngp_cross", np.ones((2, N), np.float32), "nngp_cross must have the shape of cross"),
    ("prior", None, "prior must be given with cross"),
    ("prior", -np.ones(T, np.float32), "prior must not be negative"),
    ("prior", np.ones(2, np.float32), r"prior must have shape \(3,\)"),
    ("learning_rate", 0.1, "times must be a vector of integers"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_arguments_are_named(name, value, message, untyped):
    with pytest.raises(ValueError, match=message):
        sn.ntk.predict_ensemble(**{**GOOD, name: value})


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan, "1", True])
def test_wrong_learning_rates_are_named(rate, untyped):
    with pytest.raises(ValueError, match="learning_rate"):
        sn.ntk.predict_ensemble(**{**GOOD, "times": np.array([1]), "learning_rate": rate})


def test_operators_are_refused(untyped):
    x = points(0, N, 3, "float32")
    op: Any = sn.ntk.kernel_operator(lambda a, b: a @ b.T, x)
    for name in ("gram", "nngp"):
        with pytest.raises(ValueError, match=f"{name} must be an array here, got an operator"):
            sn.ntk.predict_ensemble(**{**GOOD, name: op})
    with pytest.raises(ValueError, match="cross must be an operator"):
        sn.ntk.predict_ensemble(**{**GOOD, "cross": op.cross(x)})


@pytest.mark.slow
@pytest.mark.optimised
def test_wide_networks_that_are_trained(x64):
    """The spread of 400 networks of width 400, each trained by gradient descent."""
    x, test, y = points(0, 4, 3), points(1, 3, 3), points(2, 4, 1)
    init_fn, apply_fn, kernel_fn = nt.stax.serial(
        nt.stax.Dense(400), nt.stax.Erf(), nt.stax.Dense(1)
    )
    rate, steps = 0.5, 60

    def train(key):
        _, params = init_fn(key, x.shape)
        loss = lambda params: 0.5 * jnp.sum((apply_fn(params, x) - y) ** 2)
        step = lambda _, params: jax.tree.map(
            lambda leaf, slope: leaf - rate * slope, params, jax.grad(loss)(params)
        )
        return apply_fn(jax.lax.fori_loop(0, steps, step, params), test)

    outputs = jax.lax.map(jax.jit(train), jax.random.split(jax.random.key(0), 400), batch_size=50)
    found = sn.ntk.predict_ensemble(
        kernel_fn(x, None, "ntk"),
        kernel_fn(x, None, "nngp"),
        y,
        np.array([steps]),
        learning_rate=rate,
        cross=kernel_fn(test, x, "ntk"),
        nngp_cross=kernel_fn(test, x, "nngp"),
        prior=jnp.diagonal(kernel_fn(test, None, "nngp")),
    )
    deviation = np.sqrt(found.variance[0])
    assert np.abs((outputs.mean(0) - found.mean[0])[:, 0] / deviation).max() < 4 / np.sqrt(400)
    assert np.abs(outputs.std(0)[:, 0] / deviation - 1).max() < 4 / np.sqrt(800)

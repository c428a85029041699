"""Dynamics without a closed form, against training of the linear model in its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
from helpers import assert_close, cache_size, points, slow_except

import softntk as sn

N, T, K, P = 8, 3, 3, 40


def pseudo_huber(f, y):
    return jnp.sum(jnp.sqrt(1 + (f - y) ** 2))


# (what is passed as loss, the sum over points)
LOSSES = {
    "squared": ("squared", lambda F, Y: 0.5 * jnp.sum((F - Y) ** 2)),
    "cross_entropy": (
        "cross_entropy",
        lambda F, Y: jnp.sum(optax.softmax_cross_entropy(F, Y)),
    ),
    "own": (pseudo_huber, lambda F, Y: jnp.sum(jax.vmap(pseudo_huber)(F, Y))),
}


@pytest.fixture
def model(x64):
    """A linear model F = F(0) + Jθ with J [n·k, p], at training and test points."""
    rng = np.random.default_rng(0)
    J = jnp.asarray(rng.normal(size=(N, K, P)) / P**0.5)
    J_test = jnp.asarray(rng.normal(size=(T, K, P)) / P**0.5)
    start, start_test = (jnp.asarray(0.3 * rng.normal(size=(size, K))) for size in (N, T))
    targets = jnp.asarray(rng.dirichlet(np.ones(K), size=N))
    return J, J_test, start, start_test, targets


def gram_of(J, other):
    return jnp.einsum("iap,jbp->ijab", J, other)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("case", list(LOSSES))
def test_descent_is_that_of_the_linear_model(case, momentum, model):
    loss, total = LOSSES[case]
    J, J_test, start, start_test, Y = model
    steps, rate = [0, 7, 3, 40], 0.05
    optimiser = optax.sgd(rate, momentum=momentum)
    theta = jnp.zeros(P)
    state = optimiser.init(theta)
    outputs = {}
    for step in range(max(steps) + 1):
        outputs[step] = (start + J @ theta, start_test + J_test @ theta)
        gradient = jax.grad(lambda theta: total(start + J @ theta, Y))(theta)
        updates, state = optimiser.update(gradient, state)
        theta = optax.apply_updates(theta, updates)
    options = {"loss": loss, "momentum": momentum}
    found = sn.ntk.predict_gd(gram_of(J, J), Y, rate, steps, start, **options)
    assert_close(found, jnp.stack([outputs[step][0] for step in steps]), rtol=1e-10)
    found = sn.ntk.predict_gd(
        gram_of(J, J),
        Y,
        rate,
        steps,
        start,
        cross=gram_of(J_test, J),
        f0_test=start_test,
        **options,
    )
    assert_close(found, jnp.stack([outputs[step][1] for step in steps]), rtol=1e-10)


@pytest.mark.parametrize("case", ["cross_entropy", "own"])
def test_flow_is_the_solution_of_its_equation(case, model):
    loss, total = LOSSES[case]
    J, J_test, start, start_test, Y = model
    times = np.array([0.0, 5.0, 0.7, 40.0])
    gradient = jax.jit(jax.grad(lambda theta: total(start + J @ theta, Y)))
    solution = scipy.integrate.solve_ivp(
        lambda _, theta: -np.asarray(gradient(jnp.asarray(theta))),
        (0, 40),
        np.zeros(P),
        method="LSODA",
        t_eval=np.sort(times),
        rtol=1e-11,
        atol=1e-12,
    )
    thetas = jnp.asarray(solution.y.T)[np.argsort(np.argsort(times))]
    found = sn.ntk.predict_flow(gram_of(J, J), Y, times, start, loss=loss)
    assert_close(found, start[None] + jnp.einsum("iap,sp->sia", J, thetas), rtol=1e-6)
    found = sn.ntk.predict_flow(
        gram_of(J, J),
        Y,
        times,
        start,
        loss=loss,
        cross=gram_of(J_test, J),
        f0_test=start_test,
    )
    moved = jnp.einsum("iap,sp->sia", J_test, thetas)
    assert_close(found, start_test[None] + moved, rtol=1e-6)


@pytest.mark.parametrize("outputs", slow_except([1, 3], 3))
def test_operators_and_labels(outputs, x64):
    """The operator of a network, its matrix, and labels of several kinds agree."""
    net = sn.networks.two_layer("softmax", width=64, out_dim=outputs)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    x, x_test = points(1, N, 4, "float64"), points(2, T, 4, "float64")
    op = sn.ntk.operator(net, params, x)
    gram = sn.ntk.empirical(net, params, x)
    labels = np.arange(N) % max(outputs, 2)
    rate, steps = 0.1, [1, 20]
    soft = jax.nn.one_hot(labels, outputs) if outputs > 1 else jnp.asarray(labels[:, None] * 1.0)
    predictions = [
        sn.ntk.predict_gd(kernel, y, rate, steps, loss="cross_entropy")
        for kernel in (op, gram)
        for y in (labels, soft)
    ]
    for prediction in predictions[1:]:
        assert_close(prediction, predictions[0], rtol=1e-9)
    cross = sn.ntk.empirical(net, params, x_test, x)
    by_matrix = sn.ntk.predict_gd(gram, labels, rate, steps, loss="cross_entropy", cross=cross)
    by_operator = sn.ntk.predict_gd(
        op, labels, rate, steps, loss="cross_entropy", cross=op.cross(x_test)
    )
    assert_close(by_operator, by_matrix, rtol=1e-9)
    by_flow = sn.ntk.predict_flow(op, labels, np.array([0.1, 2.0]), loss="cross_entropy")
    by_small_steps = sn.ntk.predict_gd(gram, labels, 1e-3, [100, 2000], loss="cross_entropy")
    assert_close(by_flow, by_small_steps, rtol=2e-3)


def test_a_kernel_of_one_output_moves_every_column_alike(model):
    J, _, start, _, Y = model
    gram = jnp.einsum("ip,jp->ij", J[:, 0], J[:, 0])
    full = jnp.einsum("ij,ab->ijab", gram, jnp.eye(K))
    options = {"loss": "cross_entropy", "momentum": 0.5}
    found = sn.ntk.predict_gd(gram, Y, 0.1, [5], start, **options)
    assert_close(found, sn.ntk.predict_gd(full, Y, 0.1, [5], start, **options), rtol=1e-12)


def test_minibatches_have_the_mean_of_descent_and_the_spread_of_training(model):
    J, _, start, _, Y = model
    gram, rate, steps, b, runs = gram_of(J, J), 0.02, [1, 15], 3, 400
    options = {"batch_size": b, "key": jax.random.key(0), "runs": runs}
    found = sn.ntk.predict_sgd(gram, Y, rate, steps, start, **options)
    exact = sn.ntk.predict_gd(gram, Y, rate, steps, start)
    z = np.asarray((found.mean - exact) / found.standard_error)
    assert np.abs(z).max() < 5
    assert 0.5 < np.std(z) < 1.5
    # After one step the outputs are F(0) − ηH m(n/b)r, m the indicator of a random batch.
    r = np.asarray(start - Y)
    inclusion = b / N
    pair = b * (b - 1) / (N * (N - 1))
    covariance = np.full((N, N), pair - inclusion**2) + np.eye(N) * (inclusion - pair)
    parts = np.einsum("ijab,jb->iaj", np.asarray(gram), r) * (N / b) * rate
    spread = np.sqrt(np.einsum("iaj,jl,ial->ia", parts, covariance, parts))
    assert_close(found.spread[0], spread, rtol=0.15)
    whole = sn.ntk.predict_sgd(
        gram, Y, rate, steps, start, batch_size=N, key=jax.random.key(0), runs=2
    )
    assert_close(whole.mean, exact, rtol=1e-10)
    assert float(jnp.max(whole.spread)) < 1e-12


def test_forward_derivatives(model):
    J, _, start, _, Y = model

    def outputs(rate):
        return sn.ntk.predict_gd(gram_of(J, J), Y, rate, [6], start, loss="cross_entropy")

    _, tangent = jax.jvp(outputs, (0.1,), (1.0,))
    difference = (outputs(0.1 + 1e-6) - outputs(0.1 - 1e-6)) / 2e-6
    assert_close(tangent, difference, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"loss": "entropy"}, "loss"),
        ({"y": np.full((N, K), 0.5), "loss": "cross_entropy"}, "sum to one"),
        ({"y": np.full(N, K), "loss": "cross_entropy"}, "below the number of classes"),
        ({"y": np.full(N, 0.5), "loss": "cross_entropy"}, "y"),
    ],
)
def test_bad_input(arguments, message, model, untyped):
    J, _, _, _, Y = model
    options = {"gram": gram_of(J, J), "y": Y, "learning_rate": 0.1, "steps": [1]} | arguments
    with pytest.raises(ValueError, match=message):
        sn.ntk.predict_gd(**options)


def test_bad_times_and_batches(model, untyped):
    J, _, start, _, Y = model
    gram = gram_of(J, J)
    with pytest.raises(ValueError, match="finite"):
        sn.ntk.predict_flow(gram, Y, np.array([np.inf]), start, loss="cross_entropy")
    for batch_size, runs, message in (
        (N + 1, 2, "batch_size"),
        (0, 2, "batch_size"),
        (2, 1, "runs"),
    ):
        with pytest.raises(ValueError, match=message):
            sn.ntk.predict_sgd(
                gram, Y, 0.1, [1], batch_size=batch_size, runs=runs, key=jax.random.key(0)
            )


def half_square(f, y):
    return 0.5 * jnp.sum((f - y) ** 2)


@pytest.mark.parametrize("size", slow_except([1e-10, 1e-6, 1e10], 1e-10))
def test_flow_does_not_depend_on_units(size):
    y, times = size * jnp.ones((2, 1)), jnp.array([1.0, 30.0])
    gram = jnp.array([[1.0, 0.3], [0.3, 0.5]])
    cases: list[dict[str, Any]] = [{}, {"cross": 3 * gram}, {"cross": 1e-8 * gram}]
    for options in cases:
        found = sn.ntk.predict_flow(gram, y, times, loss=half_square, **options)
        assert_close(found, sn.ntk.predict_flow(gram, y, times, **options), rtol=1e-3)


def test_runs_that_diverge_are_never_nan():
    gram, y = jnp.eye(4), jnp.ones((4, 1))
    options = {"batch_size": 2, "key": jax.random.key(0), "runs": 4}
    diverged = sn.ntk.predict_sgd(gram, y, 3.0, [100], **options)
    for part in (diverged.mean, diverged.spread, diverged.standard_error):
        assert not np.isnan(np.asarray(part)).any()
    large = sn.ntk.predict_sgd(gram, 1e20 * y, 0.1, [3], **options)
    small = sn.ntk.predict_sgd(gram, y, 0.1, [3], **options)
    assert_close(large.spread, 1e20 * small.spread, rtol=1e-5)
    # A kernel of zeros moves nothing, however far training points go.
    zero = sn.ntk.predict_gd(gram, y, 100.0, [1000], momentum=0.1, cross=jnp.zeros((1, 4)))
    assert float(zero[0, 0, 0]) == 0
    assert np.isfinite(sn.ntk.predict_gd(gram, y, 100.0, [1000], momentum=0.1)).all()


def test_the_same_function_is_not_compiled_again():
    gram, y = jnp.eye(3), jnp.ones((3, 1))
    from softntk.ntk import _simulated_dynamics

    before = cache_size(_simulated_dynamics.simulate_descent)
    for rate in (0.1, 0.2, 0.3):
        sn.ntk.predict_gd(gram, y, rate, [1, 2], loss=half_square)
    assert cache_size(_simulated_dynamics.simulate_descent) == before + 1


def test_a_known_gram_inside_of_traced_functions():
    gram, y = jnp.eye(2), jnp.ones((2, 1))
    by_momentum = jax.jit(lambda m: sn.ntk.predict_gd(gram, y, 0.1, [1, 5], momentum=m))
    assert_close(by_momentum(0.5), sn.ntk.predict_gd(gram, y, 0.1, [1, 5], momentum=0.5))
    times = jnp.array([1.0])
    by_time = jax.jit(
        lambda t: sn.ntk.predict_flow(gram, np.array([0, 1]), t, loss="cross_entropy")
    )
    assert_close(
        by_time(times), sn.ntk.predict_flow(gram, np.array([0, 1]), times, loss="cross_entropy")
    )


def test_nothing_is_asked_for():
    gram, labels = jnp.eye(3), np.array([0, 1, 1])
    shape = (0, 3, 2)
    assert sn.ntk.predict_flow(gram, labels, jnp.zeros(0), loss="cross_entropy").shape == shape
    assert sn.ntk.predict_gd(gram, labels, 0.1, [], loss="cross_entropy").shape == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gram": jnp.ones(3)}, "gram"),
        ({"gram": 1.0}, "gram"),
        ({"gram": None}, "gram"),
        ({"gram": jnp.ones((3, 2))}, "gram"),
        ({"f0": 0.0}, "f0"),
        ({"y": np.zeros(3, int)}, "Give f0"),
        ({"y": np.array([0.0, 1.0, 2.0])}, "astype"),
        ({"loss": lambda f, y: f, "y": np.zeros((3, 2))}, "scalar of one point"),
        ({"loss": lambda f, y: 1, "y": np.zeros((3, 2))}, "scalar of one point"),
    ],
)
def test_what_is_wrong_is_named(arguments, message, untyped):
    options = {"gram": jnp.eye(3), "y": np.array([0, 1, 1]), "loss": "cross_entropy"} | arguments
    with pytest.raises(ValueError, match=message):
        sn.ntk.predict_gd(learning_rate=0.1, steps=[1], **options)


def test_without_momentum_there_is_a_closed_form_inside_jit(untyped):
    """It has derivatives in reverse mode, of 1 − (1 − ηλ)² by λ; and a bad momentum is named."""
    gram = jnp.diag(jnp.array([1.0, 0.5]))

    def total(gram, **options):
        return jnp.sum(sn.ntk.predict_gd(gram, jnp.ones((2, 1)), 0.5, np.array([2]), **options))

    assert_close(jnp.diag(jax.jit(jax.grad(total))(gram)), [0.5, 0.75], "float32")
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1.0"):
        jax.jit(lambda gram: total(gram, momentum=1.0))(gram)

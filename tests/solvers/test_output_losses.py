"""Natural gradient on any loss of the outputs, against dense generalised Gauss–Newton steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, cast, dense_jacobian, points, slow_except

import softntk as sn
from softntk._output_losses import OUTPUT_LOSSES, as_output_loss
from softntk.solution import Result

N = 7


def cross_entropy(f, y):
    return jax.nn.logsumexp(f) - jnp.dot(y, f)


def logistic(f, y):
    return jnp.sum(jnp.logaddexp(0, f) - y * f)


def squared(f, y):
    return 0.5 * jnp.sum((f - y) ** 2)


def pseudo_huber(f, y):
    return jnp.sum(jnp.sqrt(1 + (f - y) ** 2))


# (what is passed as loss, ℓ of one point, k)
LOSSES = {
    "cross entropy": ("cross_entropy", cross_entropy, 3),
    "one column": ("cross_entropy", logistic, 1),
    "squared": ("squared", squared, 2),
    "own": (pseudo_huber, pseudo_huber, 2),
    "own, singular": (cross_entropy, cross_entropy, 3),
}


def targets(point_loss, k):
    rng = np.random.default_rng(0)
    if point_loss is cross_entropy:
        return jnp.asarray(rng.dirichlet(np.ones(k), size=N))
    if point_loss is logistic:
        return jnp.asarray(rng.random((N, 1)))
    return jnp.asarray(rng.normal(size=(N, k)))


def network(k, train_readout=False, width=16, d=4):
    net = sn.networks.two_layer(
        "softmax", width=width, out_dim=k, antisymmetric=False, train_readout=train_readout
    )
    _, params = net.init_fn(jax.random.key(0), (-1, d))
    return net, cast(jax.tree.map(lambda leaf: 2 * leaf, params), "float64")


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def dense_step(net, params, x, y, point_loss, decays, rho):
    """−(JᵀΛJ + λ + ρ)⁻¹(Jᵀg + λθ), with λ for each weight."""
    F = net.apply_fn(params, x)
    J = np.asarray(dense_jacobian(net.apply_fn, params, x)).reshape(F.size, -1)
    g = np.asarray(jax.vmap(jax.grad(point_loss))(F, y)).reshape(-1)
    blocks = np.asarray(jax.vmap(jax.hessian(point_loss))(F, y))
    k = F.shape[1]
    curvature = np.zeros((F.size, F.size))
    for i, block in enumerate(blocks):
        curvature[i * k : (i + 1) * k, i * k : (i + 1) * k] = block
    matrix = J.T @ curvature @ J + np.diag(decays) + rho * np.eye(J.shape[1])
    return -np.linalg.solve(matrix, J.T @ g + decays * flat(params))


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("case", slow_except(list(LOSSES), "cross entropy", "own, singular"))
def test_step_is_the_dense_generalised_gauss_newton_step(case, decay, x64):
    loss, point_loss, k = LOSSES[case]
    train_readout = decay > 0 and k > 1
    net, params = network(k, train_readout)
    x, y = points(1, N, 4, "float64"), targets(point_loss, k)

    def total(p):
        weights = jax.tree.leaves(p) if train_readout else [p.hidden]
        penalty = 0.5 * decay * sum(jnp.sum(leaf**2) for leaf in weights)
        return jnp.sum(jax.vmap(point_loss)(net.apply_fn(p, x), y)) + penalty

    ridge = 1e-3
    tx = sn.solvers.natural_gradient(
        net,
        x,
        y,
        loss=loss,
        weight_decay=decay,
        ridge=ridge,
        rtol=1e-13,
        max_cg_steps=1000,
        damped=False,
    )
    step, state = tx.update(jax.grad(total)(params), tx.init(params), params)
    assert isinstance(state, sn.solvers.NaturalGradientState)
    J = np.asarray(dense_jacobian(net.apply_fn, params, x)).reshape(N * k, -1)
    decays = np.full(J.shape[1], decay)
    if not train_readout:
        readout_size = params.readout.size
        is_readout = flat(params.replace(hidden=0 * params.hidden, readout=1 + 0 * params.readout))
        assert is_readout.sum() == readout_size
        decays = decays * (1 - is_readout)
    rho = ridge * np.trace(J @ J.T) / len(J)
    if callable(loss):
        hessians = jax.vmap(jax.hessian(point_loss))(net.apply_fn(params, x), y)
        rho *= np.linalg.eigvalsh(hessians).max()
    wanted = dense_step(net, params, x, y, point_loss, decays, rho)
    assert_close(flat(step), wanted, rtol=1e-8)
    assert Result(int(state.result)) is Result.SUCCESSFUL


@pytest.mark.parametrize("case", list(LOSSES))
def test_derivatives_of_the_table(case, x64):
    loss, point_loss, k = LOSSES[case]
    rng = np.random.default_rng(1)
    F, y = jnp.asarray(3 * rng.normal(size=(N, k))), targets(point_loss, k)
    found = as_output_loss("loss", loss)
    assert_close(found.values(F, y), jax.vmap(point_loss)(F, y), rtol=1e-13)
    curvature = found.curvature(F, y)
    assert_close(curvature.gradient, jax.vmap(jax.grad(point_loss))(F, y), rtol=1e-12)
    assert_close(curvature.root(curvature.whitened), curvature.gradient, rtol=1e-10)
    blocks = jax.vmap(jax.hessian(point_loss))(F, y)
    t = jnp.asarray(rng.normal(size=(N, k)))
    image = curvature.root(curvature.root_transposed(t))
    assert_close(image, jnp.einsum("nij,nj->ni", blocks, t), rtol=1e-11)
    # ⟨Qt, u⟩ = ⟨t, Qᵀu⟩
    u = jnp.asarray(rng.normal(size=(N, k)))
    left = jnp.sum(curvature.root(t) * u)
    assert_close(left, jnp.sum(t * curvature.root_transposed(u)), rtol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("size", [40.0, 1e4, np.inf])
def test_logits_of_any_size(k, size, dtype):
    """Where probabilities underflow nothing is NaN, and right points cost nothing."""
    size = min(size, float(np.finfo(dtype).max) / 4)
    F = jnp.asarray(size * np.eye(3)[:, :k], dtype)
    y = jnp.asarray(np.eye(3)[:, :k], dtype)
    loss = OUTPUT_LOSSES["cross_entropy"]
    for labels in (y, y[::-1]):
        curvature = loss.curvature(F, labels)
        for part in (*curvature[:3], loss.values(F, labels), curvature.root(curvature.whitened)):
            assert np.isfinite(np.asarray(part)).all()
    assert np.all(np.asarray(loss.values(F, y)[:1]) <= 1e-6)


def digits(width=256, n=300):
    from sklearn.datasets import load_digits

    data, classes = map(np.asarray, load_digits(return_X_y=True))
    x, labels = jnp.asarray(data[:n] / 64, jnp.float32), classes[:n]
    net = sn.networks.two_layer("softmax", width=width, out_dim=10)
    _, params = net.init_fn(jax.random.key(0), (-1, 64))

    def mean_loss(p):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(losses(net.apply_fn(p, x), labels))

    return net, params, x, labels, mean_loss


@pytest.mark.slow
def test_fits_digits_in_few_steps():
    net, params, x, labels, loss = digits()
    tx = sn.solvers.natural_gradient(net, x, labels, loss="cross_entropy")
    sol = sn.solvers.minimise(loss, params, tx, max_steps=20, throw=False)
    losses = np.asarray(sol.stats["loss"])
    assert losses[-1] < 1e-3 * losses[0]
    assert np.all(np.diff(losses) < 0)


def test_a_penalised_minimum_is_found_to_the_last_digits(x64):
    """The loss does not vanish there, so that its differences are rounding."""
    net, params = network(3)
    x, y = points(1, N, 4, "float64"), targets(cross_entropy, 3)

    def loss(p):
        losses = optax.softmax_cross_entropy(net.apply_fn(p, x), y)
        return (jnp.sum(losses) + 0.05 * jnp.sum(p.hidden**2)) / 7

    tx = sn.solvers.natural_gradient(net, x, y, loss="cross_entropy", weight_decay=0.1, rtol=1e-6)
    sol = sn.solvers.minimise(loss, params, tx, rtol=1e-8)
    gradient = jax.grad(loss)(sol.value)
    first = jax.grad(loss)(params)
    assert np.linalg.norm(flat(gradient)) <= 1e-8 * np.linalg.norm(flat(first))
    assert_close(sol.value.readout, params.readout, rtol=0)


def test_a_squared_gradient_is_foreign_to_cross_entropy():
    net, params, x, labels, _ = digits(width=32, n=20)
    one_hot = jax.nn.one_hot(labels, 10)
    other = lambda p: jnp.sum(net.apply_fn(p, x)[:, :2] ** 2 + net.apply_fn(p, x)[:, :2])
    for loss, y in (("cross_entropy", labels), ("squared", one_hot)):
        tx = sn.solvers.natural_gradient(net, x, y, loss=loss)
        sol = sn.solvers.minimise(other, params, tx, max_steps=3, throw=False)
        assert Result(int(sol.result)) is Result.FOREIGN_LOSS


def test_minibatches_are_arguments_of_update(x64, untyped):
    net, params = network(3)
    x, y = points(1, N, 4, "float64"), targets(cross_entropy, 3)
    options = {"loss": "cross_entropy", "ridge": 1e-3, "rtol": 1e-12, "damped": False}
    rows = np.array([4, 1, 2])

    def loss(p, x, y):
        return jnp.mean(optax.softmax_cross_entropy(net.apply_fn(p, x), y))

    on_all = sn.solvers.natural_gradient(net, x, y, **options)
    on_batch = sn.solvers.natural_gradient(net, x[rows], y[rows], **options)
    gradient = jax.grad(loss)(params, x[rows], y[rows])
    step = jax.jit(on_all.update)(gradient, on_all.init(params), params, batch=(x[rows], y[rows]))[
        0
    ]
    wanted = on_batch.update(gradient, on_batch.init(params), params)[0]
    assert_close(flat(step), flat(wanted), rtol=1e-10)
    with pytest.raises(ValueError, match="batch"):
        on_all.update(gradient, on_all.init(params), params, batch=x)


def test_own_networks_and_integer_labels(x64):
    """An apply_fn on images, one output column, labels 0 and 1."""
    x = points(1, N, 6, "float64").reshape(N, 2, 3)
    labels = np.arange(N) % 2
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 40))), "v": jnp.ones(40)}

    def apply_fn(p, x):
        return jnp.tanh(x.reshape(len(x), -1) @ p["w"]) @ p["v"] / 40**0.5

    def loss(p):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(apply_fn(p, x), labels))

    tx = sn.solvers.natural_gradient(apply_fn, x, labels, loss="cross_entropy")
    sol = sn.solvers.minimise(loss, params, tx, rtol=1e-3)
    assert sol.stats["loss"][-1] < 1e-2 * sol.stats["loss"][0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([0, 1, 2, 3, 0, 1, 2]), "below the number of classes, 3, got 3"),
        (np.array([0, 1, -1, 0, 0, 1, 2]), "from 0 on"),
        (np.full((N, 3), 0.5), "sum to one"),
        (np.full((N, 4), 0.25), "shape of the outputs"),
        (np.arange(N) * 1.0, "probabilities"),
        (np.zeros((N + 1, 3)), "as many rows"),
        (np.full((N, 3), np.nan), "y"),
    ],
)
def test_targets_that_do_not_fit(y, message, x64, untyped):
    net, params = network(3)
    x = points(1, N, 4, "float64")

    def update():
        tx = sn.solvers.natural_gradient(net, x, y, loss="cross_entropy", damped=False)
        return tx.update(params, tx.init(params), params)

    with pytest.raises(ValueError, match=message):
        update()


def test_losses_that_are_none(x64, untyped):
    net, params = network(3)
    x, y = points(1, N, 4, "float64"), np.zeros((N, 3))
    with pytest.raises(ValueError, match="cross_entropy"):
        sn.solvers.natural_gradient(net, x, y, loss="crossentropy")
    tx = sn.solvers.natural_gradient(net, x, y, loss=lambda f, y: f - y, damped=False)
    with pytest.raises(ValueError, match="scalar of one point"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("unit", slow_except([1e-10, 1e-6, 1e8], 1e8))
def test_a_function_has_any_unit(unit):
    """Damping is relative to the curvature of a loss of one's own."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 40)), jnp.float32)}
    params["v"] = jnp.asarray(rng.normal(size=(40, 3)) / 40**0.5, jnp.float32)
    x, y = points(1, 8, 3, "float32"), jnp.asarray(np.eye(3)[np.arange(8) % 3], jnp.float32)
    apply_fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    point_loss = lambda f, y: unit * cross_entropy(f, y)
    total = lambda p: jnp.sum(jax.vmap(point_loss)(apply_fn(p, x), y))
    tx = sn.solvers.natural_gradient(apply_fn, x, y, loss=point_loss)
    sol = sn.solvers.minimise(total, params, tx, rtol=1e-3, max_steps=25, throw=False)
    assert sol.stats["loss"][-1] < 1e-2 * sol.stats["loss"][0]


def test_contradictory_points_with_weight_decay(x64):
    """The right side of the dual system does not vanish at the minimum, the gradient does."""
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(3, 40))),
        "v": jnp.asarray(rng.normal(size=(40, 3))),
    }
    x = jnp.concatenate([points(1, 4, 3, "float64")] * 2)
    labels = np.arange(8) % 3
    apply_fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"] / 40**0.5

    def loss(p):
        losses = optax.softmax_cross_entropy_with_integer_labels(apply_fn(p, x), labels)
        return jnp.sum(losses) + 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    tx = sn.solvers.natural_gradient(apply_fn, x, labels, loss="cross_entropy", weight_decay=1.0)
    sol = sn.solvers.minimise(loss, params, tx, rtol=1e-5, max_steps=300)
    reference = sn.solvers.minimise(loss, params, rtol=1e-8, max_steps=5000)
    assert_close(loss(sol.value), loss(reference.value), rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f: {"a": f},
        lambda f: (f, f),
        lambda f: None,
        lambda f: f.sum(),
        lambda f: f[:4],
    ],
)
def test_networks_that_return_something_else(wrong, x64, untyped):
    net, params = network(3)
    x = points(1, N, 4, "float64")
    apply_fn = lambda p, x: wrong(net.apply_fn(p, x))
    tx = sn.solvers.natural_gradient(
        apply_fn, x, np.zeros(N, int), loss="cross_entropy", damped=False
    )
    with pytest.raises(ValueError, match="net must return"):
        tx.update(params, tx.init(params), params)


def test_gradients_and_batches_of_another_shape(x64, untyped):
    net, params = network(3)
    x, labels = points(1, N, 4, "float64"), np.arange(N) % 3
    tx = sn.solvers.natural_gradient(net, x, labels, loss="cross_entropy", damped=False)
    with pytest.raises(ValueError, match="updates"):
        tx.update({"hidden": params.hidden}, tx.init(params), params)
    with pytest.raises(ValueError, match="batch"):
        tx.update(params, tx.init(params), params, batch=(x[:, :2], labels))

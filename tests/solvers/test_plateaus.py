"""Runs that end on a plateau of a saturated softmax, or bounce at the floor of rounding; against
SciPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import softntk as sn
from softntk.solution import Result
from softntk.solvers._minimise import implicit_diff

minimise = sn.solvers.minimise
SLOPES = {"exp": (np.exp, np.exp), "res_exp": (lambda z: np.exp(z) + z, lambda z: np.exp(z) + 1)}


def reachable(activation, seed, n=12, d=2):
    """Return A, b, and loss and gradient in NumPy, of a regression whose target is reached at |x|
    about 2.
    """
    u, slope = SLOPES[activation]
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, d))

    def predict(x):
        return u(A @ x) / u(A @ x).sum()

    b = predict(1.5 * rng.normal(size=d))

    def loss(x):
        return 0.5 * np.sum((predict(x) - b) ** 2)

    def gradient(x):
        residual = predict(x) - b
        slopes = slope(A @ x) / u(A @ x).sum()
        return A.T @ (slopes * (residual - residual @ predict(x)))

    return A, b, loss, gradient


@pytest.mark.parametrize("activation", SLOPES)
def test_the_default_reaches_what_scipy_reaches(activation, x64):
    for seed in range(31):
        A, b, loss, gradient = reachable(activation, seed)
        peer = scipy.optimize.minimize(
            loss, np.zeros(2), jac=gradient, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 0.0}
        )
        sol = minimise(
            sn.regression.problem(A, b, activation, "normalized"), jnp.zeros(2), throw=False
        )
        if int(sol.result) == Result.SUCCESSFUL:
            assert loss(np.asarray(sol.value)) <= peer.fun + 1e-6, seed
            assert int(sol.stats["steps"]) < 30, seed


def test_a_plateau_is_no_minimum(x64):
    """An exponential slope that flattens out at one: Newton's steps stay as long as they are."""

    def loss(x):
        return 1 + jnp.exp(-x[0])

    tx = sn.solvers.approx_newton(
        lambda x: sn.curvature.structured.StructuredOperator(
            jnp.eye(1), jnp.exp(-x), jnp.zeros((1, 0)), jnp.zeros((0, 0))
        ),
        damping="levenberg_marquardt",
    )
    sol = minimise(loss, jnp.zeros(1), tx, throw=False)
    assert Result(int(sol.result)) is Result.PLATEAU
    assert "plateau" in sol.advice


def test_what_vanishes_at_infinity_is_reached(x64):
    """The least loss is zero, and is come near to: e^{-x} without the one."""
    tx = sn.solvers.approx_newton(jnp.ones((1, 1)), damping="levenberg_marquardt")
    sol = minimise(lambda x: jnp.exp(-x[0]) ** 2, jnp.zeros(1), tx, rtol=1e-3, throw=False)
    assert Result(int(sol.result)) is not Result.PLATEAU


@pytest.mark.parametrize("power", [4, 6])
def test_flat_minima_are_minima(power, x64):
    """Newton's steps shrink by a factor only, but they shrink."""

    def curvature(x):
        return power * (power - 1) * jnp.diag(x ** (power - 2))

    def as_operator(x):
        import lineax as lx

        return lx.MatrixLinearOperator(curvature(x), lx.symmetric_tag)

    tx = sn.solvers.approx_newton(as_operator, damping="levenberg_marquardt")
    sol = minimise(lambda x: 1 + jnp.sum(x**power), jnp.ones(2), tx, rtol=1e-8, throw=False)
    assert Result(int(sol.result)) is Result.SUCCESSFUL


@pytest.mark.slow
@pytest.mark.optimised
def test_heavy_tails_end_where_the_gradient_is_small_enough(x64):
    """Condition 1e3, rows of log-normal scale, tiny weights: the curvature is negative by rounding."""
    rng = np.random.default_rng(0)
    n, d = 20_000, 60
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    A = rng.normal(size=(n, d)) @ (np.geomspace(1, 1e-3, d)[:, None] * rotation)
    A *= np.exp(0.7 * rng.normal(size=(n, 1)))
    z = A @ rng.normal(size=d)
    b = np.exp(z / z.std() + 0.5 * rng.normal(size=n))
    p = sn.regression.problem(A, b / b.sum(), "res_exp", weights=1e-3 / n)
    sol = minimise(p, jnp.zeros(d), max_steps=200, throw=False)
    norms = np.asarray(sol.stats["gradient_norm"])
    first = int(np.argmax(norms <= 1e-9 * norms[0]))
    assert Result(int(sol.result)) is Result.SUCCESSFUL
    assert 0 < first <= int(sol.stats["steps"]) <= first + 10
    assert float(jnp.linalg.norm(p.gradient(sol.value))) <= 1.01e-9 * norms[0]


# --- implicit derivatives where the Hessian is singular
# ---------------------------------------------------


def test_derivatives_of_leaves_that_do_not_move(x64):
    import optax

    start = {"a": jnp.zeros(()), "b": jnp.zeros(()), "count": jnp.array(3)}

    def ridge(weight):
        def loss(tree):
            return (tree["a"] - weight) ** 2 + (tree["b"] - tree["a"]) ** 2

        return minimise(loss, start, optax.sgd(0.1)).value["b"]

    def offset(c):
        sol = minimise(lambda x: jnp.sum((x - 1) ** 2) + c, jnp.zeros(2), optax.sgd(0.4))
        return jnp.sum(sol.value)

    for f, wanted in ((ridge, 1.0), (offset, 0.0)):
        for derivative in (jax.grad(f), jax.jacfwd(f)):
            assert abs(float(derivative(1.0)) - wanted) < 1e-9
        assert abs(float(jax.grad(jax.grad(f))(1.0))) < 1e-9


def test_derivatives_with_an_intercept_are_of_least_norm(x64):
    """Where b is reached predictions move by P db, P the projection onto the range of their slopes."""
    rng = np.random.default_rng(0)
    A = np.concatenate([rng.normal(size=(12, 2)), np.ones((12, 1))], axis=1)
    f = np.exp(A @ [1.0, -1.0, 0.0])
    f /= f.sum()

    def predicted(b):
        p = sn.regression.softmax(jnp.asarray(A), b)
        return p.predict(minimise(p, jnp.zeros(3), throw=False).value)

    slopes = (np.diag(f) - np.outer(f, f)) @ A
    P = slopes @ np.linalg.pinv(slopes, rcond=1e-8)
    for derivative in (jax.jacfwd, jax.jacrev):
        assert np.abs(derivative(predicted)(jnp.asarray(f)) - P).max() < 1e-6
    lanes = jnp.stack([jnp.asarray(f), jnp.full(12, jnp.nan)])
    both = jax.vmap(jax.jacrev(predicted))(lanes)
    assert np.abs(both[0] - P).max() < 1e-6, "a lane that is not finite spoils another"


def test_many_unknowns_are_solved_by_products(x64, monkeypatch):
    monkeypatch.setattr(implicit_diff, "MAX_DENSE_SIZE", 1)
    rng = np.random.default_rng(0)
    B = rng.normal(size=(6, 4))
    H = B @ B.T  # of rank four
    r = H @ rng.normal(size=6)
    import lineax as lx

    operator = lx.MatrixLinearOperator(jnp.asarray(H), lx.symmetric_tag)
    s = implicit_diff._least_norm_solution(operator, jnp.asarray(r))
    assert np.abs(s - np.linalg.pinv(H, rcond=1e-10) @ r).max() < 1e-8


def saturating(x, rows, target):
    """Return ‖softmax(Bx) − t‖², whose least value is zero and whose plateaus are not."""
    return jnp.sum((jax.nn.softmax(rows @ x) - target) ** 2)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("traced", [False, True])
def test_first_order_methods_see_plateaus_as_well(seed, traced, x64):
    rng = np.random.default_rng(seed)
    rows = jnp.asarray(3 * rng.normal(size=(12, 2)))
    target = jax.nn.softmax(rows @ (0.7 * rng.normal(size=2)))

    def run(rows):
        return minimise(
            saturating,
            jnp.zeros(2),
            optax.sgd(1000.0),
            throw=False,
            max_steps=50,
            args=(rows, target),
        )

    sol = (jax.jit(run) if traced else run)(rows)
    assert Result(int(sol.result)) is Result.PLATEAU


@pytest.mark.parametrize("power", [2, 4])
def test_flat_minima_are_no_plateaus(power):
    sol = minimise(
        lambda x: 1 + jnp.sum((x - 1) ** power * jnp.array([1.0, 3.0])),
        jnp.zeros(2),
        optax.sgd(0.05),
        max_steps=5000,
    )
    assert Result(int(sol.result)) is Result.SUCCESSFUL


@pytest.mark.parametrize("rate", [50.0, 1.0])
def test_an_overshoot_is_no_success(rate):
    """The gradients that Adam meets where a large rate has thrown it are no measure of those at a
    minimum.
    """

    def rosenbrock(x):
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    tx = optax.adam(optax.exponential_decay(rate, 20, 0.5))
    sol = minimise(rosenbrock, jnp.array([-1.2, 1.0]), tx, throw=False, max_steps=500)
    slope = np.linalg.norm(jax.grad(rosenbrock)(sol.value))
    assert int(sol.result) != Result.SUCCESSFUL or slope < 1e-4 * 233


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_products_of_any_unit_are_solved(unit, x64):
    rng = np.random.default_rng(0)
    B, r = rng.normal(size=(6, 6)), rng.normal(size=6)
    H = unit * (B @ B.T + np.eye(6))
    s = implicit_diff._conjugate_gradients(lambda v: jnp.asarray(H) @ v, jnp.asarray(r))
    assert np.abs(unit * s - np.linalg.solve(H / unit, r)).max() < 1e-9

"""Newton steps on cross-entropy: minimisers of SciPy and scikit-learn, preconditioners by class."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import assert_close, slow_except
from jax.experimental import sparse
from jax.flatten_util import ravel_pytree

import softntk as sn
from softntk.regression import _class_blocks
from softntk.solution import Result
from softntk.solvers._newton.preconditioner import PRODUCTS_BEFORE_REFRESH


def classification(n=300, d=6, k=4, seed=0):
    """Rows of features of different scale, with labels drawn from a softmax."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.geomspace(0.1, 3, d))
    Z = A @ rng.normal(size=(d, k))
    return A, np.argmax(Z + rng.gumbel(size=Z.shape), axis=1)


def by_scipy(p):
    """The minimiser by SciPy's BFGS on the loss, in float64."""
    flat, unravel = ravel_pytree(p.zeros())

    def loss(flat):
        value, gradient = p.value_and_gradient(unravel(jnp.asarray(flat)))
        return float(value), np.asarray(ravel_pytree(gradient)[0])

    options = {"gtol": 1e-9, "maxiter": 5000}
    return scipy.optimize.minimize(loss, flat, jac=True, method="BFGS", options=options).x


def by_blocks(p, **options):
    return sn.solvers.approx_newton(
        p.hessian,
        cg_steps=40,
        preconditioner=p.preconditioner,
        damping="levenberg_marquardt",
        **options,
    )


@pytest.mark.parametrize(
    ("kind", "reference"),
    slow_except(itertools.product(["dense", "sparse"], [True, False]), ("sparse", False)),
)
def test_minimisers_are_those_of_scipy(kind, reference, x64):
    A, y = classification()
    if kind == "sparse":
        A = sparse.BCOO.fromdense(jnp.asarray(np.where(np.abs(A) > 0.5, A, 0)))
    p = sn.regression.cross_entropy(A, y, weights=0.7, reference=reference)
    desired = by_scipy(p)
    for tx in (None, by_blocks(p)):
        sol = sn.solvers.minimise(p, p.zeros(), tx)
        assert int(sol.result) == Result.SUCCESSFUL
        assert_close(ravel_pytree(sol.value)[0], desired, rtol=1e-6)


def test_minimisers_are_those_of_scikit_learn(x64):
    from sklearn.linear_model import LogisticRegression

    A, y = classification()
    model = LogisticRegression(C=0.5, tol=1e-11, max_iter=10_000, solver="newton-cg").fit(A, y)
    p = sn.regression.cross_entropy(A, y, weights=0.5**-0.5)
    X, c = sn.solvers.minimise(p, p.zeros()).value
    assert_close(X.T, model.coef_, rtol=1e-6)
    assert_close(c - c.mean(), model.intercept_ - model.intercept_.mean(), rtol=1e-6)
    assert_close(p.predict((X, c)), model.predict_proba(A), rtol=1e-6)
    two = LogisticRegression(C=1.0, tol=1e-11, max_iter=10_000, solver="newton-cg").fit(A, y > 1)
    p = sn.regression.cross_entropy(A, (y > 1).astype(int), weights=1.0, reference=True)
    X, c = sn.solvers.minimise(p, p.zeros()).value
    assert_close(X.T, two.coef_, rtol=1e-6)
    assert_close(c, two.intercept_, rtol=1e-6)


def test_a_start_off_the_gauge_comes_back(x64):
    A, y = classification()
    p = sn.regression.cross_entropy(A, y, weights=1.0)
    X0, c0 = p.zeros()
    off = (X0 + 3.0, c0 + 2.0)
    for tx in (None, by_blocks(p)):
        X, c = sn.solvers.minimise(p, off, tx).value
        desired = sn.solvers.minimise(p, p.zeros()).value
        assert_close(X, desired.coefficients, rtol=1e-6)
        # Nothing holds the mean of the intercept.
        assert_close(c - c.mean(), desired.intercept, rtol=1e-6)


def dense_of(root, size):
    """P⁻¹ = S Sᵀ as a matrix."""
    S_transposed = root.solve_root_transposed(jnp.eye(size))
    assert_close(
        root.solve_root(S_transposed)[:, 0], S_transposed.T @ S_transposed[:, 0], rtol=1e-5
    )
    return S_transposed.T @ S_transposed


@pytest.mark.parametrize("joint", [True, False])
def test_blocks_of_all_rows_are_those_of_the_curvature(joint, x64, monkeypatch):
    """P⁻¹ against the formula of the module, by dense linear algebra."""
    monkeypatch.setattr(_class_blocks, "CONSTANT_SHARE", 0.0)
    monkeypatch.setattr(_class_blocks, "MAX_JOINT_PRODUCTS", np.inf if joint else 0.0)
    jax.clear_caches()
    A, y = classification(n=40, d=3, k=3)
    w = np.array([0.5, 0.0, 2.0])
    p = sn.regression.cross_entropy(A, y, weights=w)
    rng = np.random.default_rng(1)
    x = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), p.zeros())
    first = p.preconditioner(x)
    root = p.preconditioner(x, first)
    e, k = 4, 3
    H = np.asarray(p.hessian(x).as_matrix()).reshape(e, k, e, k)
    inverse = np.zeros((e, k, e, k))
    for c in range(k):
        inverse[:, c, :, c] = np.linalg.inv(H[:, c, :, c])
    inverse = inverse.reshape(e * k, e * k)
    projection = np.kron(np.eye(e), np.eye(k) - 1 / k)
    if joint:
        inverse = np.linalg.pinv(projection @ H.reshape(e * k, e * k) @ projection)
    gauge = np.kron(np.diag([4.0, 0.0, 0.25, 0.0]), np.full((k, k), 1 / k))
    desired = projection @ inverse @ projection + gauge
    assert_close(dense_of(root, e * k), desired, rtol=1e-3)
    jax.clear_caches()


def test_the_first_blocks_are_the_bound_up_to_a_factor(x64):
    """At zero P⁻¹H has one eigenvalue, but for the penalty and the gauge."""
    A, y = classification()
    p = sn.regression.cross_entropy(A, y)
    H = p.hessian(p.zeros()).as_matrix()
    inverse = dense_of(p.preconditioner(p.zeros()), len(H))
    eigenvalues = np.sort(np.linalg.eigvals(inverse @ H).real)
    gauge = A.shape[1] + 1
    assert np.abs(eigenvalues[:gauge]).max() < 1e-5
    assert_close(eigenvalues[gauge:] / eigenvalues[-1], np.ones(len(H) - gauge), rtol=2e-2)


def test_it_saves_products_and_is_refreshed(x64):
    A, y = classification(n=3000, d=30, k=5)
    p = sn.regression.cross_entropy(A, y, weights=1.0)
    with_blocks = sn.solvers.minimise(p, p.zeros(), by_blocks(p))
    plain = sn.solvers.approx_newton(p.hessian, cg_steps=40, damping="levenberg_marquardt")
    without = sn.solvers.minimise(p, p.zeros(), plain)
    assert 3 * with_blocks.state[0].conjugate_gradient_steps < (
        without.state[0].conjugate_gradient_steps
    )
    first = p.preconditioner(p.zeros())
    last = with_blocks.state[0].preconditioner
    assert not np.allclose(first.scales, last.scales)
    assert np.array_equal(np.asarray(first.gram), np.asarray(last.gram))


@pytest.mark.slow
def test_diagonal_blocks(x64, monkeypatch):
    monkeypatch.setattr(_class_blocks, "MAX_BLOCK_ENTRIES", 10)
    jax.clear_caches()
    A, y = classification()
    for reference in (True, False):
        p = sn.regression.cross_entropy(A, y, weights=1.0, reference=reference)
        root = p.preconditioner(p.zeros())
        assert root.inverse_roots is None
        dense_of(root, ravel_pytree(p.zeros())[0].size)
        sol = sn.solvers.minimise(p, p.zeros(), by_blocks(p))
        assert_close(ravel_pytree(sol.value)[0], by_scipy(p), rtol=1e-6)
    jax.clear_caches()


def test_implicit_derivatives(x64):
    A, y = classification(n=30, d=3, k=3)
    A = jnp.asarray(A)

    def predict(w):
        p = sn.regression.cross_entropy(A, y, weights=w)
        x = sn.solvers.minimise(p, p.zeros(), rtol=1e-12, throw=False).value
        return p.predict(x)

    step = 1e-5
    desired = (predict(jnp.asarray(1 + step)) - predict(jnp.asarray(1 - step))) / (2 * step)
    assert_close(jax.jacobian(predict)(jnp.asarray(1.0)), desired, rtol=1e-6)


@pytest.mark.parametrize("with_x64", slow_except([False, True], True))
def test_float32(with_x64):
    A, y = classification()
    with jax.enable_x64(with_x64):
        p = sn.regression.cross_entropy(A.astype("float32"), y, weights=1.0)
        sol = sn.solvers.minimise(p, p.zeros(), by_blocks(p))
        assert sol.value.coefficients.dtype == jnp.float32
        assert int(sol.result) == Result.SUCCESSFUL


def test_bad_preconditioners(untyped):
    A, y = classification()
    p = sn.regression.cross_entropy(A, y)
    newton = sn.solvers.approx_newton
    with pytest.raises(ValueError, match="cg_steps"):
        newton(p.hessian, preconditioner=p.preconditioner)
    with pytest.raises(ValueError, match="no sketch_size"):
        newton(p.hessian, preconditioner=p.preconditioner, cg_steps=3, sketch_size=9)
    with pytest.raises(ValueError, match="^preconditioner must"):
        newton(p.hessian, preconditioner=3, cg_steps=3)  # pyright: ignore
    assert PRODUCTS_BEFORE_REFRESH > 0

"""Cross-entropy against automatic differentiation of the loss written plainly, in float64; hard
cases; transformations.
"""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import assert_close, cast
from jax.experimental import sparse
from jax.flatten_util import ravel_pytree

import softntk as sn
from softntk._linalg import row_passes
from softntk.regression import CrossEntropyParameters
from softntk.solution import Result

KINDS = {
    "dense": jnp.asarray,
    "sparse": sparse.BCOO.fromdense,
    "operator": lambda A: (
        lx.MatrixLinearOperator(A)
        @ lx.IdentityLinearOperator(jax.ShapeDtypeStruct((A.shape[1],), A.dtype))
    ),
}


def instance(n: int = 12, d: int = 3, k: int = 3, seed: int = 0) -> tuple:
    """A, soft targets with some hard ones, s with zeros, w, and V [d + 1, k]."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.7)
    Y = rng.dirichlet(np.ones(k), size=n)
    Y[::2] = np.eye(k)[rng.integers(0, k, size=len(Y[::2]))]
    s = rng.random(n) * (rng.random(n) < 0.8)
    w = rng.random(d)
    return tuple(jnp.asarray(part) for part in (A, Y, s, w, rng.normal(size=(d + 1, k))))


def plain_loss(A, Y, s, w, *, intercept=True, reference=False):
    """The loss of flat parameters, as the textbook has it."""
    columns = Y.shape[1] - reference

    def loss(flat):
        V = flat.reshape(-1, columns)
        Z = A @ V[: A.shape[1]] + (V[-1:] if intercept else 0)
        if reference:
            Z = jnp.concatenate([jnp.zeros((len(Z), 1)), Z], axis=1)
        rows = jax.nn.logsumexp(Z, axis=1) - jnp.sum(Y * Z, axis=1)
        penalty = 0.5 * jnp.sum((w[:, None] * V[: A.shape[1]]) ** 2)
        return jnp.sum(jnp.where(s > 0, s * rows, 0)) + penalty

    return loss


def parameters(V, *, intercept=True, reference=False) -> Any:
    """Stacked parameters as the problem takes them."""
    V = V[:, 1:] if reference else V
    return CrossEntropyParameters(V[:-1], V[-1]) if intercept else V[:-1]


def flat_of(x):
    return ravel_pytree(x)[0]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("reference", [True, False])
def test_everything_is_that_of_automatic_differentiation(intercept, reference, x64):
    A, Y, s, w, V = instance()
    options = {"intercept": intercept, "reference": reference}
    loss = plain_loss(A, Y, s, w, **options)
    x = parameters(V, **options)
    flat = flat_of(x)
    hessian = jax.hessian(loss)(flat)
    for make in KINDS.values():
        p = sn.regression.cross_entropy(make(A), Y, weights=w, sample_weight=s, **options)
        assert_close(p(x), loss(flat))
        assert_close(flat_of(p.gradient(x)), jax.grad(loss)(flat))
        assert_close(p.value_and_gradient(x)[0], loss(flat))
        H = p.hessian(x)
        assert_close(H.as_matrix(), hessian)
        assert_close(flat_of(H.mv(x)), hessian @ flat)
        assert_close(lx.diagonal(H), jnp.diag(hessian))
        assert_close(lx.materialise(H).as_matrix(), hessian)
        assert np.array_equal(H.as_matrix(), H.as_matrix().T)
        assert lx.is_symmetric(H)
        assert lx.is_positive_semidefinite(H)
        assert jax.tree.map(jnp.shape, H.in_structure()) == jax.tree.map(jnp.shape, x)
        assert_close(p.gauss_newton(x).as_matrix(), hessian)
        assert int(p.check(x)) == Result.SUCCESSFUL
        assert type(p.gradient(x)) is type(x)
    assert_close(flat_of(jax.grad(p)(x)), jax.grad(loss)(flat))
    unravel = ravel_pytree(x)[1]
    assert_close(jax.hessian(lambda flat: p(unravel(flat)))(flat), hessian)
    Z = np.asarray(p.logits(x))
    assert Z.shape == Y.shape
    odds = np.exp(Z - Z.max(1, keepdims=True))
    assert_close(p.predict(x), odds / odds.sum(1, keepdims=True))


@pytest.mark.parametrize(("n", "d", "k"), [(4, 6, 2), (9, 2, 50), (1, 1, 2)])
def test_other_shapes(n, d, k, x64):
    A, Y, s, w, V = instance(n, d, k, seed=1)
    s = s + 0.1
    p = sn.regression.cross_entropy(A, Y, weights=w, sample_weight=s)
    x = parameters(V)
    loss = plain_loss(A, Y, s, w)
    assert_close(flat_of(p.gradient(x)), jax.grad(loss)(flat_of(x)))
    hessian = jax.hessian(loss)(flat_of(x))
    assert_close(p.hessian(x).as_matrix(), hessian)
    assert_close(flat_of(p.hessian(x).mv(x)), hessian @ flat_of(x))


def test_one_pass_in_blocks_is_that_at_once(x64, monkeypatch):
    monkeypatch.setattr(row_passes, "BLOCK_ENTRIES", 15)
    monkeypatch.setattr(row_passes, "MIN_BLOCK_ROWS", 1)
    A, Y, s, w, V = instance(n=17)
    x = parameters(V)
    p = sn.regression.cross_entropy(A, Y, weights=w, sample_weight=s)
    loss = plain_loss(A, Y, s, w)
    with jax.disable_jit(False):
        jax.clear_caches()
        assert_close(flat_of(p.gradient(x)), jax.grad(loss)(flat_of(x)))
        hessian = jax.hessian(loss)(flat_of(x))
        assert_close(flat_of(p.hessian(x).mv(x)), hessian @ flat_of(x))
        # Derivatives by the data: forward, and backward.
        by_data = jax.jacrev(lambda A: flat_of(p_of(A, Y, s, w).gradient(x)))(A)
        desired = jax.jacfwd(lambda A: jax.grad(plain_loss(A, Y, s, w))(flat_of(x)))(A)
        assert_close(by_data, desired)
    jax.clear_caches()


def p_of(A, Y, s, w):
    return sn.regression.cross_entropy(A, Y, weights=w, sample_weight=s)


def test_labels_are_one_hot_probabilities(x64):
    A, _, s, _, V = instance(k=4)
    labels = np.random.default_rng(2).integers(0, 3, size=len(A))
    Y = np.eye(4)[labels]
    x = parameters(V)
    by_labels = sn.regression.cross_entropy(A, labels, sample_weight=s, classes=4)
    by_rows = sn.regression.cross_entropy(A, Y, sample_weight=s)
    by_integers = sn.regression.cross_entropy(A, Y.astype(int), sample_weight=s)
    assert float(by_labels(x)) == float(by_rows(x)) == float(by_integers(x))
    traced = jax.jit(lambda y: sn.regression.cross_entropy(A, y, sample_weight=s, classes=4)(x))
    assert_close(traced(labels), by_rows(x))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits(size, x64):
    """Logits of ±10⁴: the loss of a wrong row is the gap of its logits, all others underflow."""
    A = jnp.eye(3)
    X = size * jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    p = sn.regression.cross_entropy(A, np.array([0, 1, 2]), intercept=False)
    Z = np.asarray(X)
    # In NumPy with the largest logit taken out.
    odds = np.exp(Z - Z.max(1, keepdims=True))
    P = odds / odds.sum(1, keepdims=True)
    losses = np.log(odds.sum(1)) + Z.max(1) - Z[np.arange(3), np.arange(3)]
    assert_close(p(X), losses.sum())
    assert_close(p.gradient(X), P - np.eye(3))
    assert_close(p.predict(X), P)
    assert np.isfinite(p.hessian(X).as_matrix()).all()


def test_a_tiny_loss_keeps_its_digits(x64):
    """log(1 + e⁻⁵⁰) is e⁻⁵⁰, not zero."""
    p = sn.regression.cross_entropy(jnp.ones((1, 1)), np.array([0]), intercept=False, classes=2)
    X = jnp.array([[50.0, 0.0]])
    assert_close(p(X), np.exp(-50.0))


def test_float32():
    with jax.enable_x64(True):
        A, Y, s, w, V = cast(cast(instance(n=40), "float32"), "float64")
        loss = plain_loss(A, Y, s, w)
        flat = V.reshape(-1)
        expected = (loss(flat), jax.grad(loss)(flat), jax.hessian(loss)(flat))
    A, Y, s, w, V = cast((A, Y, s, w, V), "float32")
    p = sn.regression.cross_entropy(A, Y / Y.sum(1, keepdims=True), weights=w, sample_weight=s)
    x = parameters(V)
    assert p.dtype == p(x).dtype == jnp.float32
    assert_close(p(x), expected[0], rtol=1e-5)
    assert_close(flat_of(p.gradient(x)), expected[1], rtol=1e-4)
    assert_close(p.hessian(x).as_matrix(), expected[2], rtol=1e-4)


def test_the_sum_over_many_rows_keeps_its_digits_in_float32():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(100_000, 2)).astype(np.float32)
    labels = rng.integers(0, 3, size=len(A))
    X = np.asarray([[1.0, -0.5, 0.25], [0.5, 1.0, -1.0]], np.float32)
    p = sn.regression.cross_entropy(A, labels, intercept=False)
    Z = A.astype(np.float64) @ X
    desired = np.sum(np.log(np.exp(Z).sum(1)) - Z[np.arange(len(Z)), labels])
    assert_close(p(X), desired, rtol=2e-6)
    assert_close(p.value_and_gradient(X)[0], desired, rtol=2e-6)


def test_outside_of_the_domain(x64):
    A, Y, _, _, V = instance()
    p = sn.regression.cross_entropy(A, Y)
    huge = jax.tree.map(lambda leaf: leaf * 1e308, parameters(V))
    huge = huge._replace(coefficients=huge.coefficients * 10)
    assert float(p(huge)) == np.inf
    assert int(p.check(huge)) in (Result.NONFINITE_INPUT, Result.OVERFLOW)
    large = parameters(jnp.full_like(V, 1e308).at[:, 0].set(-1e308))
    assert float(p(large)) == np.inf
    assert int(p.check(large)) == Result.OVERFLOW
    for result in (p.gradient(large), p.predict(large), p.logits(large), jax.grad(p)(large)):
        assert not np.isnan(flat_of(result)).any()
    assert not np.isnan(p.hessian(large).as_matrix()).any()
    assert int(p.check(parameters(V * np.nan))) == Result.NONFINITE_INPUT


def test_rows_without_weight_count_for_nothing(x64):
    A, Y, _, w, V = instance()
    s = np.ones(len(A))
    s[3] = 0
    x = parameters(V)
    overflowing = A.at[3].set(1e308)
    p = sn.regression.cross_entropy(overflowing, Y, weights=w, sample_weight=s)
    without = sn.regression.cross_entropy(
        np.delete(np.asarray(A), 3, 0), np.delete(np.asarray(Y), 3, 0), weights=w
    )
    assert_close(p(x), without(x))
    assert_close(flat_of(p.gradient(x)), flat_of(without.gradient(x)))
    assert_close(flat_of(p.hessian(x).mv(x)), flat_of(without.hessian(x).mv(x)))
    assert int(p.check(x)) == Result.SUCCESSFUL


def test_class_weights_are_those_of_scikit_learn(x64):
    from sklearn.utils.class_weight import compute_class_weight

    A, _, s, _, _ = instance(n=30)
    labels = np.random.default_rng(3).choice(3, size=30, p=[0.6, 0.3, 0.1])
    labels[:3] = [0, 1, 2]
    p = sn.regression.cross_entropy(A, labels, class_weight="balanced")
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert_close(p.sample_weight, weights[labels])
    given = sn.regression.cross_entropy(
        A, labels, class_weight=np.array([1.0, 2.0, 3.0]), sample_weight=s
    )
    assert_close(given.sample_weight, np.asarray(s) * (labels + 1))
    absent = sn.regression.cross_entropy(A, labels, class_weight="balanced", classes=4)
    assert_close(absent.sample_weight, 0.75 * weights[labels])


def test_transformations(x64):
    A, Y, s, w, V = instance()
    p = p_of(A, Y, s, w)
    x = parameters(V)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), x)
    assert_close(jax.vmap(p)(batch)[1], p(jax.tree.map(lambda leaf: 2 * leaf, x)))
    assert_close(jax.jit(p.gradient)(x).coefficients, p.gradient(x).coefficients)
    # Derivatives by all data.
    actual = jax.grad(lambda *data: p_of(*data)(x), argnums=(0, 1, 2, 3))(A, Y, s, w)
    desired = jax.grad(lambda *data: plain_loss(*data)(flat_of(x)), argnums=(0, 1, 2, 3))(
        A, Y, s, w
    )
    counted = np.asarray(s) > 0
    for index, (ours, plain) in enumerate(zip(actual, desired, strict=True)):
        rows = counted if index in (0, 1, 2) else slice(None)
        assert_close(ours[rows], plain[rows])
    pair = tuple(x)
    assert type(p.gradient(pair)) is tuple
    assert_close(p.gradient(pair)[1], p.gradient(x).intercept)


# --- minimisers at infinity


def test_directions_of_recession(x64):
    line = jnp.asarray([[-2.0], [-1.0], [1.0], [3.0]])
    labels = np.array([0, 0, 1, 1])
    p = sn.regression.cross_entropy(line, labels)
    separating = CrossEntropyParameters(jnp.array([[-1.0, 1.0]]), jnp.zeros(2))
    assert bool(p.is_recession(separating))
    assert int(p.check(separating)) == Result.MINIMUM_AT_INFINITY
    assert int(jax.jit(p.check)(separating)) == Result.MINIMUM_AT_INFINITY
    # Along one of two features.
    pair = sn.regression.cross_entropy(jnp.concatenate([line, line**2], axis=1), labels)
    first_alone = CrossEntropyParameters(jnp.array([[-1.0, 1.0], [0.0, 0.0]]), jnp.zeros(2))
    assert bool(pair.is_recession(first_alone))
    # The other way round, along the gauge, and not at all.
    assert not bool(p.is_recession(jax.tree.map(jnp.negative, separating)))
    assert not bool(p.is_recession(CrossEntropyParameters(jnp.ones((1, 2)), jnp.ones(2))))
    assert not bool(p.is_recession(p.zeros()))
    # With a penalty on it, on soft targets, on data that are not separable.
    assert not bool(sn.regression.cross_entropy(line, labels, weights=1.0).is_recession(separating))
    soft = np.full((4, 2), 0.01) + 0.98 * np.eye(2)[labels]
    assert not bool(sn.regression.cross_entropy(line, soft).is_recession(separating))
    mixed = sn.regression.cross_entropy(line, np.array([0, 1, 0, 1]))
    assert not bool(mixed.is_recession(separating))
    # From a start beyond the data: x itself does not separate, the way to it does.
    far = CrossEntropyParameters(jnp.array([[2.0, -2.0]]), jnp.zeros(2))
    middle = CrossEntropyParameters(jnp.array([[1.0, -1.0]]), jnp.zeros(2))
    assert not bool(p.is_recession(middle))
    assert bool(p.lacks_minimiser(middle, far))
    assert not bool(p.lacks_minimiser(middle, p.zeros()))
    # A row of zero weight is none.
    s = np.array([1.0, 0.0, 0.0, 1.0])
    assert bool(
        sn.regression.cross_entropy(line, np.array([0, 1, 0, 1]), sample_weight=s).is_recession(
            separating
        )
    )


def test_absent_classes(x64):
    A, _, _, _, V = instance()
    labels = np.arange(len(A)) % 2
    for reference in (False, True):
        p = sn.regression.cross_entropy(A, labels, classes=3, weights=1.0, reference=reference)
        x = parameters(V, reference=reference)
        assert int(p.check(x)) == Result.MINIMUM_AT_INFINITY
        sol = sn.solvers.minimise(p, p.zeros(), throw=False)
        assert int(sol.result) == Result.MINIMUM_AT_INFINITY
    penalised = sn.regression.cross_entropy(A, labels, classes=3, weights=1.0, intercept=False)
    sol = sn.solvers.minimise(penalised, penalised.zeros())
    assert int(sol.result) == Result.SUCCESSFUL


def test_separable_data_have_no_minimiser(x64):
    line = jnp.asarray([[-2.0], [-1.0], [1.0], [3.0]])
    p = sn.regression.cross_entropy(line, np.array([0, 0, 1, 1]))
    sol = sn.solvers.minimise(p, p.zeros(), throw=False)
    assert int(sol.result) == Result.MINIMUM_AT_INFINITY
    with pytest.raises(sn.solution.NumericalError, match="weights > 0"):
        sn.solvers.minimise(p, p.zeros())
    held = sn.regression.cross_entropy(line, np.array([0, 0, 1, 1]), weights=0.1)
    assert int(sn.solvers.minimise(held, held.zeros()).result) == Result.SUCCESSFUL


@pytest.mark.slow
def test_separable_data_under_jit(x64):
    line = jnp.asarray([[-2.0], [-1.0], [1.0], [3.0]])
    p = sn.regression.cross_entropy(line, np.array([0, 0, 1, 1]))
    traced = jax.jit(lambda p: sn.solvers.minimise(p, p.zeros(), max_steps=30).result)
    assert int(traced(p)) == Result.MINIMUM_AT_INFINITY


def test_the_gauge_is_fixed_for_factorisations(x64):
    """H + diag of what has no penalty, times the mean over classes."""
    A, Y, s, _, V = instance()
    w = jnp.array([0.5, 0.0, 1.0])
    p = sn.regression.cross_entropy(A, Y, weights=w, sample_weight=s)
    x = parameters(V)
    H = np.asarray(p.hessian(x).as_matrix())
    rows = np.diag(H).reshape(4, 3).mean(1) * np.array([0, 1, 0, 1])
    desired = H + np.kron(np.diag(rows), np.full((3, 3), 1 / 3))
    fixed = p.gauge_fixed_hessian(x)
    assert_close(fixed.as_matrix(), desired)
    assert_close(flat_of(fixed.mv(x)), desired @ flat_of(x))
    assert_close(lx.diagonal(fixed), np.diag(desired))
    assert np.linalg.cond(H) > 1e12 > 1e6 > np.linalg.cond(desired)

"""The regression family against automatic differentiation of a loss written plainly, in float64;
huge logits; bad input.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from helpers import assert_close, cast, slow_except
from jax.experimental import sparse

import softntk as sn
from softntk.solution import Result

U = {
    "exp": jnp.exp,
    "res_exp": lambda z: jnp.exp(z) + z,
    "cosh": jnp.cosh,
    "sinh": jnp.sinh,
    "relu": jax.nn.relu,
    "identity": lambda z: z,
    "erf": jax.scipy.special.erf,
}
RESIDUALS = {
    "normalized": lambda u, b: u / jnp.sum(u) - b,
    "rescaled": lambda u, b: u - jnp.sum(u) * b,
    "plain": lambda u, b: u - b,
}
KINDS = {
    "dense": jnp.asarray,
    "sparse": sparse.BCOO.fromdense,
    "operator": lambda A: (
        lx.MatrixLinearOperator(A)
        @ lx.IdentityLinearOperator(jax.ShapeDtypeStruct((A.shape[1],), A.dtype))
    ),
}
SHAPES = {"tall": (12, 3), "wide": (3, 5), "one column": (6, 1), "one row": (1, 3)}


def instance(shape="tall", seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    n, d = SHAPES[shape]
    A, b, w, x = rng.normal(size=(n, d)), rng.normal(size=n), rng.random(n), rng.normal(size=d)
    A[rng.random((n, d)) < 0.3] = 0
    return (scale * A, *(jnp.asarray(part) for part in (b, w, x)))


def plain_loss(activation, form, A, b, w):
    def loss(x):
        z = A @ x
        return 0.5 * jnp.sum(RESIDUALS[form](U[activation](z), b) ** 2) + 0.5 * jnp.sum(
            (w * z) ** 2
        )

    return loss


@pytest.mark.parametrize(
    ("activation", "form"),
    slow_except(list(itertools.product(U, RESIDUALS)), ("res_exp", "normalized")),
)
def test_everything_is_that_of_automatic_differentiation(activation, form, x64):
    A, b, w, x = instance()
    loss = plain_loss(activation, form, A, b, w)
    value, gradient, hessian = loss(x), jax.grad(loss)(x), jax.hessian(loss)(x)
    residual = lambda x: RESIDUALS[form](U[activation](A @ x), b)
    J = jax.jacfwd(residual)(x)
    gauss_newton = J.T @ J + A.T @ (w[:, None] ** 2 * A)
    for make in KINDS.values():
        p = sn.regression.problem(make(A), b, activation, form, w)
        assert_close(p(x), value)
        assert_close(p.residual(x), residual(x))
        assert_close(p.gradient(x), gradient)
        assert_close(p.value_and_gradient(x)[0], value)
        H, G = p.hessian(x), p.gauss_newton(x)
        assert_close(H.as_matrix(), hessian)
        assert_close(H.mv(x), hessian @ x)
        assert_close(H.mm(jnp.stack([x, 2 * x], axis=1)), hessian @ jnp.stack([x, 2 * x], axis=1))
        assert_close(H.diagonal(), jnp.diag(hessian))
        assert_close(
            A.T @ (jnp.diag(H.logit_diagonal) + H.factors @ H.core @ H.factors.T) @ A, hessian
        )
        assert_close(G.as_matrix(), gauss_newton)
        assert lx.is_symmetric(H)
        assert not lx.is_positive_semidefinite(H)
        assert lx.is_positive_semidefinite(G)
        assert int(p.check(x)) == Result.SUCCESSFUL
    assert_close(jax.grad(p)(x), gradient)
    assert_close(jax.hessian(p)(x), hessian)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes(shape, x64):
    A, b, w, x = instance(shape)
    for activation, form in (("res_exp", "normalized"), ("cosh", "rescaled")):
        loss, p = (
            plain_loss(activation, form, A, b, 0 * w),
            sn.regression.problem(A, b, activation, form),
        )
        assert_close(p.gradient(x) + 1, jax.grad(loss)(x) + 1)
        assert_close(p.hessian(x).as_matrix() + 1, jax.hessian(loss)(x) + 1)


@pytest.mark.parametrize("activation", slow_except(["exp", "res_exp", "cosh"], "res_exp"))
def test_huge_logits(activation, x64):
    """±1e4, against the same problem with logits moved or scaled where mathematics says so, and
    finite throughout.
    """
    rng = np.random.default_rng(0)
    A = np.concatenate([rng.normal(size=(6, 2)), np.full((6, 1), 1.0)], axis=1)
    b = rng.dirichlet(np.ones(6))
    p = sn.regression.problem(A, jnp.asarray(b), activation)
    for top in (1e4, -1e4):
        x = jnp.array([0.3, -0.2, top])
        z = A @ x
        # In NumPy, with the largest exponent taken out by hand.
        c = {"exp": z.max(), "res_exp": max(z.max(), 0), "cosh": np.abs(z).max()}[activation]
        up, down, one = (
            np.exp(z - c),
            np.exp(-np.abs(z) - c) if activation == "cosh" else 0,
            np.exp(-c) if c > 0 else 1.0,
        )
        if activation == "cosh":
            up = np.exp(np.abs(z) - c)
        u = {"exp": up, "res_exp": up + z * one, "cosh": up + down}[activation]
        du = {"exp": up, "res_exp": up + one, "cosh": np.sign(z) * (up - down)}[activation]
        f, v = u / u.sum(), du / u.sum()
        assert_close(p.predict(x), f)
        assert_close(p.gradient(x), A.T @ (v * (f - b - (f - b) @ f)), rtol=1e-9)
        for curvature in (p.hessian(x), p.gauss_newton(x)):
            assert np.isfinite(curvature.as_matrix()).all()
        assert int(p.check(x)) == Result.SUCCESSFUL


@pytest.mark.slow
def test_gradient_keeps_its_digits_in_float32():
    with jax.enable_x64(True):
        for activation, form in itertools.product(("exp", "res_exp", "cosh", "erf"), RESIDUALS):
            for seed, scale in itertools.product(range(3), (0.1, 1.0, 3.0)):
                A, b, w, x = instance(seed=seed, scale=scale)
                A, b, w, x = cast(cast((jnp.asarray(A), b, w, x), "float32"), "float64")
                wide = sn.regression.problem(A, b, activation, form, w)
                A, b, w = cast((A, b, w), "float32")
                narrow = sn.regression.problem(A, b, activation, form, w)
                assert_close(narrow.gradient(x.astype("float32")), wide.gradient(x), rtol=1e-4)


@pytest.mark.parametrize("gap", slow_except([10.0, 20.0, 30.0], 20.0))
def test_gradient_keeps_its_digits_where_softmax_saturates(gap):
    """All of f on one sample: c − ⟨c, f⟩ would cancel there; Σ_j f_j (c_i − c_j), in NumPy's
    float64, does not.
    """
    A, b = (
        np.eye(8),
        np.random.default_rng(0).dirichlet(np.ones(8)).astype("float32").astype("float64"),
    )
    x = np.zeros(8)
    x[2] = gap
    f = np.exp(x - gap) / np.exp(x - gap).sum()
    c = f - b
    c[2] = -(np.delete(f, 2).sum()) + (1 - b[2])
    wanted = f * ((c[:, None] - c[None, :]) @ f)
    found = sn.regression.softmax(A.astype("float32"), b.astype("float32")).gradient(
        jnp.asarray(x, "float32")
    )
    assert_close(found, wanted, rtol=1e-5)


def test_operators_of_functions(x64):
    """Whose leaves are no arrays: as A, also under jit and as an argument of it."""
    A, b, w, x = instance()
    of_function = lx.FunctionLinearOperator(
        lambda v: jnp.asarray(A) @ v, jax.ShapeDtypeStruct((3,), "float64")
    )
    jacobian = lx.JacobianLinearOperator(lambda v, _: jnp.asarray(A) @ v, x)
    p = sn.regression.problem(A, b, weights=w)
    for op in (of_function, jacobian, lx.linearise(jacobian)):
        q = sn.regression.problem(op, b, weights=w)
        assert_close(q.gradient(x), p.gradient(x))
        assert_close(jax.jit(lambda q, x: q.hessian(x).as_matrix())(q, x), p.hessian(x).as_matrix())
        assert_close(jax.jit(q.gradient)(x), p.gradient(x))
    undefined: Any = A * np.nan
    with pytest.raises(ValueError, match="A must be finite"):
        sn.regression.problem(lx.MatrixLinearOperator(undefined), b)


def test_what_overflows_in_products_is_no_nan():
    A = jnp.array([[10.0, 10.0], [10.0, -10.0]])
    p = sn.regression.problem(A, jnp.full(2, 0.5), "cosh", "rescaled")
    x = jnp.array([4.42, 0.0])
    assert int(p.check(x)) == Result.OVERFLOW
    assert np.isfinite(p.hessian(x).mv(jnp.ones(2))).all()
    heavy = sn.regression.softmax(jnp.eye(2), jnp.full(2, 0.5), weights=1e20)
    assert_close(heavy.gradient(jnp.zeros(2)) + 1, np.ones(2), "float32")
    bump = sn.regression.problem(jnp.eye(2), jnp.full(2, 0.75), "crrelu", weights=0.1)
    assert np.isfinite(bump.gradient(jnp.array([1e18, -1.0]))).all()


def test_negative_weights_that_are_traced():
    A, b, _, x = cast(tuple(map(jnp.asarray, instance())), "float32")
    of = lambda w: sn.regression.softmax(A, b, weights=w)
    assert np.isposinf(jax.jit(lambda w: of(w)(x))(-1.0))
    assert int(jax.jit(lambda w: of(w).check(x))(-1.0)) == Result.NEGATIVE_WEIGHTS
    assert float(of(1)(x)) == float(of(1.0)(x))


def test_outside_of_the_domain_nothing_is_nan():
    A = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    b = jnp.array([0.2, 0.3, 0.5])
    lost = sn.regression.problem(A[:2], b[:2], "sinh")  # sinh(z) + sinh(−z) = 0
    large = sn.regression.problem(A, b, "exp", "plain")
    cases = [
        (lost, jnp.array([1.0, 0.0]), Result.NORMALISER_LOST),
        (large, jnp.array([1e4, 0.0]), Result.OVERFLOW),
    ]
    for p, x, code in cases:
        for run in (lambda f: f, jax.jit):
            assert np.isposinf(run(p)(x))
            assert int(run(p.check)(x)) == code
            assert np.isposinf(run(p.gradient)(x)).all()
            assert not np.isnan(run(jax.grad(p))(x)).any()
            for curvature in (p.hessian, p.gauss_newton):
                assert np.isfinite(run(lambda x, c=curvature: c(x).as_matrix())(x)).all()
    good = sn.regression.problem(A, b)
    assert int(good.check(jnp.array([jnp.nan, 0.0]))) == Result.NONFINITE_INPUT
    assert (
        int(jax.jit(lambda b: sn.regression.problem(A, b).check(jnp.zeros(2)))(b * jnp.nan))
        == Result.NONFINITE_INPUT
    )
    assert np.isposinf(jax.jit(lambda b: sn.regression.problem(A, b)(jnp.zeros(2)))(b * jnp.nan))


def test_a_normaliser_may_be_negative_but_not_change_its_sign():
    A = jnp.array([[1.0], [1.5]])
    p = sn.regression.problem(A, jnp.array([0.4, 0.6]), "sinh")
    below, above = jnp.array([-1.0]), jnp.array([1.0])
    assert_close(p.predict(below), p.predict(above), "float32")
    assert int(p.check(below)) == Result.SUCCESSFUL
    assert int(p.check(below, previous=above)) == Result.SIGN_CHANGED
    assert int(p.check(below, previous=2 * below)) == Result.SUCCESSFUL
    assert "shorter step" in Result.SIGN_CHANGED.advice


def test_many_targets_and_many_points(x64):
    A, _, w, x = instance()
    B = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(12), size=4))
    gradients = jax.jit(jax.vmap(lambda b: sn.regression.problem(A, b, weights=w).gradient(x)))(B)
    for b, gradient in zip(B, gradients, strict=True):
        assert_close(gradient, sn.regression.problem(A, b, weights=w).gradient(x))
    p = sn.regression.softmax(A, B[0])
    points = jnp.stack([x, -x, 0 * x])
    assert_close(jax.vmap(p)(points), jnp.stack([p(row) for row in points]))
    products = jax.vmap(lambda x: p.hessian(x).mv(x + 1))(points)
    assert_close(products[1], p.hessian(-x).mv(1 - x))


def test_derivatives_in_the_data(x64):
    """The toolkit is a differentiable one: ∂∇L/∂b and ∂L/∂w against differences."""
    A, b, w, x = instance()
    by_b = jax.jacfwd(lambda b: sn.regression.problem(A, b, weights=w).gradient(x))(b)
    step = 1e-6
    moved = [sn.regression.problem(A, b.at[2].add(s), weights=w).gradient(x) for s in (step, -step)]
    assert_close(by_b[:, 2], (moved[0] - moved[1]) / (2 * step), rtol=1e-6)
    by_w = jax.grad(lambda w: sn.regression.problem(A, b, weights=w)(x))(w)
    assert_close(by_w, w * (A @ x) ** 2)


def test_named_members(x64):
    A, b, w, x = instance()
    for p, activation, form in (
        (sn.regression.softmax(A, b, weights=w), "exp", "normalized"),
        (sn.regression.resnet_softmax(A, b, weights=w), "res_exp", "normalized"),
        (sn.regression.exponential(A, b, weights=w), "exp", "plain"),
        (sn.regression.hyperbolic(A, b, weights=w), "cosh", "rescaled"),
        (sn.regression.hyperbolic(A, b, "sinh", "plain", weights=w), "sinh", "plain"),
    ):
        assert_close(p(x), plain_loss(activation, form, A, b, w)(x))


def test_nothing_is_compiled_twice():
    import chex

    A, b, w, x = cast(tuple(map(jnp.asarray, instance())), "float32")
    run = jax.jit(chex.assert_max_traces(lambda p, x: p.hessian(x).mv(p.gradient(x)), 1))
    for factor in (1.0, 2.0):
        run(sn.regression.problem(factor * A, b, weights=w), factor * x)


A0, B0 = np.eye(3), np.full(3, 1 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": np.eye(3, dtype=int)}, "A must be a floating-point array, got dtype int"),
        ({"A": np.zeros((3, 0))}, "A must have at least one row and one column"),
        ({"A": np.full((3, 3), np.nan)}, "A must be finite"),
        ({"A": scipy.sparse.eye(3).tocsr()}, "A must be an array, a jax.experimental.sparse.BCOO"),
        (
            {"A": sparse.BCSR.fromdense(jnp.eye(3))},
            "A must be an array, a jax.experimental.sparse.BCOO",
        ),
        (
            {"A": sparse.BCOO.fromdense(jnp.eye(3, dtype=int))},
            "A must be a floating-point array, got dtype int32",
        ),
        ({"A": sparse.BCOO.fromdense(jnp.eye(3), n_batch=1)}, "A must be a BCOO of shape"),
        ({"A": sparse.BCOO.fromdense(jnp.full((3, 3), jnp.nan))}, "A.data must be finite"),
        (
            {"A": lx.IdentityLinearOperator(jax.ShapeDtypeStruct((3, 1), "float32"))},
            "A must be an operator from vectors",
        ),
        ({"b": np.full(2, 0.5)}, r"b must have shape \[3\], got shape \(2,\)"),
        ({"b": np.array([0.5, np.nan, 0.5])}, "b must be finite"),
        ({"b": np.ones(3, int)}, "b must be a floating-point array"),
        ({"weights": -1.0}, "weights must not be negative, got -1.0"),
        ({"weights": np.ones(2)}, "weights must be a scalar or have shape"),
        ({"weights": np.array([1.0, np.inf, 1.0])}, "weights must be finite"),
        ({"activation": "softmax"}, "activation must be one of"),
        ({"form": "normalised"}, "form must be one of .* Did you mean 'normalized'"),
    ],
)
def test_bad_input(arguments, message, untyped):
    with pytest.raises(ValueError, match=message):
        sn.regression.problem(**({"A": A0, "b": B0} | arguments))


def test_bad_points(untyped):
    p = sn.regression.problem(A0, B0)
    for call in (p, p.gradient, p.hessian, p.check):
        with pytest.raises(ValueError, match=r"x must have shape \[3\], got shape \(2,\)"):
            call(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"vector must have shape \[3\]"):
        p.hessian(jnp.zeros(3)).mv(jnp.zeros(4))
    with pytest.raises(ValueError, match="kind must be one of .*cosh.*sinh"):
        sn.regression.hyperbolic(A0, B0, "tanh")


@pytest.mark.parametrize("form", ["plain", "rescaled", "normalized"])
def test_the_hessian_keeps_its_second_derivatives(form, x64):
    """Those of u, times the residual: of either sign, and not small."""
    A, b, w, x = instance(seed=3)
    p = sn.regression.problem(A, b, "exp", form, w)
    wanted = jax.hessian(plain_loss("exp", form, A, b, w))(x)
    assert_close(p.hessian(x).as_matrix(), wanted, rtol=1e-9)

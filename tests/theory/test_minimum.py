"""A certified ball holds the minimiser, and one only; its bars hold the solution of 40 digits."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from activation_references import PRECISE
from helpers import assert_close
from jax.experimental import sparse

import softntk as sn
from softntk._linalg import rigorous
from softntk.theory._certificates import minimum
from softntk.theory._certificates.logit_derivatives import evaluate_derivatives, evaluate_in_logits

certify = sn.theory.certify_minimum
KINDS = [
    ("exp", "normalized"),
    ("res_exp", "normalized"),
    ("cosh", "normalized"),
    ("exp", "plain"),
    ("sinh", "rescaled"),
    ("softplus", "normalized"),
    ("softplus", "plain"),
]
_EXP = Decimal.exp
FUNCTIONS = {
    "exp": (_EXP, _EXP),
    "res_exp": (lambda z: z.exp() + z, lambda z: z.exp() + 1),
    "cosh": (lambda z: (z.exp() + (-z).exp()) / 2, lambda z: (z.exp() - (-z).exp()) / 2),
    "sinh": (lambda z: (z.exp() - (-z).exp()) / 2, lambda z: (z.exp() + (-z).exp()) / 2),
    "softplus": (lambda z: (1 + z.exp()).ln(), lambda z: 1 / (1 + (-z).exp())),
}


def instance(seed, n=12, d=3):
    """A regression and a rough minimiser."""
    rng = np.random.default_rng(seed)
    activation, form = KINDS[seed % len(KINDS)]
    A = rng.normal(size=(n, d)) * rng.choice([0.3, 1.0])
    b = rng.dirichlet(np.ones(n)) if form != "plain" else np.exp(0.5 * A @ rng.normal(size=d))
    p = sn.regression.problem(A, b, activation, form, weights=float(rng.choice([0.01, 0.1, 1.0])))
    start = 0.1 * rng.normal(size=d)
    return p, sn.solvers.minimise(
        p, start, rtol=float(rng.choice([1e-1, 1e-2, 1e-4, 1e-10])), throw=False
    ).value


def dot(a, b):
    return sum((s * t for s, t in zip(a, b, strict=True)), Decimal(0))


def exactly(array):
    return [Decimal(float(t)) for t in np.asarray(array)]


def gradient(p, x):
    """∇L in 40 digits, from the definition."""
    u, du = FUNCTIONS[p.activation.name]
    A, b, w = [exactly(row) for row in np.asarray(p.A)], exactly(p.b), Decimal(float(p.weights))
    z = [dot(row, x) for row in A]
    values, slopes = [u(t) for t in z], [du(t) for t in z]
    total = sum(values)
    if p.form == "normalized":
        f = [v / total for v in values]
        r = [v - t for v, t in zip(f, b, strict=True)]
        inner = [s / total * (a - dot(r, f)) for s, a in zip(slopes, r, strict=True)]
    elif p.form == "rescaled":
        r = [v - total * t for v, t in zip(values, b, strict=True)]
        inner = [s * (a - dot(b, r)) for s, a in zip(slopes, r, strict=True)]
    else:
        inner = [s * (v - t) for s, v, t in zip(slopes, values, b, strict=True)]
    inner = [g + w * w * t for g, t in zip(inner, z, strict=True)]
    return [dot(column, inner) for column in zip(*A, strict=True)]


def solution(p, x):
    """The stationary point next to x, in 40 digits: Newton's method with the Hessian of float64."""
    x = exactly(x)
    for _ in range(60):
        g = gradient(p, x)
        size = max(abs(t) for t in g)
        if not size:
            return x
        H = np.asarray(jax.hessian(p)(jnp.asarray([float(t) for t in x])))
        step = np.linalg.solve(H, np.array([float(t / size) for t in g]))
        x = [t - size * Decimal(float(s)) for t, s in zip(x, step, strict=True)]
        if size * Decimal(float(np.abs(step).max())) < Decimal("1e-30"):
            return x
    raise AssertionError("no solution")


@jax.jit
def descend(p, starts):
    return jax.vmap(lambda x: sn.solvers.minimise(p, x, rtol=1e-13, throw=False).value)(starts)


def check(p, x0, points, seed):
    """Whether it holds; if so, that the bars hold the solution and that descent from points of the
    ball finds it inside.
    """
    ball = certify(p, x0)
    if not ball.holds:
        return False
    with localcontext(prec=40):
        exact = solution(p, x0)
        distance = [abs(t - s) for t, s in zip(exact, exactly(x0), strict=True)]
        assert all(t <= bar for t, bar in zip(distance, exactly(ball.bars), strict=True))
        assert dot(distance, distance).sqrt() <= Decimal(ball.error)
    assert ball.error <= ball.radius <= ball.convex_radius
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(points, len(x0)))
    sizes = ball.radius * rng.random(points) ** (1 / len(x0)) / np.linalg.norm(directions, axis=1)
    starts = np.asarray(x0)[None] + sizes[:, None] * directions
    found = descend(p, jnp.asarray(starts))
    expected = np.array([float(t) for t in exact])
    np.testing.assert_allclose(
        found, np.broadcast_to(expected, found.shape), atol=1e-9 * (1 + np.abs(expected).max())
    )
    assert (
        np.linalg.norm(np.asarray(found) - np.asarray(x0)[None], axis=1) <= ball.radius + 1e-9
    ).all()
    # Strictly convex on the larger ball.
    for x in (
        np.asarray(x0)
        + 0.999 * ball.convex_radius * directions / np.linalg.norm(directions, axis=1)[:, None]
    ):
        assert np.linalg.eigvalsh(np.asarray(jax.hessian(p)(jnp.asarray(x))))[0] > 0
    return True


@pytest.mark.parametrize("seed", [57])
@pytest.mark.slow
def test_balls_hold_what_they_promise(seed, x64):
    assert check(*instance(seed), 5, seed)


@pytest.mark.slow
@pytest.mark.optimised
def test_five_hundred_balls(x64):
    assert sum(check(*instance(seed), 20, seed) for seed in range(500)) > 250


@pytest.mark.slow
def test_small_errors_are_promised_for_good_solutions(x64):
    p, x = instance(0)
    sharp = certify(p, sn.solvers.minimise(p, x, rtol=1e-13, throw=False).value)
    assert sharp.error < 1e-11
    assert sharp.kantorovich < 1e-9
    assert sharp.radius > 1e-4


@pytest.mark.slow
def test_float32_and_sparse_are_converted():
    A = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    b = np.random.default_rng(1).dirichlet(np.ones(20)).astype("float32")
    p = sn.regression.softmax(A, b, weights=0.1)
    x = sn.solvers.minimise(p, np.zeros(3, "float32"), rtol=1e-5).value
    found = certify(p, x)
    assert found.holds
    assert 1e-9 < found.error < 1e-3
    same = certify(sn.regression.softmax(sparse.BCOO.fromdense(jnp.asarray(A)), b, weights=0.1), x)
    np.testing.assert_allclose(same.error, found.error, rtol=1e-3)


def test_quadratics_have_one_minimiser(x64):
    p = sn.regression.problem(np.eye(2), np.ones(2), "identity", "plain")
    found = certify(p, np.zeros(2))
    assert found.holds
    assert found.radius > 1e5
    np.testing.assert_allclose(found.error, 2**0.5, rtol=1e-9)


def test_reasons(x64):
    A = np.random.default_rng(0).normal(size=(20, 2))
    p = sn.regression.softmax(A, np.full(20, 0.05), weights=0.1)
    assert (
        "1/2 is needed" in certify(p, np.full(2, 20.0)).reason
        or "not positive definite" in certify(p, np.full(2, 20.0)).reason
    )
    flat = sn.regression.softmax(np.ones((3, 2)), np.full(3, 1 / 3))
    assert "not positive definite" in certify(flat, np.zeros(2)).reason
    own = sn.activations.from_function(jnp.tanh, "own")
    unknown = sn.regression.problem(A, np.ones(20), own, "plain")
    assert "none for 'own'" in certify(unknown, np.zeros(2)).reason
    relu = sn.regression.problem(A, np.ones(20), "relu", "plain")
    assert "slope of relu jumps" in certify(relu, np.zeros(2)).reason
    outside = sn.regression.problem(A, np.ones(20), "sinh")
    assert "outside of the domain" in certify(outside, np.zeros(2)).reason
    for found in (certify(flat, np.zeros(2)), certify(outside, np.zeros(2))):
        assert not found.holds
        assert (found.radius, found.error) == (0, np.inf)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p": lambda x: x}, "p must be a problem of softntk.regression, got function"),
        ({"x0": np.zeros(3)}, r"x0 must have shape \[2\], got shape \(3,\)"),
        ({"x0": np.array([0.0, np.nan])}, "x0 must be finite"),
    ],
)
def test_bad_input(changed, message, untyped):
    with pytest.raises(ValueError, match=message):
        certify(
            **({"p": sn.regression.softmax(np.eye(2), np.ones(2)), "x0": np.zeros(2)} | changed)
        )


@pytest.mark.parametrize("size", [0.1, 3.0])
def test_the_curvature_in_the_logits_is_no_larger_than_its_moduli(size, x64):
    """Equal logits and targets of one negative sign reach the bound of the rescaled form."""
    z, b = np.full(4, np.log(size)), np.full(4, -0.1)
    p = sn.regression.problem(np.eye(4), b, "exp", "rescaled")
    parts = evaluate_in_logits(p, z.astype(np.longdouble))
    diagonal = parts.slope_moduli**2 + np.abs(parts.second) * parts.residual_moduli
    bound = float(np.max(diagonal)) + parts.rank_two_norm

    def loss(z):
        return 0.5 * jnp.sum((jnp.exp(z) - jnp.sum(jnp.exp(z)) * b) ** 2)

    largest = np.linalg.eigvalsh(jax.hessian(loss)(jnp.asarray(z)))[-1]
    assert bound * (1 - 1e-9) <= largest <= bound * (1 + 1e-12)


def test_a_normaliser_that_cancels_costs_digits_twice():
    """Of the terms of Σ e^z + z one part in eight is left, which both factors of f∘u'/α lose."""
    p = sn.regression.problem(np.eye(2), np.full(2, 0.5), "res_exp")
    whole, cancelled = (
        evaluate_in_logits(p, np.asarray(z, np.longdouble)).condition
        for z in ([3.0, 1.03], [-3.0, 1.03])
    )
    z = np.array([-3.0, 1.03])
    lost = np.sum(np.exp(z) + np.abs(z)) / np.sum(np.exp(z) + z)
    assert lost > 7
    assert cancelled / whole > 0.25 * lost**2


@pytest.mark.parametrize(
    "activation", ["exp", "res_exp", "cosh", "sinh", "erf", "softplus", "gelu"]
)
@pytest.mark.parametrize("form", ["plain", "rescaled", "normalized"])
def test_parts_in_the_logits_are_those_of_automatic_differentiation(activation, form, x64):
    """The gradient v∘s + w²z that the certificate starts from, at logits near zero and far off."""
    if (activation, form) == ("sinh", "normalized"):
        pytest.skip("no such problem: the normaliser may vanish")
    z, b = np.array([-2.0, -0.3, 0.05, 0.4, 1.7]), np.array([0.1, 0.3, 0.2, 0.15, 0.25])
    p = sn.regression.problem(np.eye(5), b, activation, form)
    u = {
        "exp": jnp.exp,
        "res_exp": lambda t: jnp.exp(t) + t,
        "cosh": jnp.cosh,
        "sinh": jnp.sinh,
        "erf": jax.scipy.special.erf,
        "softplus": jax.nn.softplus,
        "gelu": lambda t: t * jax.scipy.special.ndtr(t),
    }

    def loss(z):
        values = u[activation](z)
        total = jnp.sum(values)
        r = {
            "plain": values - b,
            "rescaled": values - total * b,
            "normalized": values / total - b,
        }[form]
        return 0.5 * jnp.sum(r**2)

    ball = certify(p, z)
    found = evaluate_derivatives(p, z)
    gradient, hessian = jax.grad(loss)(jnp.asarray(z)), jax.hessian(loss)(jnp.asarray(z))
    assert_close(found.gradient, gradient, rtol=1e-12)
    assert np.linalg.norm(found.gradient - np.asarray(gradient)) <= found.gradient_error + 1e-14
    assert_close(found.hessian, hessian, rtol=1e-12)
    assert ball.reason


@pytest.mark.parametrize(
    ("activation", "form"), [("gelu", "plain"), ("gelu", "rescaled"), ("erf", "plain")]
)
def test_functions_that_are_evaluated_in_double_have_wider_bars(activation, form, x64):
    """Against the stationary point that mpmath finds from the definition."""
    rng = np.random.default_rng(4)
    A, b, x = rng.normal(size=(9, 2)), rng.normal(size=9), rng.normal(size=2)
    p = sn.regression.problem(A, b, activation, form, weights=1.5)
    solution = sn.solvers.minimise(p, 0.1 * x, rtol=1e-12).value
    ball = certify(p, solution)
    assert ball.holds, ball.reason
    u = PRECISE[activation]

    def loss(*x):
        z = [mp.fsum(mp.mpf(float(a)) * t for a, t in zip(row, x, strict=True)) for row in A]
        values = [u(t) for t in z]
        total = mp.fsum(values) if form == "rescaled" else 1
        residual = [v - total * mp.mpf(float(t)) for v, t in zip(values, b, strict=True)]
        return mp.fsum(r**2 for r in residual) / 2 + mp.fsum((mp.mpf(1.5) * t) ** 2 for t in z) / 2

    with mp.workdps(60):
        gradient = [
            lambda *x, i=i: mp.diff(loss, x, tuple(int(i == j) for j in (0, 1))) for i in (0, 1)
        ]
        exact = mp.findroot(gradient, [mp.mpf(float(t)) for t in solution], tol=1e-40)
        for t, s, bar in zip(exact, solution, ball.bars, strict=True):
            assert abs(t - mp.mpf(float(s))) <= mp.mpf(float(bar))
    assert 1e-16 < ball.error < 1e-9


def test_radii_that_are_tried_exceed_newtons_step(x64):
    """R = 1/βK(R), and some multiples of η."""
    p, x = instance(0)
    first, *others = minimum._candidate_radii(p, np.asarray(x), 2.0, 0.01, 1.0)
    assert 2 * sn.regression.lipschitz(p, first, x).hessian.ours * first == pytest.approx(
        1, rel=0.01
    )
    assert others == pytest.approx([0.02, 0.016, 0.013])


def test_every_rounding_of_a_certificate_is_outward(x64, monkeypatch):
    """With any one of the allowances for rounding made large, no error shrinks."""
    p, x = instance(0)
    x = sn.solvers.minimise(p, x, rtol=1e-7, throw=False).value
    exact = certify(p, x)
    assert exact.holds
    calls = []

    def allowed(large):
        def slack(terms):
            calls.append(terms)
            return 1e-5 if len(calls) - 1 == large else rigorous.slack(terms)

        return slack

    monkeypatch.setattr(minimum, "slack", allowed(None))
    certify(p, x)
    count, wider = len(calls), 0
    assert count >= 7
    for large in range(count):
        calls.clear()
        monkeypatch.setattr(minimum, "slack", allowed(large))
        found = certify(p, x)
        if found.holds:
            assert found.error >= exact.error * (1 - 1e-13)
            assert (found.bars >= exact.bars * (1 - 1e-13)).all()
            assert found.kantorovich >= exact.kantorovich * (1 - 1e-13)
            wider += found.error > exact.error * (1 + 1e-9)
    assert wider >= 3

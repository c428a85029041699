"""A certificate that holds is obeyed by gradient descent at every step; its parts bound what dense
oracles find.
"""

import itertools
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_references import SMOOTH, enclosure_of
from helpers import slow_except

import softntk as sn
from softntk._linalg import rigorous
from softntk.theory._certificates import convergence, logit_box
from softntk.theory._certificates import width as widths

certify = sn.theory.certify_convergence
CASES = {
    # family, n, d, k, width, parameterization, bias, antisymmetric
    "softmax": ("softmax", 3, 4, 1, 3000, "ntk", False, True),
    "bias": ("softmax", 5, 3, 1, 8001, "ntk", True, False),
    "three outputs": ("softmax", 4, 6, 3, 4000, "ntk", False, True),
    "paper": ("softmax", 3, 3, 1, 2000, "paper", False, True),
    "res_softmax": ("res_softmax", 3, 4, 1, 3000, "ntk", False, True),
    "res_softmax, all of it": ("res_softmax", 4, 5, 2, 5001, "paper", True, False),
    "exp": ("exp", 3, 4, 1, 500, "ntk", False, True),
    "exp, bias": ("exp", 4, 3, 2, 2001, "ntk", True, False),
    "softplus": ("softplus", 3, 4, 1, 500, "ntk", False, True),
    "gelu, bias": ("gelu", 4, 3, 2, 2001, "ntk", True, False),
}


def instance(case, seed, sigma=0.7):
    """A network, its weights, unit points, and targets of norm one around its outputs at the start."""
    family, n, d, k, width, parameterization, bias, antisymmetric = case
    net = sn.networks.two_layer(
        family,
        width=width,
        out_dim=k,
        sigma=sigma,
        parameterization=parameterization,
        bias=bias,
        antisymmetric=antisymmetric,
    )
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.normal(size=(n, k))
    y /= np.linalg.norm(y)
    _, params = net.init_fn(jax.random.key(seed), (-1, d))
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
    return net, params, x, (lambda size: np.asarray(net.apply_fn(params, x)) + size * y)


def descend(net, params, x, y, learning_rate, steps):
    """‖r‖², and ‖W_t − W_0‖_F, of plain gradient descent by automatic differentiation."""
    trained = lambda p: (p.hidden,) if p.bias is None else (p.hidden, p.bias)

    def loss(weights):
        return 0.5 * jnp.sum(
            (
                net.apply_fn(
                    params.replace(**dict(zip(("hidden", "bias"), weights, strict=False))), x
                )
                - y
            )
            ** 2
        )

    def step(weights, _):
        value, grad = jax.value_and_grad(loss)(weights)
        moved = sum(jnp.sum((a - b) ** 2) for a, b in zip(weights, trained(params), strict=True))
        return jax.tree.map(lambda w, g: w - learning_rate * g, weights, grad), (
            2 * value,
            jnp.sqrt(moved),
        )

    return jax.jit(lambda: jax.lax.scan(step, trained(params), length=steps)[1])()


def threshold(net, params, x, targets):
    """The largest size of the targets that is certified, within 5 %."""
    low, high = 0.0, 1e-3
    while certify(net, params, x, targets(high)).holds:
        low, high = high, 4 * high
    for _ in range(5):
        middle = (low * high) ** 0.5
        low, high = (
            (middle, high) if certify(net, params, x, targets(middle)).holds else (low, middle)
        )
    return low


def check_that_it_is_obeyed(net, params, x, y, steps=150):
    found = certify(net, params, x, y)
    if not found.holds:
        return False
    squares, moved = map(
        np.asarray, descend(net, params, x, jnp.asarray(y), found.learning_rate, steps)
    )
    # Where rounding takes over: an output is a sum of moduli of √(m · kernel scale), about.
    output = (net.architecture.width * net.architecture.kernel_scale) ** 0.5 + np.abs(y).max()
    floor = y.size * (4 * np.finfo(float).eps * output) ** 2
    assert (squares[1:] <= found.rate * squares[:-1] * (1 + 1e-9) + floor).all()
    assert (moved <= found.radius).all()
    return True


@pytest.mark.optimised
@pytest.mark.parametrize("case", slow_except(list(CASES), "softmax"))
def test_gradient_descent_obeys(case, x64):
    """The largest targets that are certified at all, and smaller ones."""
    net, params, x, targets = instance(CASES[case], 0)
    largest = threshold(net, params, x, targets)
    assert largest > 0
    for share in (1.0, 0.1):
        assert check_that_it_is_obeyed(net, params, x, targets(share * largest))


@pytest.mark.slow
@pytest.mark.optimised
def test_five_hundred_certificates_do_not_lie(x64):
    held = 0
    for seed in range(500):
        net, params, x, targets = instance(
            list(CASES.values())[seed % len(CASES)], seed, sigma=(0.3, 0.7, 1.2)[seed % 3]
        )
        if seed % 25 < len(CASES):
            size = threshold(net, params, x, targets) * (1.0, 0.99, 1.02)[seed % 3]
        else:
            size = 10 ** np.random.default_rng(seed).uniform(-3, 1)
        held += check_that_it_is_obeyed(net, params, x, targets(size))
    assert held > 150


@pytest.mark.slow
def test_it_is_not_vacuous(x64):
    """Twenty points of the unit sphere in R^16, targets of norm one: one Lipschitz constant would
    need a width of a million.
    """
    x = np.random.default_rng(0).normal(size=(20, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.random.default_rng(1).normal(size=(20, 1))
    y /= np.linalg.norm(y)
    for family in ("softmax", "res_softmax", "exp"):
        net = sn.networks.two_layer(family, width=2**16)
        assert certify(net, net.init_fn(jax.random.key(0), (-1, 16))[1], x, y).holds


@pytest.mark.parametrize("case", slow_except(list(CASES), "three outputs"))
def test_singular_values_hold_on_the_path(case, x64):
    net, params, x, targets = instance(CASES[case], 1)
    y = targets(0.9 * threshold(net, params, x, targets))
    found = certify(net, params, x, y)

    def singular(weights):
        parts = jax.jacobian(lambda w: net.apply_fn(params.replace(**w), x))(weights)
        J = np.concatenate(
            [np.asarray(part).reshape(y.size, -1) for part in jax.tree.leaves(parts)], axis=1
        )
        return np.linalg.svd(J, compute_uv=False)[[-1, 0]]

    weights = {"hidden": params.hidden} | ({} if params.bias is None else {"bias": params.bias})
    start = singular(weights)
    assert found.smallest_singular_value <= start[0] <= found.smallest_singular_value * (1 + 1e-6)
    loss = lambda w: 0.5 * jnp.sum((net.apply_fn(params.replace(**w), x) - y) ** 2)
    for _ in range(5):
        weights = jax.tree.map(
            lambda w, g: w - 3 * found.learning_rate * g, weights, jax.grad(loss)(weights)
        )
        smallest, largest = singular(weights)
        assert found.final_singular_value <= smallest
        assert largest <= found.largest_singular_value


@pytest.mark.parametrize(
    ("activation", "normalized"),
    list(itertools.product(SMOOTH, (True, False))),
)
def test_boxes_enclose(activation, normalized, x64):
    rng = np.random.default_rng(0)
    x, W = rng.normal(size=(4, 3)), rng.normal(size=(3, 30))
    if normalized:  # logits at which no sum vanishes
        x, W = np.abs(x), np.abs(W)
    u = sn.activations.get(activation)
    box = logit_box.LogitBox(enclosure_of(activation), normalized, x, W, 1)
    delta = 0.3 * rng.random((4, 30))
    found = box.slopes(delta)
    assert found is not None
    for _ in range(200):
        z = jnp.asarray(x @ W + delta * rng.choice([-1, 1, rng.uniform(-1, 1)], size=(4, 30)))
        total = np.asarray(u.u(z)).sum(axis=1, keepdims=True) if normalized else 1.0
        v, bend = np.asarray(u.du(z)) / total, np.abs(np.asarray(u.d2u(z)) / total)
        assert (found.lower <= v + 1e-12 * np.abs(v)).all()
        assert (v <= found.upper + 1e-12 * np.abs(v)).all()
        assert (np.abs(v) <= found.modulus * (1 + 1e-12)).all()
        assert (bend <= found.second * (1 + 1e-12)).all()


@pytest.mark.parametrize("activation", ["exp", "res_exp", "softplus"])
def test_errors_of_outputs_cover_the_rounding_of_logits(activation, x64):
    """Also where e^z + z = 0, so that no error is relative to it."""
    x, W = np.ones((1, 1)), np.append(np.full(100, -0.567143290409784), 1.0)[None]
    u = sn.activations.get(activation)
    box = logit_box.LogitBox(enclosure_of(activation), True, x, W, 1)
    errors = box.value_errors()
    for sign in (-1.0, 1.0):
        moved = np.asarray(u.u(jnp.asarray(W + 0.9 * sign * box.start)), np.longdouble)
        change = np.abs(moved / moved.sum() - box.values)
        assert (change <= errors + 1e-16 * np.abs(box.values)).all()
    assert errors.max() < 1e-10


def test_eigenvalues_from_below_and_norms_from_above():
    rng = np.random.default_rng(0)
    for n in (1, 4, 40):
        Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        for smallest in (1.0, 1e-8, -1e-3):
            values = np.append(np.geomspace(1, 100, n)[1:], smallest)
            H = (Q * values) @ Q.T
            bound = rigorous.smallest_eigenvalue((H + H.T) / 2, 0.0)
            assert smallest - 1e-9 <= bound <= smallest + 1e-12
            assert rigorous.smallest_eigenvalue((H + H.T) / 2, 0.25) <= bound - 0.25
        M = rng.random((n, n))
        M = M + M.T
        assert np.linalg.norm(M, 2) <= rigorous.perron_norm(M) <= 1.05 * np.linalg.norm(M, 2)
    assert rigorous.smallest_eigenvalue(np.full((2, 2), np.nan), 0.0) == -np.inf


def test_parameterizations_agree(x64):
    """The paper's network is √m times ours: with targets √m times as large the same descent, with a
    step m times smaller.
    """
    one = instance(CASES["softmax"], 0)
    two = instance((*CASES["softmax"][:5], "paper", *CASES["softmax"][6:]), 0)
    size = 0.5 * threshold(*one[:3], one[3])
    ours, paper = certify(*one[:3], one[3](size)), certify(*two[:3], two[3](size * 3000**0.5))
    np.testing.assert_allclose(paper.learning_rate * 3000, ours.learning_rate, rtol=1e-9)
    np.testing.assert_allclose(paper.rate, ours.rate, rtol=1e-9)
    np.testing.assert_allclose(paper.radius, ours.radius, rtol=1e-9)


def test_nothing_to_learn_holds(x64):
    net, params, x, _ = instance(CASES["softmax"], 0)
    found = certify(net, params, x, np.zeros((3, 1)))
    assert found.holds
    assert (found.radius, found.residual_norm) == (0, 0)


OWN = sn.activations.from_function(jnp.tanh, "own")


def make(family: str | None = "softmax", width: int = 200, **options: Any) -> tuple[Any, Any]:
    net = sn.networks.two_layer(family, width=width, **options)
    return net, net.init_fn(jax.random.key(0), (-1, 2))[1]


@pytest.mark.parametrize(
    ("network", "x", "reason"),
    [
        (make("relu"), np.eye(2), "slope of relu jumps"),
        (make("softmax", train_readout=True), np.eye(2), "train_readout=False"),
        (make(None, activation=OWN, normalize=False), np.eye(2), "none for 'own'"),
        (make(), np.array([[1.0, 0], [0, 1], [1, 0]]), r"rows \[0, 2\] of x are equal"),
        (make(), np.array([[1.0, 0], [0, 0]]), "row 1 of x is zero"),
        (
            make(width=2),
            np.random.default_rng(0).normal(size=(5, 2)),
            "5 targets and 4 trained weights",
        ),
        (make(), np.array([[1.0, 0], [1, 1e-9]]), "rows 0 and 1 of x weigh most"),
        (make(), np.eye(2), r"singular value is used up.*float32 inputs were converted"),
    ],
)
def test_reasons(network, x, reason):
    found = certify(*network, x, np.full((len(x), 1), 10.0))
    assert not found.holds
    assert (found.learning_rate, found.rate, found.radius) == (0, 1, np.inf)
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"net": lambda p, x: x},
            "net must be a network of softntk.networks.two_layer, got function",
        ),
        ({"y": np.ones((3, 1))}, r"y must have shape \[n, k\] = \[2, 1\]"),
        (
            {"y": np.array([[1.0], [np.nan]])},
            r"y must be finite, got 1 NaN or infinite entries, the first at y\[1, 0\]",
        ),
        ({"y": np.ones((2, 1), int)}, "y must be a floating-point array"),
        ({"x": np.ones((2, 3))}, "x must have the 2 features"),
        ({"x": np.ones((0, 2))}, "x must have at least one row"),
    ],
)
def test_bad_input(changed, message, untyped):
    net, params = make()
    arguments = {"net": net, "params": params, "x": np.eye(2), "y": np.ones((2, 1))} | changed
    with pytest.raises(ValueError, match=message):
        certify(**arguments)


@pytest.mark.optimised
def test_certified_width():
    x, y = np.eye(3), np.full((3, 1), 0.3)
    build = lambda m: sn.networks.two_layer("softmax", width=m, sigma=0.5)
    found = sn.theory.certified_width(build, x, y, key=jax.random.key(0), precision=0.2)
    assert found.certificate.holds
    below = max(m for m, held, _ in found.tried if not held)
    assert below < found.width <= 1.2 * below + 2
    none = sn.theory.certified_width(build, x, 100 * y, key=jax.random.key(0), largest=128)
    assert none.width is None
    assert not none.certificate.holds
    with pytest.raises(ValueError, match="make must be a function of the width"):
        sn.theory.certified_width(build(64), x, y, key=jax.random.key(0))
    for wrong in ({"smallest": 3}, {"smallest": 64, "largest": 32}, {"precision": 0.0}):
        with pytest.raises(ValueError, match="must"):
            sn.theory.certified_width(build, x, y, key=jax.random.key(0), **wrong)


def test_where_there_is_nothing_to_learn_the_step_is_that_of_a_quadratic(x64):
    """Curvature on a path of length zero costs nothing: η = 1/‖J‖²."""
    net, params, x, _ = instance(CASES["softmax"], 0)
    found = certify(net, params, x, np.zeros((3, 1)))
    kernel = np.asarray(sn.ntk.empirical(net, params, x)).transpose(0, 2, 1, 3).reshape(3, 3)
    assert found.learning_rate * np.linalg.eigvalsh(kernel)[-1] == pytest.approx(1, rel=1e-6)


def test_every_rounding_of_a_certificate_is_outward(x64, monkeypatch):
    """With any one of the allowances for rounding made large, rates fall and the radius grows."""
    net, params, x, targets = instance(CASES["exp"], 0)
    y = targets(0.01)
    exact = certify(net, params, x, y)
    assert exact.holds
    calls = []

    def allowed(large):
        def slack(terms):
            calls.append(terms)
            return 1e-4 if len(calls) - 1 == large else rigorous.slack(terms)

        return slack

    monkeypatch.setattr(convergence, "slack", allowed(None))
    certify(net, params, x, y)
    count = len(calls)
    for large in (0, 1, count - 3, count - 2, count - 1):
        calls.clear()
        monkeypatch.setattr(convergence, "slack", allowed(large))
        found = certify(net, params, x, y)
        assert found.holds
        assert found.smallest_singular_value <= exact.smallest_singular_value
        assert found.learning_rate <= exact.learning_rate * (1 + 1e-9)
    # The last one is that of the radius itself, which follows from all the others.
    assert found.radius > exact.radius * (1 + 5e-5)


def test_norms_from_above_where_a_row_has_nothing_on_the_diagonal():
    """The power method may start from the roots of the diagonal, but not from nothing."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(2, 6))
        M = rng.random((n, n)) * (rng.random((n, n)) < 0.6)
        M = M + M.T
        np.fill_diagonal(M, np.where(rng.random(n) < 0.5, 0, np.diag(M)))
        largest = np.linalg.norm(M, 2)
        assert largest * (1 - 1e-12) <= rigorous.perron_norm(M)


def test_the_search_for_a_width_ends_at_the_precision_that_was_asked_for(monkeypatch):
    """Of a certificate that holds from width 1000 on: no width is tried that need not be."""
    tried = []

    def certify_convergence(net, params, x, y):
        tried.append(net.architecture.width)
        return types.SimpleNamespace(holds=tried[-1] >= 1000, progress=0.5)

    monkeypatch.setattr(widths, "certify_convergence", certify_convergence)
    build = lambda m: sn.networks.two_layer("softmax", width=m)
    found = sn.theory.certified_width(
        build, np.eye(2), np.zeros((2, 1)), key=jax.random.key(0), smallest=64, precision=0.3
    )
    assert tried == [64, 128, 256, 512, 1024, 724, 862]
    assert found.width == 1024
    assert [m for m, _, _ in found.tried] == sorted(tried)

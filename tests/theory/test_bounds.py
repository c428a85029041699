"""The paper's statements as numbers: their laws, and training that obeys them in both
parameterizations.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, cast, points

import softntk as sn
from softntk.networks import two_layer
from softntk.solvers import step_sizes
from softntk.theory import bounds

FAMILIES = ("softmax", "exp", "relu")
SMALL: dict[str, Any] = {"sigma": 0.3}  # where B = 1


@pytest.mark.parametrize("family", FAMILIES)
def test_laws_of_scale(family):
    width = lambda n=100, smallest=0.1, k=1: bounds.required_width(
        family, n, smallest, k=k, **SMALL
    )
    steps = lambda n=100, smallest=0.1, k=1: bounds.required_steps(
        family, n, smallest, 1e-3, k=k, **SMALL
    )
    for count in (width, steps):
        assert_close(count(smallest=0.05), 4 * count(), rtol=1e-12)
        assert_close(count(n=300), count(k=3), rtol=1e-12)
        assert 4 < count(n=200) / count() < 5
    rate = bounds.learning_rate(family, 100, 0.1, **SMALL)
    assert_close(bounds.learning_rate(family, 200, 0.2, **SMALL), rate / 2, rtol=1e-12)
    D = lambda residual=1.0, m=64, n=100, k=1: bounds.radius(
        family, n, 0.1, residual, m, k=k, **SMALL
    )
    assert_close([D(residual=3.0, m=256), D(n=225), D(n=25, k=9)], [1.5 * D()] * 3, rtol=1e-12)
    # log(nk/δ) is squared, but for relu.
    at = lambda failure: bounds.required_width(family, 1, 0.1, sigma=0.1, failure=failure)
    assert_close(at(1e-4) / at(1e-2), 2 if family == "relu" else 4, rtol=1e-12)
    H = lambda R=0.01, n=100, k=1: bounds.perturbation_bound(R, n, k=k, family=family, **SMALL)
    assert_close([H(R=0.03), H(n=300), H(k=3)], [3 * H()] * 3, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_cost_exp_and_softmax_alone(family):
    wide: dict[str, Any] = {"sigma": 2.0, "failure": 0.01}
    narrow: dict[str, Any] = {"sigma": 1.0, "failure": 0.01}
    B = [bounds.growth(50, **s) for s in (wide, narrow)]
    assert_close(B[0], 2 * B[1], rtol=1e-12)
    grown = 0.0 if family == "relu" else B[1]
    ratio = lambda f, *a: math.log(
        f(family, 50, 0.1, *a, **wide) / f(family, 50, 0.1, *a, **narrow)
    )
    found = [
        ratio(bounds.required_width),
        ratio(bounds.required_steps, 1e-3),
        ratio(bounds.learning_rate),
        ratio(bounds.radius, 1.0, 8),
    ]
    np.testing.assert_allclose(found, np.array([18, 16, -16, 3]) * grown, rtol=1e-9, atol=1e-9)
    moved = [bounds.perturbation_bound(0.1, 50, family=family, **s) for s in (wide, narrow)]
    assert_close(math.log(moved[0] / moved[1]), 10 * grown if grown else -math.log(2), rtol=1e-9)


@pytest.mark.parametrize(("family", "k"), list(itertools.product(FAMILIES, [1, 3])))
def test_the_steps_reach_the_accuracy(family, k):
    """(1 − ηλ/2)^T nk ≤ ε at the paper's own η and T, and not long before."""
    n, smallest, accuracy = 20, 0.3, 1e-4
    rate = bounds.learning_rate(family, n, smallest, k=k, sigma=0.1)
    steps = bounds.required_steps(family, n, smallest, accuracy, k=k, sigma=0.1)
    rounds = steps * math.log1p(-rate * smallest / 2)
    assert n * k * math.exp(rounds) <= accuracy * (1 + 1e-6)
    assert n * k * math.exp(0.9 * rounds) > accuracy
    if family == "relu":
        assert_close(math.log(bounds.descent_factor(smallest, rate)), rounds / steps, rtol=1e-8)


def train(parameterization, targets, rate, steps):
    """Residuals squared and the largest move of a neuron, at every step."""
    net = two_layer("softmax", width=128, sigma=0.3, parameterization=parameterization)
    start = cast(net.init_fn(jax.random.key(0), (-1, 6))[1], "float64")
    x = points(1, 4, 6)

    def step(params, _):
        residual, back = jax.vjp(lambda p: net.apply_fn(p, x) - targets, params)
        moved = jnp.max(jnp.linalg.norm(params.hidden - start.hidden, axis=0))
        after = jax.tree.map(lambda p, g: p - rate * g, params, back(residual)[0])
        return after, (jnp.sum(residual**2), moved)

    squares, moves = jax.jit(lambda p: jax.lax.scan(step, p, None, length=steps)[1])(start)
    return (
        np.asarray(squares),
        np.asarray(moves),
        float(np.linalg.eigvalsh(net.kernel_fn(x, None, "ntk"))[0]),
    )


def test_training_obeys_them_in_both_parameterizations(x64):
    m, targets, rate = 128, jnp.asarray([[1.0], [-1.0], [0.5], [0.2]]), 0.2
    ours = train("ntk", targets, rate, 400)
    theirs = train("paper", m**0.5 * targets, rate / m, 400)
    assert_close(theirs[0], m * ours[0], rtol=1e-9)
    assert_close(theirs[1], ours[1], rtol=1e-9)
    assert_close(theirs[2], m * ours[2], rtol=1e-9)
    smallest = ours[2]
    factors = [
        bounds.descent_factor(smallest, rate),
        bounds.descent_factor(smallest, rate / m, parameterization="paper", width=m),
    ]
    assert_close(factors[0], factors[1], rtol=1e-12)
    assert np.all(ours[0][1:] <= factors[0] * ours[0][:-1])
    assert ours[0][-1] < 1e-5 * ours[0][0]
    D = bounds.radius("softmax", 4, smallest, float(ours[0][0]) ** 0.5, m, **SMALL)
    assert_close(
        bounds.radius(
            "softmax", 4, smallest, float(theirs[0][0]) ** 0.5, m, parameterization="paper", **SMALL
        ),
        D,
        rtol=1e-9,
    )
    assert 0 < ours[1].max() <= D
    # Even without e^{3B}: a neuron moves by at most about 4 m^{-1/2} λ⁻¹ √n ‖Y − F(0)‖.
    assert ours[1].max() <= bounds.radius("relu", 4, smallest, float(ours[0][0]) ** 0.5, m)


def test_parameterizations_of_bounds():
    other = {"parameterization": "paper", "width": 64}
    B = bounds.growth(10, 2, 1.5, 0.05)
    rate = bounds.learning_rate("softmax", 10, 0.2, k=2, sigma=1.5, failure=0.05, **other)
    assert rate == step_sizes.paper(0.2, 10, 2, 64, B)
    for f in (
        bounds.perturbation_bound,
        lambda R, n, **kw: bounds.smallest_eigenvalue(R, n, 0.4, **kw),
    ):
        assert_close(f(1e-8, 10, **other), 64 * f(1e-8, 10), rtol=1e-12)
    assert bounds.smallest_eigenvalue(1e-9, 10, 0.4, **SMALL) > 0.29
    assert bounds.smallest_eigenvalue(1.0, 10, 0.4, **SMALL) < 0  # says nothing


def test_beyond_floats():
    assert 1e40 < bounds.required_width("softmax", 10**6, 1e-3, sigma=0.9) < 1e60
    assert bounds.required_width("softmax", 10, 1e-200) == math.inf
    assert bounds.required_steps("exp", 10, 1e-3, 1e-3, sigma=100.0) == math.inf
    assert bounds.perturbation_bound(1.0, 10, sigma=100.0) == math.inf
    assert bounds.learning_rate("softmax", 10, 1.0, sigma=100.0) == 0
    assert bounds.required_width("relu", 10**200, 1.0) == math.inf
    assert bounds.required_steps("relu", 10, 1.0, 10.0) == 0  # it is there from the start


def test_table():
    rows = bounds.table(1000, 0.1, 1e-3)
    assert [r.family for r in rows] == ["relu", "exp", "softmax"]
    for r in rows:
        assert r.width == bounds.required_width(r.family, 1000, 0.1)
        assert r.steps == bounds.required_steps(r.family, 1000, 0.1, 1e-3)
        assert f"{r.width:.1e}" in str(r)
    # n^{2 + o(1)}: the exponent comes down to two as n grows.
    exponents = []
    for n in (10**3, 10**30, 10**60):
        few, many = (bounds.table(size, 0.1, 1e-3)[2].width for size in (n, 10 * n))
        exponents.append(math.log10(many / few))
    assert exponents[0] > exponents[1] > exponents[2] > 2
    assert exponents[2] < 3


required_width: Any = bounds.required_width
BAD = [
    (
        lambda: bounds.required_width("Softmax", 10, 0.1),
        "family must be one of .*got 'Softmax'. Did you mean 'softmax'",
    ),
    (lambda: bounds.required_width("res_softmax", 10, 0.1), "family must be one of"),
    (lambda: bounds.required_width("softmax", 0, 0.1), "n must be a positive integer, got 0"),
    (lambda: required_width("softmax", 1.5, 0.1), "n must be a positive integer, got 1.5"),
    (
        lambda: bounds.required_width("softmax", 10, 0.1, k=True),
        "k must be a positive integer, got True",
    ),
    (
        lambda: bounds.required_width("softmax", 10, 0.0),
        "smallest must be a positive finite number, got 0.0",
    ),
    (lambda: bounds.required_width("softmax", 10, math.nan), "smallest must be a positive"),
    (lambda: bounds.required_width("softmax", 10, 0.1, sigma=-1.0), "sigma must be a positive"),
    (
        lambda: bounds.required_width("softmax", 10, 0.1, failure=1.0),
        "failure must be a finite number above 0 and below 1, got 1.0",
    ),
    (lambda: bounds.required_steps("softmax", 10, 0.1, 0.0), "accuracy must be a positive"),
    (lambda: bounds.radius("softmax", 10, 0.1, 0.0, 8), "residual must be a positive"),
    (lambda: bounds.radius("softmax", 10, 0.1, 1.0, 0), "width must be a positive integer"),
    (
        lambda: bounds.learning_rate("softmax", 10, 0.1, parameterization="paper"),
        "width must be a positive integer, got None",
    ),
    (
        lambda: bounds.learning_rate("softmax", 10, 0.1, parameterization="ntx"),
        "parameterization must be one of",
    ),
    (lambda: bounds.perturbation_bound(0.0, 10), "R must be a positive"),
    (lambda: bounds.perturbation_bound(math.inf, 10), "R must be a positive"),
    (lambda: bounds.smallest_eigenvalue(0.1, 10, -1.0), "smallest must be a positive"),
    (lambda: bounds.descent_factor(1.0, 3.0), "rate must be at most 2 for this λ"),
    (lambda: bounds.descent_factor(1.0, 0.0), "rate must be a positive"),
    (lambda: bounds.growth(10, failure=0.0), "failure must be a finite number above 0"),
    (lambda: bounds.Constants(step=0.0), "step must be a positive"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_beyond_the_largest_float_are_named(untyped):
    huge = 10**400
    paper: dict[str, Any] = {"smallest": 0.5, "n": 3, "k": 1, "width": 4}
    rate: dict[str, Any] = {
        "family": "relu",
        "n": 3,
        "smallest": 0.5,
        "parameterization": "paper",
        "width": 4,
    }
    wrong: list[dict[str, Any]] = [{"n": huge}, {"k": huge}, {"width": huge}]
    for given in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(given))} must be"):
            sn.solvers.step_sizes.paper(**paper | given)
        with pytest.raises(ValueError, match=f"{next(iter(given))} must be"):
            bounds.learning_rate(**rate | given)
    with pytest.raises(ValueError, match="width must be"):
        bounds.descent_factor(0.5, 0.1, parameterization="paper", width=huge)
    with pytest.raises(ValueError, match="width must be"):
        sn.networks.two_layer("softmax", width=huge)
    assert sn.solvers.step_sizes.paper(0.5, 10**200, 1, 1) == 0


def test_every_bound_fails_with_the_same_chance_unless_told():
    """δ = 0.1: bounds that are combined must be about one event."""
    data = {"n": 20, "smallest": 0.1}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (bounds.growth, {"n": 20}),
        (bounds.radius, {"family": "softmax", "residual": 2.0, "width": 10**9, **data}),
        (bounds.required_width, {"family": "softmax", **data}),
        (bounds.required_steps, {"family": "softmax", "accuracy": 1e-3, **data}),
        (bounds.learning_rate, {"family": "softmax", **data}),
        (bounds.perturbation_bound, {"R": 1e-3, "n": 20}),
        (bounds.smallest_eigenvalue, {"R": 1e-14, **data}),
        (bounds.table, {"accuracy": 1e-3, **data}),
    ]
    for bound, arguments in cases:
        default, told, other = (
            bound(**arguments, **options) for options in ({}, {"failure": 0.1}, {"failure": 0.2})
        )
        assert default == told, bound
        assert default != other, bound

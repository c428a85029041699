"""Rows of the ledger that hold by wide margins: their constants, signs and powers against what NumPy
makes of the definitions, and what is changed in them is noticed.
"""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from softntk.theory._ledger import oracles
from softntk.theory._ledger import run as run_module
from softntk.theory._ledger.statements import convexity, newton, perturbation, row_sampling

ACTIVATIONS_BY_HAND = {
    "exp": (np.exp, np.exp, np.exp),
    "cosh": (np.cosh, np.sinh, np.cosh),
    "sinh": (np.sinh, np.cosh, np.sinh),
}
"""u, u' and u''."""


def statement_named(reference):
    return next(s for s in run_module.STATEMENTS if s.reference == reference)


def holds_on(reference, check, count):
    """Whether a statement with another check holds, for each of the instances among so many cases."""
    rng = np.random.default_rng(0)
    sample = statement_named(reference).sample
    instances = filter(None, (check(sample(rng)) for _ in range(count)))
    return [instance.holds for instance in instances]


def rescaled_by_hand(case, name, *, half=0.5, sign=1, power=2):
    """Gradient and Hessian of half·‖u(Ax) − sign·αb‖² + ½Σ w^power (Ax)²: the residual r is linear
    in u, so that its second derivatives are those of u alone.
    """
    A, b = case["A"], sign * case["b"]
    z = A @ case["x"]
    u, du, d2u = (function(z) for function in ACTIVATIONS_BY_HAND[name])
    r = u - u.sum() * b
    J = np.diag(du) - np.outer(b, du)
    weights = case["w"] ** power
    hessian = 2 * half * (J.T @ J + np.diag(d2u * (r - b @ r))) + np.diag(weights)
    return A.T @ (2 * half * J.T @ r + weights * z), A.T @ hessian @ A


@pytest.mark.parametrize("name", ["cosh", "sinh", "exp"])
def test_derivatives_of_the_rescaled_form_are_those_by_hand(name, monkeypatch, x64):
    """Without the half, with another sign of α, power of w or function, the row fails."""
    title = "[H] gradient and Hessian" + ("" if name == "cosh" else f", {name}")
    statement = statement_named(title)
    assert statement.statement == f"of ½‖{name}(Ax) − αb‖² + ½‖diag(w)Ax‖²"
    case = statement.sample(np.random.default_rng(3))
    exact = oracles.regression(case["A"], case["b"], case["w"], case["x"], name, "rescaled")
    gradient, hessian = rescaled_by_hand(case, name)
    np.testing.assert_allclose(exact.gradient, gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(exact.hessian, hessian, rtol=1e-9, atol=1e-12)
    other = "exp" if name == "sinh" else "sinh"
    changes = ({"half": 1.0}, {"sign": -1}, {"power": 1}, {"power": 0}, {"name": other})
    for change in ({}, *changes):
        gradient, hessian = rescaled_by_hand(case, **{"name": name, **change})
        by_hand = exact._replace(gradient=gradient, hessian=hessian)
        monkeypatch.setattr(oracles, "regression", lambda *_, by_hand=by_hand: by_hand)
        instance = statement.check(case)
        assert instance is not None
        assert instance.holds == (not change), change


RELU = "[G] lemma: perturbed kernel, ReLU"


def test_the_perturbation_of_relu_is_bounded_by_what_is_stated():
    """2Rnk/σ, where n²e^{−(m/2)R/10} ≤ δ: m/2 units are independent."""
    case = {**perturbation.relu_case(np.random.default_rng(0)), "R": 0.15, "m": 2048}
    n = len(case["x"])
    instance = statement_named(RELU).check(case)
    assert instance is not None
    assert instance.bound == pytest.approx(2 * 0.15 * n * case["k"] / case["sigma"], rel=1e-12)
    smallest_width = 20 / 0.15 * math.log(n**2 / 0.1)
    for factor, is_instance in ((0.98, False), (1.02, True)):
        found = statement_named(RELU).check({**case, "m": 2 * round(factor * smallest_width / 2)})
        assert (found is not None) == is_instance


def test_the_perturbation_of_relu_is_the_share_of_units_that_switch():
    """At one point of unit length these are the logits between 0 and R: Φ(R/σ) − ½ of the units."""
    case = {"x": np.eye(1, 5), "k": 1, "sigma": 0.6, "m": 2048, "R": 0.15, "seed": 1}
    share = scipy.stats.norm.cdf(0.15 / 0.6) - 0.5
    deviation = math.sqrt(share * (1 - share) / 1024)
    instance = statement_named(RELU).check(case)
    assert instance is not None
    # a quantile of 0.9, of the larger of two shares
    assert share < instance.value < share + 4 * deviation


def test_the_bound_of_relu_needs_its_constant_and_the_first_power_of_r():
    check = statement_named(RELU).check

    def multiplied(factor):
        def broken(case):
            if (instance := check(case)) is None:
                return None
            return instance._replace(bound=instance.bound * factor(case))

        return broken

    assert all(holds_on(RELU, check, 6))
    assert not all(holds_on(RELU, multiplied(lambda case: 1 / 10), 6))
    assert not all(holds_on(RELU, multiplied(lambda case: case["R"]), 6))


@pytest.mark.parametrize("d", [2, 3, 6])
def test_the_sample_size_is_the_smallest_that_bernstein_allows(d):
    """P(‖S − I‖ > ε) ≤ 2d exp(−sε²/2/(V + Lε/3)), with V and L of rows drawn by leverage."""
    rng = np.random.default_rng(d)
    A = rng.normal(size=(40, d)) * np.exp(rng.normal(size=(40, 1)))
    orthonormal = np.linalg.qr(A)[0]
    pi = np.sum(orthonormal**2, axis=1) / d
    deviations = np.einsum("ij,ik->ijk", orthonormal, orthonormal) / pi[:, None, None] - np.eye(d)
    L = np.abs(np.linalg.eigvalsh(deviations)).max()
    V = np.linalg.norm(np.einsum("i,ijk,ikl->jl", pi, deviations, deviations), 2)

    def failure(s, epsilon):
        return 2 * d * math.exp(-s * epsilon**2 / 2 / (V + L * epsilon / 3))

    for epsilon, allowed in ((0.5, 0.1), (0.9, 1e-3), (0.05, 1e-8)):
        size = row_sampling.bernstein_size(d, epsilon, allowed)
        assert failure(size + 1e-6, epsilon) <= allowed < failure(size - 1 - 1e-6, epsilon)


def test_too_few_rows_are_noticed():
    for reference in ("[S] lemma: sparsifier", "[ours] sparsifier"):
        check = row_sampling.check_sample_size(lambda d, epsilon, failure: 12)
        assert not all(holds_on(reference, check, 4))


def test_one_factorisation_stays_at_the_minimiser():
    case = convexity.dominated_case(np.random.default_rng(0))
    G = convexity.weight_gram(case, convexity.SOFTMAX_HESSIAN_SIZE)

    def loss(x):
        residual = scipy.special.softmax(case["A"] @ x) - case["b"]
        return 0.5 * x @ G @ x + 0.5 * residual @ residual

    best = scipy.optimize.minimize(loss, case["x"], tol=1e-12).x
    found = convexity.check_constant_factorisation({**case, "x": best})
    assert found is not None
    assert found.value < 1e-3 * np.sqrt(best @ G @ best)


def test_steps_of_newton_are_counted_from_where_they_halve_the_distance():
    """2(ε + rM/(l − rM)) = ½ at r = (¼ − ε)/(5/4 − ε) · l/M."""
    for seed in range(5):
        case = newton.strongly_convex_case(np.random.default_rng(seed))
        start = newton.find_start(case, 1.0)
        share = (0.25 - case["epsilon"]) / (1.25 - case["epsilon"])
        found = newton.check_iteration_count(case)
        assert found is not None
        distance = min(share * start.strength / start.lipschitz, 1.0)
        assert found.bound == pytest.approx(distance / newton.DISTANCE_RATIO, rel=1e-9)

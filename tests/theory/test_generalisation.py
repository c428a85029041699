"""Norms, ranks, risk bounds and stopping times against dense NumPy, brute force and problems whose
answers are known.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from helpers import assert_close

import softntk as sn
from softntk._linalg.kernel_eigenbasis import cross_validated_ridge
from softntk.solution import Result
from softntk.theory.generalisation._early_stopping import early_stopping_time, least_risk_time
from softntk.theory.generalisation._norms_and_ranks import (
    effective_rank,
    noise_level,
    rkhs_norm,
)
from softntk.theory.generalisation._risk import risk_bound

N = 60


def circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def kernel(x1, x2):
    """The softmax NTK at σ = 1."""
    return (x1 @ x2.T) * np.exp(x1 @ x2.T)


def positive(seed=0, n=N):
    """A kernel whose eigenvalues fall like i^{-2}, in a random basis, and its decomposition."""
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    values = n / np.arange(1, n + 1.0) ** 2
    return (vectors * values) @ vectors.T, values, vectors


# --- norms


def test_norm_is_that_of_the_interpolant():
    gram, _, _ = positive()
    y = np.random.default_rng(1).normal(size=(N, 3))
    found = rkhs_norm(gram, y)
    squares = np.diag(y.T @ np.linalg.inv(gram) @ y)
    assert_close(found.outputs, np.sqrt(squares))
    assert_close(found.total, np.sqrt(squares.sum()))
    assert found.result == Result.SUCCESSFUL
    assert found.total_error < 1e-9 * found.total
    full = np.einsum("ij,lm->ijlm", gram, np.diag([1.0, 4.0, 9.0]))
    assert_close(rkhs_norm(full, y).outputs, [np.sqrt(squares @ [1, 1 / 4, 1 / 9])])


@pytest.mark.parametrize("kind", ["random", "least", "largest"])
def test_the_norm_of_a_rounded_kernel_is_within_its_error(kind):
    gram, _, vectors = positive()
    y = {
        "random": np.random.default_rng(1).normal(size=(N, 1)),
        "least": vectors[:, -1:],
        "largest": vectors[:, :1],
    }[kind]
    rounded = rkhs_norm(gram.astype(np.float32), y)
    truth = np.sqrt((y.T @ np.linalg.inv(gram) @ y)[0, 0])
    assert abs(rounded.total - truth) <= rounded.total_error + 1e-9 * truth
    assert rounded.total_error < 0.05 * truth


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_error_covers_the_worst_rounding_and_is_not_idle(sign):
    gram, _, vectors = positive()
    rounded = gram.astype(np.float32)
    y = vectors[:, -1:] + vectors[:, 3:4]
    found = rkhs_norm(rounded, y)
    # As large a change as rounding is allowed, in the direction that tells most.
    u = np.linalg.solve(rounded.astype(float), y)
    worst = (
        0.98
        * sign
        * 2
        * np.sqrt(N)
        * np.finfo(np.float32).eps
        * np.linalg.norm(gram, 2)
        * u
        @ u.T
        / np.sum(u**2)
    )
    truth = np.sqrt((y.T @ np.linalg.inv(rounded + worst) @ y)[0, 0])
    assert 0.3 * found.total_error < abs(found.total - truth) <= found.total_error


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_error_covers_the_worst_rounding_next_to_where_the_norm_is_refused(sign):
    """λ_min just above 2δ, and all of y along it: the norm moves by √(λ/(λ ∓ δ)) − 1."""
    delta = 2 * np.sqrt(2) * np.finfo(np.float32).eps
    smallest = np.float32(2.02 * delta)
    found = rkhs_norm(np.diag([1.0, smallest]).astype(np.float32), np.array([[0.0], [1.0]]))
    truth = 1 / np.sqrt(float(smallest) + sign * delta)
    assert 0.3 * found.total_error < abs(found.total - truth) <= found.total_error
    assert_close(found.total_error * np.sqrt(smallest), delta / smallest, rtol=1e-5)


def test_a_singular_kernel_is_refused_with_a_reason():
    x = circle(np.zeros(3))
    found = rkhs_norm(kernel(x, x), np.ones((3, 2)))
    assert np.isposinf([found.total, found.total_error, *found.outputs, *found.outputs_error]).all()
    assert found.result == Result.NOT_DEFINITE
    assert "not positive definite" in found.reason
    nearly = np.eye(3) * np.array([1.0, 1.0, 1e-8])
    assert np.isfinite(rkhs_norm(nearly, np.ones((3, 1))).total)
    assert np.isposinf(rkhs_norm(nearly.astype(np.float32), np.ones((3, 1))).total)


# --- risk


def test_the_parts_of_the_risk_bound():
    gram, values, _ = positive()
    y = np.random.default_rng(1).normal(size=(N, 2))
    for options, coefficients in [
        ({"ridge": 0.7}, np.linalg.solve(gram + 0.7 * np.eye(N), y)),
        ({}, np.linalg.solve(gram, y)),
        ({"time": 0.9}, np.linalg.solve(gram, (np.eye(N) - scipy.linalg.expm(-0.9 * gram)) @ y)),
    ]:
        found = risk_bound(gram, y, 0.2, unit=0.5, ratio=1.5, **options)
        assert_close(found.coefficients, coefficients, rtol=1e-8)
        assert_close(found.norm, np.sqrt(np.diag(coefficients.T @ gram @ coefficients)), rtol=1e-6)
        assert (
            np.max(
                np.abs(
                    found.training - np.mean(np.minimum(np.abs(gram @ coefficients - y), 1), axis=0)
                )
            )
            < 1e-9
        )
        for ell in range(2):
            j = next(j for j in range(-60, 60) if 0.5 * 1.5**j >= found.norm[ell])
            assert_close(found.complexity[ell], 2 * 0.5 * 1.5**j * np.sqrt(np.sum(values)) / N)
            # The failure probability that this deviation leaves, and its sum over all radii and
            # both outputs.
            left = 2 * np.exp(-2 * N * (found.deviation[ell] / 3) ** 2)
            assert_close(left, 0.2 / 2 * 2 / 3 / ((abs(j) + 1) * (abs(j) + 2)), rtol=1e-8)
        assert_close(
            found.bound, np.minimum(found.training + found.complexity + found.deviation, 1)
        )
    assert np.max(risk_bound(1e9 * gram, y).training) < 1e-5
    j = np.abs(np.arange(-(10**5), 10**5 + 1.0))
    assert_close(np.sum(2 / 3 / ((j + 1) * (j + 2))), 1.0, rtol=1e-4)


def test_a_risk_bound_fails_in_one_case_of_ten_unless_asked_otherwise():
    """√(yᵀH⁻¹y) = 0.9, within the radius of j = 0: δ_0 = ⅔ · 0.1/2 for a single output."""
    found = risk_bound(np.eye(50), np.full((50, 1), 0.9 * 50**-0.5))
    assert_close(found.deviation, [3 * np.sqrt(np.log(2 * 30) / 100)])


def test_the_complexity_bounds_the_supremum_over_random_signs():
    gram, _, vectors = positive()
    y = 2.0 * vectors[:, :1]
    found = risk_bound(gram, y, ratio=1.0001)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(4000, N))
    suprema = found.norm[0] * np.sqrt(np.einsum("si,ij,sj->s", signs, gram, signs)) / N
    assert 0.6 * found.complexity[0] < 2 * np.mean(suprema) < found.complexity[0]


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_the_risk_is_below_its_bound_in_95_of_100_draws(spread):
    """Targets 0.4 cos θ ± spread on the circle: the risk of any predictor is a mean over angles and
    two signs.
    """
    rng, grid = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 400, endpoint=False)
    held = useful = 0
    n, options = 120, {"ridge": 3.0} if spread == 0.1 else {}
    for _ in range(100):
        angles = rng.uniform(0, 2 * np.pi, n)
        y = 0.4 * np.cos(angles) + spread * rng.choice([-1, 1], n)
        found = risk_bound(kernel(circle(angles), circle(angles)), y[:, None], 0.1, **options)
        f = kernel(circle(grid), circle(angles)) @ found.coefficients[:, 0]
        risk = np.mean(
            [np.minimum(np.abs(f - 0.4 * np.cos(grid) - s * spread), 1) for s in (-1, 1)]
        )
        held += risk <= found.bound[0]
        useful += found.bound[0] < 0.9
    assert held >= 95
    assert spread > 0.1 or useful == 100


# --- ranks


def test_effective_ranks():
    gram, values, _ = positive()
    found = effective_rank(gram)
    assert_close(found.rank, np.sum(values) / values[0])
    for k in (0, 1, 7, N - 1):
        assert_close(found.tail[k], sum(values[k:]) / values[k], rtol=1e-8)
        assert_close(found.tail_flatness[k], sum(values[k:]) ** 2 / sum(values[k:] ** 2), rtol=1e-8)
    assert np.all(found.tail <= found.tail_flatness * (1 + 1e-12))
    assert np.all(found.tail_flatness <= found.tail**2 * (1 + 1e-12))
    flat = effective_rank(None, eigenvalues=np.array([1.0] * 1000 + [50.0, 70.0, 0.0]))
    assert flat.critical(100) == 2
    assert_close(flat.variance(100), 2 / 100 + 100 / 1000)
    assert (flat.critical(2000), flat.variance(2000), flat.tail[-1]) == (None, np.inf, 0)


# --- noise


def test_noise_level_is_that_of_generalised_cross_validation():
    rng, n = np.random.default_rng(0), 60
    angles = rng.uniform(0, 2 * np.pi, n)
    gram = kernel(circle(angles), circle(angles))
    y = np.stack(
        [np.cos(angles) + 0.3 * rng.normal(size=n), np.sin(2 * angles) + 0.05 * rng.normal(size=n)],
        axis=1,
    )
    found = noise_level(gram, y)
    # three standard errors of 50 degrees of freedom
    assert np.all(np.abs(found / [0.3, 0.05] - 1) < 0.3)
    left = lambda log: np.exp(log) * np.linalg.inv(gram + np.exp(log) * np.eye(n))
    for ell in range(2):

        def criterion(log, ell=ell):
            matrix = left(log)
            return (
                np.sum((matrix @ y[:, ell]) ** 2)
                / np.trace(np.eye(n) - 1.4 * (np.eye(n) - matrix)) ** 2
            )

        best = min(np.linspace(-12, 6, 37), key=criterion)
        found_best: Any = scipy.optimize.minimize_scalar(
            criterion, bounds=(best - 0.5, best + 0.5), method="bounded"
        )
        best = found_best.x
        assert_close(
            found[ell],
            np.sqrt(np.sum((left(best) @ y[:, ell]) ** 2) / np.trace(left(best))),
            rtol=1e-4,
        )
    clean = noise_level(gram, np.cos(angles)[:, None])
    assert clean[0] < 1e-3


# --- early stopping


def paper_exceeds(gram, noise, eta):
    """The rule as the paper has it: eigenvalues of H/n, η the sum of the steps on the mean loss."""
    n = len(gram)
    values = np.linalg.eigvalsh(gram / n)
    complexity = np.sqrt(np.mean(np.minimum(values, 1 / eta)))
    return complexity > 1 / (2 * np.e * noise * eta)


@pytest.mark.parametrize("noise", [0.003, 0.1, 2.0])
def test_the_stopping_time_is_where_the_papers_rule_is_first_met(noise):
    gram, values, _ = positive()
    stop = early_stopping_time(gram, noise)
    times = np.geomspace(stop.time / 30, stop.time * 30, 3000)
    first = np.argmax([paper_exceeds(gram, noise, N * t) for t in times])
    assert times[first - 1] <= stop.time * (1 + 1e-9)
    assert stop.time <= times[first] * (1 + 1e-9)
    assert_close(stop.critical_radius, 1 / np.sqrt(N * stop.time))
    rate = min(stop.time / 30.3, 1 / values[0])
    steps = early_stopping_time(gram, noise, learning_rate=rate).steps
    assert steps is not None
    assert not steps or not paper_exceeds(gram, noise, N * rate * steps)
    assert paper_exceeds(gram, noise, N * rate * (steps + 1))
    assert_close(
        early_stopping_time(
            None, noise, eigenvalues=np.random.default_rng(0).permutation(values)
        ).time,
        stop.time,
    )
    # Targets and noise in other units; and a kernel of two outputs, which is one on twice the
    # points.
    assert_close(early_stopping_time(gram, 5 * noise, norm=5.0).time, stop.time)
    double = early_stopping_time(np.einsum("ij,lm->ijlm", gram, np.eye(2)), noise)
    assert_close(
        double.time,
        early_stopping_time(np.asarray(scipy.linalg.block_diag(gram, gram)), noise).time,
    )


def test_with_constant_one_the_radius_is_the_fixed_point_of_the_complexity():
    gram, values, _ = positive()
    radius = early_stopping_time(gram, 0.2, constant=1.0).critical_radius
    assert_close(0.2 * np.sqrt(np.mean(np.minimum(values / N, radius**2))), radius**2)


def test_ties_zeros_and_extremes():
    assert_close(early_stopping_time(np.eye(4), 1 / (2 * np.e)).time, 0.5)
    assert_close(early_stopping_time(np.diag([1.0, 0.0]), 1 / (20 * np.e)).time, 100.0)
    assert (
        0
        < early_stopping_time(np.eye(2), 1e150).time
        < early_stopping_time(np.eye(2), 1e-150).time
        < np.inf
    )
    none = early_stopping_time(np.eye(2), 100.0, learning_rate=1.0)
    assert none.steps == 0
    assert_close(none.error, 1 / 2)


@pytest.mark.parametrize("norm", [1.0, 20.0])
def test_the_expected_error_is_below_what_is_promised(norm):
    gram, values, vectors = positive()
    noise, ratios = 0.2, []
    stop = early_stopping_time(gram, noise, norm=norm)
    stepped = early_stopping_time(gram, noise, norm=norm, learning_rate=0.3 / values[0])
    assert stepped.steps is not None
    flow = scipy.linalg.expm(-gram * stop.time)
    descent = np.linalg.matrix_power(np.eye(N) - 0.3 / values[0] * gram, stepped.steps)
    assert stop.error <= 0.2179 * norm**2 * stop.critical_radius**2
    for index in (*range(N), None):
        direction = np.random.default_rng(0).normal(size=N) if index is None else vectors[:, index]
        truth = norm * direction / np.sqrt(direction @ np.linalg.solve(gram, direction))
        for left, promised in ((flow, stop.error), (descent, stepped.error)):
            expected = np.sum((left @ truth) ** 2) + noise**2 * np.sum((np.eye(N) - left) ** 2)
            ratios.append(expected / N / promised)
    assert 0.5 < max(ratios) <= 1


def test_directions_that_are_not_seen_do_not_move_the_least_risk():
    """Several minima: those of a grid that reaches to the time of an eigenvalue of zero are missed."""
    values, noise = np.array([1.0, 0.46, 4.3e-4, 3e-5]), 0.045
    time = least_risk_time(None, noise, eigenvalues=np.append(values, np.zeros(3))).time
    t = np.geomspace(1e-2, 1e6, 200_001)[:, None]
    risk = np.max(values * np.exp(-2 * values * t), axis=1) + noise**2 * np.sum(
        np.expm1(-values * t) ** 2, axis=1
    )
    assert_close(time, t[np.argmin(risk), 0], rtol=1e-4)


def test_the_ridge_of_least_cross_validation_may_be_far_above_the_spectrum():
    """V = Σ w²c²/(Σ w)² of λ = 1 and ½, w = 1 − λ/(λ + ρ), by a search on its own."""
    values, squares = np.array([1.0, 0.5]), np.array([1.02, 1.0])

    def criterion(log_ridge):
        w = 1 - values / (values + np.exp(log_ridge))
        return np.sum(w**2 * squares) / np.sum(w) ** 2

    best: Any = scipy.optimize.minimize_scalar(
        criterion, bounds=(-10, 10), method="bounded", options={"xatol": 1e-8}
    )
    ridge, _ = cross_validated_ridge(values, np.sqrt(squares)[:, None], 1e-6)
    assert ridge > 20
    assert abs(np.log(ridge) - best.x) < 1e-3
    largest, _ = cross_validated_ridge(values, np.array([[0.0], [1.0]]), 1e-6)
    assert largest == pytest.approx(1e3)  # of what lies in the last direction only


def test_stopping_pays_on_data_with_the_noise_estimated():
    rng, n = np.random.default_rng(3), 250
    x, x_test = ((v / np.linalg.norm(v, axis=1, keepdims=True)) for v in rng.normal(size=(2, n, 4)))
    gram, cross = kernel(x, x), kernel(x_test, x)
    truth = lambda v: v[:, :1] * (1 + v[:, 1:2])
    y = truth(x) + 0.5 * rng.normal(size=(n, 1))
    noise = float(noise_level(gram, y)[0])
    assert abs(noise / 0.5 - 1) < 0.15
    norm = rkhs_norm(gram + 1e-8 * np.eye(n), truth(x)).total
    stop = early_stopping_time(gram, noise, norm=norm)
    times = jnp.array([stop.time, np.inf], "float32")
    out = sn.ntk.predict_flow(
        gram.astype("float32"), y.astype("float32"), times, cross=cross.astype("float32")
    )
    stopped, trained = np.mean((np.asarray(out) - truth(x_test)) ** 2, axis=(1, 2))
    assert stopped < 0.3 * trained
    assert stopped < 0.3 * np.var(truth(x_test))


def test_least_risk_is_the_least_of_the_worst_cases():
    """The risk of every direction, by the filter itself, on a fine grid of times; and the target
    that attains it.
    """
    rng = np.random.default_rng(0)
    values, noise, norm = np.sort(rng.exponential(size=12) ** 2)[::-1], 0.3, 1.7
    stop = sn.theory.least_risk_time(None, noise, norm=norm, eigenvalues=values)
    times = stop.time * np.geomspace(1e-4, 1e4, 20001)
    left = np.exp(-times[:, None] * values)
    risks = (norm**2 * values * left**2).max(axis=1) + noise**2 * ((1 - left) ** 2).sum(axis=1)
    np.testing.assert_allclose(stop.error * 12, risks.min(), rtol=1e-6)
    assert stop.steps is None
    with pytest.raises(ValueError, match="noise must be a positive"):
        sn.theory.least_risk_time(None, 0.0, eigenvalues=values)


def test_the_noise_of_targets_that_no_kernel_fits_is_their_mean_square():
    """Over all directions, those without a component too."""
    components = np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]])
    ridge, variance = cross_validated_ridge(np.zeros(3), components, 1e-6, outside=2)
    assert ridge == 1e-6
    assert variance == pytest.approx(np.sum(components**2) / (2 * 5))

"""Closed forms beside the functions that bounds and certificates are made of, written out again at
small fixed inputs.
"""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import softntk as sn
from softntk.networks import Parameters
from softntk.theory import bounds
from softntk.theory._certificates import convergence, logit_box, proof_path
from softntk.theory._certificates.jacobian_bounds import prepare
from softntk.theory._ledger.statements import network_cases as network_cases
from softntk.theory._ledger.statements import newton as newton
from softntk.theory._ledger.statements import perturbation as perturbation
from softntk.theory._ledger.statements import row_sampling as row_sampling
from softntk.theory._ledger.statements import training as training
from softntk.theory._perturbation.softmax_bound import SoftmaxExpansion

EPS = 2.0**-52
N, K, M, LAMBDA, SIGMA, DELTA, R, ACCURACY = 7, 3, 64, 0.2, 0.5, 0.05, 1.7, 1e-3
B = SIGMA * math.sqrt(math.log(N * K / DELTA))
OPTIONS = {"k": K, "sigma": SIGMA, "failure": DELTA}


def test_the_statements_of_the_first_paper():
    assert_close(bounds.growth(N, K, SIGMA, DELTA), B)
    squared = (N * K / LAMBDA) ** 2
    log = math.log(N * K / DELTA)
    rounds = math.log(N * K / ACCURACY)
    desired = {"relu": (1.0, log, 1.0), "exp": (math.exp(18 * B), log**2, math.exp(16 * B))}
    desired["softmax"] = desired["exp"]
    for family, (width_power, logs, power) in desired.items():
        assert_close(
            bounds.required_width(family, N, LAMBDA, **OPTIONS), squared * width_power * logs
        )
        assert_close(
            bounds.required_steps(family, N, LAMBDA, ACCURACY, **OPTIONS),
            20 * squared * power * rounds,
        )
        rate = 0.1 * LAMBDA / (N * K) ** 2 / power
        paper = {"parameterization": "paper", "width": M}
        assert_close(bounds.learning_rate(family, N, LAMBDA, **OPTIONS), rate)
        assert_close(bounds.learning_rate(family, N, LAMBDA, **OPTIONS, **paper), rate / M)
        moved = 4 / LAMBDA * (1.0 if family == "relu" else math.exp(3 * B)) * math.sqrt(N * K) * R
        assert_close(bounds.radius(family, N, LAMBDA, R, M, **OPTIONS), moved / math.sqrt(M))
        assert_close(
            bounds.radius(family, N, LAMBDA, R, M, parameterization="paper", **OPTIONS), moved / M
        )
        change = R * N * K * (2 / SIGMA if family == "relu" else math.exp(10 * B))
        assert_close(bounds.perturbation_bound(R, N, family=family, **OPTIONS), change)
        assert_close(bounds.perturbation_bound(R, N, family=family, **OPTIONS, **paper), M * change)
        assert_close(
            bounds.smallest_eigenvalue(R, N, LAMBDA, family=family, **OPTIONS),
            0.75 * LAMBDA - change,
        )
        lowest = bounds.smallest_eigenvalue(R, N, LAMBDA, family=family, **OPTIONS, **paper)
        assert_close(lowest, M * (0.75 * LAMBDA - change))
    assert_close(bounds.descent_factor(LAMBDA, 0.3), 1 - 0.5 * 0.3 * LAMBDA)
    assert_close(
        bounds.descent_factor(LAMBDA, 0.3 / M, parameterization="paper", width=M),
        1 - 0.5 * 0.3 * LAMBDA,
    )
    assert bounds.descent_factor(1.0, 2.0) == 0.0
    assert bounds.growth(1, 1, 0.01, 0.5) == 1.0
    assert bounds.required_steps("relu", N, LAMBDA, float(N * K), k=K) == 0.0
    assert bounds.required_width("exp", 10, 1e-300, sigma=100.0) == math.inf


def test_every_constant_of_the_first_paper_enters():
    constants = bounds.Constants(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.5, 2.5, 3.5)
    options = {**OPTIONS, "constants": constants}
    growth = math.exp(2 * B)
    squared = (N * K / LAMBDA) ** 2
    log = math.log(N * K / DELTA)
    assert_close(
        bounds.required_width("exp", N, LAMBDA, **options), 3 * squared * growth**4 * log**2
    )
    assert_close(
        bounds.learning_rate("exp", N, LAMBDA, **options), 5 * LAMBDA / (N * K) ** 2 / growth**6
    )
    steps = 7 * squared * growth**8 * math.log(N * K / ACCURACY)
    assert_close(bounds.required_steps("exp", N, LAMBDA, ACCURACY, **options), steps)
    radius = 9 / LAMBDA / math.sqrt(M) * growth**1.5 * math.sqrt(N * K) * R
    assert_close(bounds.radius("exp", N, LAMBDA, R, M, **options), radius)
    assert_close(bounds.perturbation_bound(R, N, family="exp", **options), R * N * K * growth**2.5)
    assert_close(bounds.perturbation_bound(R, N, family="relu", **options), R * N * K * 3.5 / SIGMA)


# --- boxes and the expansion of softmax


def _enclosure(name: str) -> sn.activations.Enclosure:
    enclosure = sn.activations.get(name).enclosure
    assert enclosure is not None
    return enclosure


@pytest.mark.parametrize("activation", ["exp", "res_exp"])
@pytest.mark.parametrize("normalized", [True, False])
def test_boxes_hold_slopes_and_totals(activation, normalized):
    x = np.array([[1.0, 0.5], [-0.2, 0.1]])
    W = np.array([[0.3, -0.1, 0.2], [-0.4, 0.2, 0.1]])
    box = logit_box.LogitBox(_enclosure(activation), normalized, x, W, 2)
    z = x @ W
    linear = 1.0 if activation == "res_exp" else 0.0

    def u(z):
        return np.exp(z) + linear * z

    alpha = 2 * u(z).sum(axis=1, keepdims=True) if normalized else np.ones((2, 1))
    assert_close(box.centre, (np.exp(z) + linear) / alpha)
    assert_close(box.values, u(z) / alpha)
    shift = z.max(axis=1, keepdims=True) if normalized else 0 * alpha
    if activation == "res_exp":
        shift = np.maximum(shift, 0)
    size = (2 + 8) * (np.abs(x) @ np.abs(W)) + 8 * np.abs(z - shift) + 8 * np.abs(shift)
    assert_close(box.start, EPS * size)
    delta = np.array([[0.1, 0.2, 0.05], [0.02, 0.1, 0.3]])
    found = box.slopes(delta)
    assert found is not None
    most = 2 * u(z + delta).sum(axis=1, keepdims=True) if normalized else alpha
    least = 2 * u(z - delta).sum(axis=1, keepdims=True) if normalized else alpha
    assert_close(found.lower, (np.exp(z - delta) + linear) / most, rtol=1e-11)
    assert_close(found.upper, (np.exp(z + delta) + linear) / least, rtol=1e-11)
    assert_close(found.second, np.exp(z + delta) / least, rtol=1e-11)
    assert (found.lower < (np.exp(z - delta) + linear) / most).all()
    assert (found.upper > (np.exp(z + delta) + linear) / least).all()
    far = box.slopes(delta + 800.0)
    assert far is None


def test_boxes_far_from_zero_neither_over_nor_underflow():
    """All logits of a softmax far below zero or above; a normaliser that vanishes has no box."""
    for offset in (-1000.0, 1000.0):
        box = logit_box.LogitBox(
            _enclosure("exp"), True, np.array([[1.0]]), offset + np.array([[0.0, 1.0]]), 1
        )
        assert_close(box.centre, np.exp([[0.0, 1.0]]) / np.sum(np.exp([0.0, 1.0])))
    lost = logit_box.LogitBox(
        _enclosure("res_exp"), True, np.array([[1.0]]), np.array([[-1.0, -2.0]]), 1
    )
    assert lost.total[0, 0] < 0
    assert lost.slopes(np.full((1, 2), 1e-9)) is None


def test_the_least_of_the_bounds_of_a_softmax_is_taken(x64):
    net = sn.networks.two_layer("softmax", width=6, antisymmetric=False)
    params = Parameters(
        hidden=jnp.tile(jnp.arange(6.0), (2, 1)), readout=jnp.asarray([[1.0], [-1.0]] * 3)
    )
    expansion = SoftmaxExpansion(net.architecture, params, np.array([[1.0, 0.5], [0.3, -0.2]]))
    expansion._remainder = lambda R: np.zeros((2, 2))
    expansion.total_norms = (5.0, 3.0)
    for first, R, desired in [
        ((2.0, 1.0), 1.0, (2.0, 1.0)),
        ((2.0, 1.0), 10.0, (5.0, 3.0)),
        ((2.0, 9.0), 1.0, (2.0, 2.0)),
        ((4.0, 9.0), 1.0, (4.0, 3.0)),
        ((0.5, 0.25), 2.0, (1.0, 0.5)),
    ]:
        expansion.derivative_norms = first
        assert expansion.norms(R) == desired
    rest = np.array([[3.0, 0.0], [0.0, 4.0]])
    expansion._remainder = lambda R: rest
    expansion.derivative_norms = (1.0, 0.5)
    expansion.total_norms = (100.0, 100.0)
    frobenius, spectral = expansion.norms(2.0)
    assert_close(frobenius, 2.0 + 5.0)
    assert_close(spectral, 1.0 + 4.0, rtol=0.01)


def test_moves_of_a_softmax_are_weighted_by_the_mean_probabilities(x64):
    """2 λ_max(Σ_i W_i x_i x_iᵀ)^½ at orthogonal points: W_i = Σ_r f²/h (α(s − ν) − c)²."""
    net = sn.networks.two_layer("softmax", width=6, antisymmetric=False)
    W = np.random.default_rng(0).normal(size=(2, 6))
    a = np.array([1.0, -1.0] * 3)
    params = Parameters(hidden=jnp.asarray(W), readout=jnp.asarray(a[:, None]))
    expansion = SoftmaxExpansion(net.architecture, params, np.eye(2))
    f = np.exp(W) / np.exp(W).sum(axis=1, keepdims=True)
    alpha = a - f @ a[:, None]
    s = f * alpha
    nu, c = ((part * s).sum(axis=1, keepdims=True) for part in (f, s))
    weights = (f**2 / f.mean(axis=0) * (alpha * (s - nu) - c) ** 2).sum(axis=1)
    size = expansion.inner_products[0, 0]
    assert_close(expansion.derivative_norms[0], 2 * size * weights.max() ** 0.5, rtol=1e-6)


# --- convergence


def degenerate(rows, k=2):
    net = sn.networks.two_layer("softmax", width=4, out_dim=k, antisymmetric=False)
    rng = np.random.default_rng(0)
    params = Parameters(
        hidden=jnp.asarray(rng.normal(size=(2, 4)), jnp.float32),
        readout=jnp.asarray(rng.choice([-1.0, 1.0], (4, k)), jnp.float32),
    )
    return sn.theory.certify_convergence(
        net, params, np.asarray(rows, np.float32), np.ones((len(rows), k), np.float32)
    )


def test_why_the_kernel_is_singular():
    angles = np.arange(5.0)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert "10 targets and 8 trained weights" in degenerate(rows).reason
    assert degenerate(rows).smallest_singular_value == 0
    assert "targets and" not in degenerate(rows[:4]).reason  # 8 and 8
    assert "rows [0, 2] of x are equal" in degenerate(rows[[0, 1, 0]]).reason
    assert "row 1 of x is zero" in degenerate(rows[:3] * np.array([[1.0], [0.0], [1.0]])).reason


def small_data(x64):
    net = sn.networks.two_layer("softmax", width=4000)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    data = prepare(net, params, np.eye(2), np.full((2, 1), 1e-3))
    assert not isinstance(data, str)  # a reason why not
    return data


def test_singular_values_that_are_used_up_stop_the_proof(x64, monkeypatch):
    """The change of J as large as σ_min, to the last bit, is too large; half of it is not, and then
    the mass is known.
    """
    data = small_data(x64)
    smallest, largest = 0.4, 2.0

    def enclose(data, delta, slopes, step, growth):
        assert_close(step * proof_path.SEGMENT_COUNT, data.residual_norm / smallest**2)
        return proof_path._PathSegment(delta, slopes, growth)

    monkeypatch.setattr(proof_path, "_enclose_segment", enclose)
    monkeypatch.setattr(proof_path, "bound_jacobian_change", lambda data, slopes: smallest)
    stopped = proof_path.integrate_bounds(data, smallest, largest)
    assert stopped.remaining_residual == data.residual_norm
    assert (stopped.smallest, stopped.mass, stopped.largest) == (0.0, 0.0, largest + smallest)
    assert "used up" in stopped.reason
    monkeypatch.setattr(proof_path, "bound_jacobian_change", lambda data, slopes: smallest / 2)
    reached = proof_path.integrate_bounds(data, smallest, largest)
    step = data.residual_norm / smallest**2 / 40
    pieces = math.ceil(data.residual_norm / (0.95 * step * (smallest / 2) ** 2))
    assert_close(reached.mass, pieces * step)
    assert (reached.remaining_residual, reached.smallest, reached.largest, reached.reason) == (
        0.0,
        smallest / 2,
        largest + smallest / 2,
        "",
    )
    monkeypatch.setattr(proof_path, "_enclose_segment", lambda *_: None)
    assert "explodes" in proof_path.integrate_bounds(data, smallest, largest).reason


@pytest.mark.parametrize("kappa", [0.0, 3.0, math.nan, math.inf])
def test_step_size_rate_and_radius_of_a_certificate(kappa, x64, monkeypatch):
    data = small_data(x64)
    r = data.residual_norm
    reach = proof_path.ProofProgress(data.box.start, 0.01, 0.4, 2.0, 0.0, "")
    monkeypatch.setattr(convergence, "bound_singular_values", lambda data: (0.25, 1.0, 0, 1))
    monkeypatch.setattr(convergence, "integrate_bounds", lambda data, smallest, largest: reach)
    monkeypatch.setattr(convergence, "bound_jacobian_curvature", lambda data, slopes, beta: kappa)
    quadratic = convergence._certify_data(data._replace(residual_norm=0.0), 2)
    assert quadratic.holds  # where nothing is to be learned curvature costs nothing, however large
    assert_close(quadratic.learning_rate, 1 / 4)
    found = convergence._certify_data(data, 2)
    assert found.holds == math.isfinite(kappa)
    if not found.holds:  # never by a comparison with NaN
        assert (found.learning_rate, found.radius) == (0.0, math.inf)
        return
    rate = min(1 / 4, 2 * 0.05 * 0.16 / (kappa * 2 * r) if kappa else math.inf)
    assert_close(found.learning_rate, rate)
    assert found.learning_rate < rate
    assert_close(found.rate, (1 - rate * 0.95 * 0.16) ** 2)
    assert_close(found.flow_rate, 2 * 0.16)
    fall = (1 - rate * 4 / 2) * 0.4 - kappa * rate * r / 2
    assert_close(found.radius, min(2.0 * 0.01, r / fall))
    assert_close(
        [found.smallest_singular_value, found.final_singular_value, found.largest_singular_value],
        [0.5, 0.4, 2.0],
    )
    assert (found.residual_norm, found.progress) == (r, 1.0)
    monkeypatch.setattr(
        convergence,
        "integrate_bounds",
        lambda data, smallest, largest: reach._replace(remaining_residual=math.nan),
    )
    assert not convergence._certify_data(data, 2).holds
    monkeypatch.setattr(
        convergence, "bound_singular_values", lambda data: (math.nan, math.nan, 0, 1)
    )
    assert not convergence._certify_data(data, 2).holds


# --- statements of the ledger that draw


def test_the_sparsifier_asks_for_its_number_of_rows(monkeypatch):
    case = row_sampling.weighted_rows_case(np.random.default_rng(0))
    exact = case["A"].T @ (case["D"][:, None] * case["A"])
    asked = []

    def grams(key, pi, A, D, size):
        asked.append(size)
        return np.stack([1.25 * exact] * 20)

    monkeypatch.setattr(row_sampling, "sampled_grams", grams)
    with jax.enable_x64(True):
        instance = row_sampling.check_sample_size(row_sampling.chernoff_size)(case)
    assert asked == [math.ceil(3 * 3 * math.log(2 * 3 / 0.1) / 0.5**2)]
    assert instance is not None
    assert instance.bound == 0.5
    assert_close(instance.value, 0.25, rtol=1e-9)


def test_newton_reaches_the_minimiser_of_its_statements():
    case = newton.strongly_convex_case(np.random.default_rng(1))
    best = newton.find_minimiser(case)
    assert np.linalg.norm(newton.gradient(case, best)) < 1e-13
    x = best + 0.01 * case["start"]
    assert np.linalg.norm(
        newton.approximate_step({**case, "epsilon": 0.0}, x) - best
    ) < 0.01 * np.linalg.norm(x - best)


def test_our_perturbation_is_measured_over_all_moves(monkeypatch):
    case = perturbation.ball_case(np.random.default_rng(0))
    moves = perturbation.perturbed_weights(case)
    for move in moves:
        assert_close(np.linalg.norm(move - case["W"], axis=0), np.full(move.shape[1], case["R"]))
    far = case["W"] + 3.0

    stub = SimpleNamespace(ours_frobenius=np.array([0.5]), worst=SimpleNamespace(hidden=far[None]))
    monkeypatch.setattr(perturbation, "perturbation", lambda *args, **options: stub)

    def kernel(W):
        f = np.exp(case["x"] @ W)
        f /= f.sum(axis=1, keepdims=True)
        g = (
            math.sqrt(len(case["a"]))
            * f[:, None]
            * (case["a"].T[None] - (f @ case["a"])[:, :, None])
        )
        flat = g.reshape(-1, g.shape[-1])
        return np.kron(case["x"] @ case["x"].T, np.ones((2, 2))) * (flat @ flat.T)

    start = kernel(case["W"])
    changes = [float(np.linalg.norm(kernel(W) - start)) for W in (*moves, far)]
    with jax.enable_x64(True):
        instance = perturbation.check_our_kernel_bound(case)
        stated = perturbation.check_kernel(case)
    assert instance is not None
    assert instance.bound == 0.5
    assert_close(instance.value, max(changes), rtol=1e-9)
    assert stated is not None
    assert_close(stated.value, max(changes[:-1]), rtol=1e-9)


def test_gradients_of_the_statements_are_of_the_residual():
    case = network_cases.perturbed_case(np.random.default_rng(0))
    case = {**case, "sigma": 5.0}  # all logits are within B
    f = np.exp(case["x"] @ case["W"])
    f /= f.sum(axis=1, keepdims=True)
    m = len(case["a"])
    residual = math.sqrt(m) * f @ case["a"] - case["Y"]
    slopes = math.sqrt(m) * f[:, None] * (case["a"].T[None] - (f @ case["a"])[:, :, None])
    gradient = np.einsum("id,ikm,ik->dm", case["x"], slopes, residual)
    instance = training.check_unit_gradient(case)
    assert instance is not None
    assert_close(instance.value, np.linalg.norm(gradient, axis=0).max(), rtol=1e-9)
    scale = math.exp(3 * network_cases.growth(case)) * math.sqrt(residual.size / m)
    assert_close(instance.bound, scale * np.linalg.norm(residual), rtol=1e-9)


def test_the_wide_networks_of_the_statements():
    case = network_cases.wide_network_case(np.random.default_rng(0))
    assert (case["x"].shape, case["W"].shape, case["a"].shape, case["Y"].shape) == (
        (3, 8),
        (8, 8192),
        (8192, 2),
        (3, 2),
    )
    assert case["sigma"] == 0.2
    assert_close(case["W"].std(), 0.2, rtol=0.02)
    np.testing.assert_array_equal(case["W"][:, :4096], case["W"][:, 4096:])
    np.testing.assert_array_equal(case["a"][:4096], -case["a"][4096:])

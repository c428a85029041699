"""Single statements of the ledger: each row can fail, its bound is the one that is stated, and the
oracles beside it are right.
"""

import dataclasses
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from softntk.theory._ledger import oracles
from softntk.theory._ledger import run as run_module
from softntk.theory._ledger.statement import (
    EQUALITY_TOLERANCE,
    Instance,
)
from softntk.theory._ledger.statements import (
    convexity,
    initialisation,
    network_cases,
    newton,
    perturbation,
    regression_bounds,
    row_sampling,
    score_cases,
    score_estimation,
    training,
)


def test_noised_mixtures_keep_the_variance_that_is_preserved():
    """E X_t² = α² E X₀² + 1 − α², by sums over the grid."""
    case = score_estimation.mixture_case(np.random.default_rng(0))
    grid = score_estimation.DensityGrid(case)
    square = np.mean(case["means"] ** 2 + case["deviations"] ** 2)
    assert grid.marginal.sum() == pytest.approx(1, rel=1e-9)
    assert grid.marginal @ grid.x**2 == pytest.approx(
        case["alpha"] ** 2 * (square - 1) + 1, rel=1e-9
    )


def test_oracles_agree_with_finite_differences():
    rng = np.random.default_rng(0)
    z, b, h = rng.normal(size=5), rng.dirichlet(np.ones(5)), 1e-6
    for name in ("exp", "res_exp"):
        loss = lambda z, name=name: 0.5 * np.sum((oracles.prediction(name, z) - b) ** 2)
        steps = h * np.eye(5)
        gradient = [(loss(z + e) - loss(z - e)) / (2 * h) for e in steps]
        hessian = [
            (oracles.logit_gradient(name, z + e, b) - oracles.logit_gradient(name, z - e, b))
            / (2 * h)
            for e in steps
        ]
        np.testing.assert_allclose(oracles.logit_gradient(name, z, b), gradient, atol=1e-8)
        np.testing.assert_allclose(oracles.logit_hessian(name, z, b), hessian, atol=1e-7)
    W, a, x, Y = (
        rng.normal(size=(3, 8)),
        rng.normal(size=(8, 2)),
        rng.normal(size=(4, 3)),
        rng.normal(size=(4, 2)),
    )
    loss = lambda W: 0.5 * np.sum((oracles.forward(W, a, x) - Y) ** 2)
    move = rng.normal(size=W.shape)
    slope = (loss(W + h * move) - loss(W - h * move)) / (2 * h)
    assert np.sum(move * oracles.gradient(W, a, x, oracles.forward(W, a, x) - Y)) == pytest.approx(
        slope, rel=1e-6
    )


def test_the_theorem_is_measured_by_the_sum_over_points_and_outputs(monkeypatch):
    """Steps left out, the error is ‖F(W) − Y‖² of the start; the mean over two points would be half
    of it.
    """
    rng = np.random.default_rng(0)
    monkeypatch.setattr(training, "train", lambda case, steps: case["W"])
    cases = (training.start_case(rng) for _ in range(20))
    case, instance = next((c, i) for c in cases if (i := training.check_theorem(c)) is not None)
    powers = np.exp(case["x"] @ case["W"])
    outputs = np.sqrt(len(case["a"])) * (powers / powers.sum(axis=1, keepdims=True)) @ case["a"]
    assert case["Y"].size == 2
    assert instance.value == pytest.approx(np.linalg.norm(outputs - case["Y"]) ** 2, rel=1e-9)
    assert instance.bound == case["accuracy"]


def test_starts_are_antisymmetric_with_readouts_of_both_signs():
    case = network_cases.draw_network(np.random.default_rng(0), (2, 3, 2, 32))
    half = case["a"][:16]
    assert np.array_equal(case["a"][16:], -half)
    assert np.array_equal(case["W"][:, 16:], case["W"][:, :16])
    assert all(set(column) == {-1, 1} for column in half.T)


def test_errors_of_hessians_are_as_large_as_said():
    """‖E‖ = 1, so that (1 − ε)H ≼ H̃ ≼ (1 + ε)H is as tight as it may be."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        error = newton.strongly_convex_case(rng)["E"]
        assert np.abs(np.linalg.eigvalsh(error)) == pytest.approx(np.ones(len(error)))


# --- every new row can fail


def statement_named(reference):
    return next(s for s in run_module.STATEMENTS if s.reference == reference)


def fails_somewhere(reference, check, count=20):
    """Run the statement with a broken check, on which some instance must fail."""
    statement = dataclasses.replace(statement_named(reference), check=check, count=count)
    (row,) = run_module.ledger(statements=[statement])
    return row.instances > 0 and row.held < row.instances


def test_log_m_is_needed_for_every_unit():
    """The logarithm of nk/δ in the place of nkm/δ fails, and so does C = 1."""
    reference = "[ours] |⟨w_r, x_i⟩| ≤ B, every r"
    assert fails_somewhere(
        reference, initialisation.check_largest_logit(network_cases.ONE_UNIT), 20
    )


def test_the_width_for_every_unit_is_a_fixed_point():
    n, smallest, sigma, failure = 100, 0.1, 0.3, 0.1
    log_width = oracles.log_width_for_every_unit(n, 1, smallest, sigma, failure)
    log_ratio = math.log(n / failure)
    B = math.sqrt(2) * sigma * math.sqrt(log_ratio + log_width)
    desired = 2 * math.log(n / smallest) + 18 * B + 2 * math.log(log_ratio)
    assert log_width == pytest.approx(desired, rel=1e-12)
    assert log_width / math.log(10) == pytest.approx(41, abs=0.5)
    case = {"n": n, "smallest": smallest, "sigma": sigma}
    shown = initialisation.check_width_beside(case)
    assert shown.value == pytest.approx(15.5, abs=0.05)
    constants = initialisation.concentration_for_every_unit(case, log_width)
    assert constants * math.sqrt(log_ratio) == pytest.approx(B / sigma, rel=1e-12)


def test_perturbed_kernels_of_exp_and_relu_are_those_of_automatic_differentiation():
    rng = np.random.default_rng(0)
    case = {**perturbation.relu_case(rng), "m": 2048, "R": 0.2}
    weights = network_cases.draw_network(rng, (3, 5, 2, 16), 0.7)
    x, W, a = (weights[name] for name in ("x", "W", "a"))
    with jax.enable_x64(True):
        for name, u in (("exp", np.exp), ("relu", lambda z: np.maximum(z, 0))):
            h, n, k = 1e-6, 3, 2
            J = np.zeros((n * k, W.size))
            for i in range(W.size):
                step = h * np.eye(W.size)[i].reshape(W.shape)
                difference = u(x @ (W + step)) @ a - u(x @ (W - step)) @ a
                J[:, i] = difference.ravel() / (2 * h * math.sqrt(len(a)))
            found = oracles.plain_kernel(name, W, a, x)
            np.testing.assert_allclose(found, J @ J.T, atol=1e-7)
        measured = perturbation.check_relu_kernel(case)
    # the worst switch is no empty one, and no kernel changes by more than its norm
    assert measured is not None
    assert 0 < measured.value < 2 * len(case["x"]) * case["k"]


def test_the_perturbation_of_exp_needs_its_growth():
    """Without e^{2B}, and with a hundredth of R, the bound fails."""
    check = statement_named("[ours] perturbed kernel, exp").check

    def broken(case):
        instance = check(case)
        if instance is None:
            return None
        without_growth = instance.bound * math.exp(-2 * network_cases.growth(case))
        return instance._replace(bound=0.01 * without_growth)

    assert fails_somewhere("[ours] perturbed kernel, exp", broken)


def test_posterior_moments_are_those_of_the_grid():
    case = score_estimation.mixture_case(np.random.default_rng(1))
    grid = score_estimation.DensityGrid(case)
    mean, variance = oracles.posterior_moments(
        grid.x, case["means"], case["deviations"], case["alpha"]
    )
    bulk = grid.marginal > 1e-9
    second = (grid.x[:, None] ** 2 * grid.joint).sum(axis=0)[bulk] / grid.marginal[bulk]
    np.testing.assert_allclose(mean[bulk], grid.posterior_mean[bulk], atol=1e-7)
    np.testing.assert_allclose(variance[bulk], second - mean[bulk] ** 2, atol=1e-7)


def test_the_four_errors_add_up_and_each_one_is_needed():
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(20):
        *parts, total = score_cases.ScoreProblem(score_cases.score_case(rng)).errors()
        np.testing.assert_allclose(sum(parts), total, atol=1e-12)
        sizes.append([np.mean(part**2) for part in parts])
    assert (np.median(sizes, axis=0) > 1e-8).all()


def test_rows_of_theorem_six_fail_when_they_are_broken(monkeypatch):
    def halved(check):
        return lambda case: (i := check(case))._replace(bound=i.bound / 8)

    for name in ("four errors", "label mismatch", "early stopping", "approximation"):
        reference = f"[G] theorem 6.6: {name}"
        assert fails_somewhere(reference, halved(statement_named(reference).check))
    # a function that is not the nearest of its norm has nearer competitors
    solve = np.linalg.solve
    monkeypatch.setattr(
        score_cases.np.linalg, "solve", lambda A, b: solve(A @ A, b) * np.linalg.norm(A)
    )
    reference = "[G] theorem 6.6: approximation"
    assert fails_somewhere(reference, statement_named(reference).check)


def test_coupling_of_equal_widths_does_not_fall(monkeypatch):
    monkeypatch.setattr(score_estimation, "WIDTH_FACTOR", 1)
    reference = "[G] theorem 6.6: coupling"
    assert fails_somewhere(reference, statement_named(reference).check, 3)


def test_weights_must_outweigh_the_hessian(monkeypatch):
    """w² of a tenth of what is asked for is no 10 % approximation."""
    for name in ("W² ≈ B + W²", "W² ≈ B + W², softmax", "one factorisation for all steps"):
        reference = f"[ours] {name}"
        check = statement_named(reference).check
        assert not fails_somewhere(reference, check, 60)
        monkeypatch.setattr(convexity, "weight_gram", weaker_gram)
        assert fails_somewhere(reference, check, 60)
        monkeypatch.undo()


def weaker_gram(case, size):
    return 0.05 * size * case["A"].T @ (case["excess"][:, None] * case["A"])


def test_weights_that_are_too_small_are_no_instance():
    case = convexity.dominated_case(np.random.default_rng(0))
    case = {**case, "excess": np.full(6, 0.5)}
    assert convexity.check_softmax_dominance(case) is None
    assert convexity.check_dominance(case) is None
    assert convexity.check_constant_factorisation(case) is None


def test_the_sample_size_needs_its_factor_of_two():
    """Without it two orthogonal rows fail with probability 1.25e-5 where 1e-6 is asked for."""
    epsilon, failure = 0.5, 1e-6
    full_size = row_sampling.bernstein_size(2, epsilon, failure)
    half_size = math.ceil((1 + epsilon / 3) * math.log(4 / failure) / epsilon**2)
    assert full_size in (2 * half_size, 2 * half_size - 1)
    assert oracles.two_row_failure_probability(full_size, epsilon) <= failure
    wrong = oracles.two_row_failure_probability(half_size, epsilon)
    assert wrong == pytest.approx(1.25e-5, rel=0.01)
    exact = [math.comb(10, N) for N in range(11) if abs(N / 5 - 1) > 0.5]
    found = oracles.two_row_failure_probability(10, 0.5)
    assert found == pytest.approx(sum(exact) / 2**10, rel=1e-12)


def test_the_cost_of_a_step_is_linear_in_the_rows(monkeypatch):
    monkeypatch.setattr(row_sampling, "count_step_operations", lambda n, d: float(n * n * d))
    instance = row_sampling.check_step_cost({"n": 1000, "d": 8})
    assert not instance.holds


def test_moved_solutions_keep_the_residual():
    """u(y) − α(y)b = u(x) − α(x)b̃, from the definition; a hundredth of the constant fails."""
    case = regression_bounds.draw_regression(np.random.default_rng(3), (6, 3), 0.5)
    for name, u in (("exp", np.exp), ("cosh", np.cosh), ("sinh", np.sinh)):
        u_x, u_y = u(case["A"] @ case["x"]), u(case["A"] @ case["y"])
        shifted = (u_x - (u_y - u_y.sum() * case["b"])) / u_x.sum()
        np.testing.assert_allclose(u_y - u_y.sum() * case["b"], u_x - u_x.sum() * shifted)
        instance = regression_bounds.check_moved_solution(name)(case)
        assert instance is not None
        assert instance.value == pytest.approx(np.linalg.norm(shifted - case["b"]), rel=1e-9)
        reference = f"[H] corollary: moved solutions, {name}"
        check = statement_named(reference).check

        def smaller(case, check=check):
            return None if (i := check(case)) is None else i._replace(bound=i.bound / 100)

        assert fails_somewhere(reference, smaller, 60)


def test_the_chain_of_lemmas_exceeds_the_remembered_exponent():
    """e^{2R²} is exceeded by every instance, e^{3R²} by none; β ≤ n enters the first term."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        case = regression_bounds.draw_regression(rng)
        instance = regression_bounds.check_lemma_chain(case)
        assert instance.holds
        assert instance.value > 1
        R = max(regression_bounds.largest_norm(case), 4.0)
        n = len(case["A"])
        radius = regression_bounds.ball_radius(case)
        beta = n * math.exp(-np.linalg.norm(case["A"], 2) * radius)
        change_of_u = 2 * math.sqrt(n) * R * math.exp(R**2)
        size_of_u = math.sqrt(n) * math.exp(R**2)
        chain = change_of_u / beta + beta**-2 * math.sqrt(n) * change_of_u * size_of_u
        scale = n**1.5 / beta**2 * math.exp(2 * R**2)
        assert instance.value == pytest.approx(chain / scale, rel=1e-5)


def test_the_euclidean_contraction_needs_the_condition_number():
    """Without √κ some step is longer than stated."""

    def without_condition(case):
        start = newton.find_start(case, case["distance"])
        if not newton.contraction_premise(case, start):
            return None
        epsilon = case["epsilon"]
        share = case["distance"] * start.lipschitz
        factor = epsilon / (1 - epsilon) + share / (2 * (1 - epsilon) * (start.strength - share))
        after = newton.approximate_step(case, start.x)
        return Instance(
            factor * float(np.linalg.norm(start.x - start.minimiser)),
            float(np.linalg.norm(after - start.minimiser)),
        )

    assert fails_somewhere("[ours] one approximate Newton step, Euclidean", without_condition, 40)


def one(reference):
    """The statement of that reference, and a case of it."""
    statement = next(s for s in run_module.STATEMENTS if s.reference == reference)
    return statement, statement.sample(np.random.default_rng(0))


@pytest.mark.parametrize(("paper", "linear"), [("D", False), ("S", True)])
def test_the_lipschitz_constant_of_u_is_the_one_that_is_stated(paper, linear):
    """‖u(x) − u(y)‖ ≤ (2√n R e^{R²} + R)‖x − y‖, the last R for the linear part alone."""
    statement, case = one(f"[{paper}] Lipschitz: u")
    A, x, y = (np.asarray(case[name]) for name in "Axy")
    R = max(np.linalg.norm(A, 2), np.linalg.norm(x), np.linalg.norm(y))
    assert R > 1.1
    constant = 2 * np.sqrt(len(A)) * R * np.exp(R**2) + (R if linear else 0)
    moved = np.exp(A @ x) - np.exp(A @ y) + (A @ (x - y) if linear else 0)
    found = statement.check(case)
    assert found is not None
    assert found.bound == pytest.approx(constant * np.linalg.norm(x - y), rel=1e-9)
    assert found.value == pytest.approx(np.linalg.norm(moved), rel=1e-9)


def test_the_rest_of_a_step_is_compared_with_a_tenth_of_what_it_gains():
    """|C₂| ≤ 0.1 ηλ‖r‖², with λ of the limit H* = ⟨x, x'⟩ exp(σ²⟨x, x'⟩)."""
    statement, case = one("[G] one step: C₂")
    a, x, Y = (np.asarray(case[name]) for name in "axY")
    powers = np.exp(x @ case["W"])
    outputs = np.sqrt(len(a)) * (powers / powers.sum(axis=1, keepdims=True)) @ a
    dots = x @ x.T
    lowest = np.linalg.eigvalsh(dots * np.exp(case["sigma"] ** 2 * dots))[0]
    gained = training.learning_rate(case) * lowest * np.sum((outputs - Y) ** 2)
    found = statement.check(case)
    assert found is not None
    assert found.bound == pytest.approx(0.1 * gained, rel=1e-6)


def test_a_step_is_judged_where_its_kernel_has_half_of_the_smallest_eigenvalue(monkeypatch):
    for share in (0.45, 0.55):
        step = SimpleNamespace(
            kernel_smallest=share, smallest=1.0, rate=0.1, linear_change=-1.0, loss_before=2.0
        )
        monkeypatch.setattr(training, "LossChange", lambda case, step=step: step)
        found = training.check_linear_change({})
        assert found == (None if share < 0.5 else Instance(1.0, 0.2))


def test_the_first_loss_is_that_of_all_targets():
    """‖Y‖² = nk of targets ±1, as large as it may be."""
    case = network_cases.draw_network(np.random.default_rng(0), (2, 3, 2, 32))
    case["Y"] = np.sign(case["Y"])
    found = initialisation.check_initial_loss(case)
    assert found.value == pytest.approx(case["Y"].size, rel=1e-9)
    assert found.bound == case["Y"].size


@pytest.mark.usefixtures("x64")
def test_what_is_judged_by_the_tolerance_of_equalities_is_one():
    """And nothing else; of the derivatives of both regressions."""
    seen = set()
    for statement in run_module.STATEMENTS:
        if statement.reference[:3] in ("[S]", "[D]") and not statement.count > 20:
            found = statement.check(statement.sample(np.random.default_rng(0)))
            if found is not None:
                assert (found.bound == EQUALITY_TOLERANCE) == statement.equality, (
                    statement.reference
                )
                seen.add((statement.reference[:3], statement.equality))
    assert seen >= {("[S]", True), ("[D]", True)}


def test_statements_name_the_activation_that_they_are_about():
    for statement in run_module.STATEMENTS:
        paper, _, title = statement.reference.partition(" ")
        if title.startswith("Lipschitz:") and "for u =" in statement.statement:
            linear = "u = e^z + z" in statement.statement
            assert linear == (paper == "[S]" or title.endswith("res_exp")), statement.reference

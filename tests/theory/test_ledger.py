"""The ledger: enough statements, each measured; what fails has a counterexample that fails; what is
broken is noticed.
"""

import dataclasses
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from softntk import theory
from softntk.theory._ledger import oracles as oracles
from softntk.theory._ledger import run as run_module
from softntk.theory._ledger import table
from softntk.theory._ledger.statement import (
    TOLERANCE,
    Instance,
    Statement,
    equal,
)
from softntk.theory._ledger.statements import networks, newton, training

# Every statement that is known to be false as remembered; the rest must hold on every instance.
FAILING = {
    "[G] lemma: |⟨w_r, x_i⟩| ≤ B, C = 1",
    "[G] lemma: |⟨w_r, x_i⟩| ≤ B, every r",
    "[S] lemma: ‖f‖ ≤ 1",
    "[S] lemma: α ≥ β",
    "[S] lemma: α > 0",
    "[S] Lipschitz: 1/α",
    "[S] lemma: −20 I ≼ B ≼ 20 I",
    "[D] Hessian is PSD without weights",
    "[S] Hessian is PSD without weights",
    "[S] lemma: convexity",
    "[S] lemma: one approximate Newton step",
}


def named(rows, reference):
    return next(row for row in rows if row.reference == reference)


def every_statement_is_measured(rows):
    assert len(rows) >= 30
    assert len({row.reference for row in rows}) == len(rows)
    by_reference = {statement.reference: statement for statement in run_module.STATEMENTS}
    for row in rows:
        assert row.instances == by_reference[row.reference].count
        assert row.source in ("printed", "as remembered", "ours")
        assert not row.reference.startswith("[ours]") or row.source == "ours"
        assert (
            (row.tightness is None)
            == (row.error is not None)
            == by_reference[row.reference].equality
        )


def what_fails_is_known_and_the_rest_holds(rows):
    assert {row.reference for row in rows if row.held < row.instances} == FAILING
    for row in rows:
        assert (row.counterexample is None) == (row.case is None) == (row.held == row.instances)
        if row.counterexample is None and row.tightness is not None:
            assert row.tightness.median >= row.tightness.worst >= 1 - 1e-9
        if row.counterexample is None and row.error is not None:
            assert row.error <= TOLERANCE


def counterexamples_fail_again(rows):
    for row in (named(rows, reference) for reference in FAILING):
        instance = run_module.replay(row)
        assert instance is not None, row.reference
        assert not instance.holds, row.reference
        assert math.isfinite(instance.value), row.reference
        assert row.counterexample.endswith(f"{instance.value:.4g} > {instance.bound:.4g}"), (
            row.reference
        )


def counterexamples_by_hand(rows):
    z = named(rows, "[S] lemma: α > 0").case
    z = z["A"] @ z["x"]
    assert np.sum(np.exp(z) + z) < 0
    case = named(rows, "[S] lemma: one approximate Newton step").case
    assert np.linalg.norm(case["E"], 2) <= 1 + 1e-9
    assert 0 < case["epsilon"] < 1
    with jax.enable_x64(True):
        for name, reference in (("exp", "[D]"), ("res_exp", "[S]")):
            case = named(rows, f"{reference} Hessian is PSD without weights").case
            found = oracles.regression(case["A"], case["b"], 0 * case["w"], case["x"], name)
            assert np.linalg.eigvalsh(found.hessian)[0] < -1e-6 * np.abs(case["A"]).max() ** 2


def test_a_broken_bound_is_noticed():
    whole = next(s for s in run_module.STATEMENTS if s.reference == "[D] lemma: ‖f‖ ≤ 1")

    def divided(case):
        instance = whole.check(case)
        return instance._replace(bound=instance.bound / 2)

    row = run_module.ledger(statements=[dataclasses.replace(whole, check=divided)])[0]
    assert 0 < row.held < row.instances == whole.count
    assert row.tightness.worst < 1
    n, d = row.case["A"].shape
    assert (n, d) == (1, 1)  # f = 1 for a single sample
    assert (
        row.counterexample
        == f"A = {run_module._text(row.case['A'])}, x = {run_module._text(row.case['x'])}: 1 > 0.5"
    )


def test_runner_counts_instances_and_skips_what_is_none():
    even = Statement(
        "even",
        "",
        lambda rng: {"t": int(rng.integers(100))},
        lambda c: None if c["t"] % 2 else Instance(1.0, 0.5),
    )
    wrong = Statement(
        "wrong",
        "",
        lambda rng: {"t": rng.normal(size=3)},
        lambda c: equal(c["t"], 2 * c["t"]),
        equality=True,
    )
    never = Statement("never", "", lambda rng: {}, lambda c: Instance(1.0, math.nan), count=2)
    first, second, third = run_module.ledger(statements=[even, wrong, never])
    assert (first.instances, first.held, first.tightness) == (60, 60, (2.0, 2.0))
    assert (second.held, second.error) == (0, 0.5)
    assert (third.held, third.instances) == (0, 2)
    assert run_module.ledger(statements=[wrong])[0].counterexample == second.counterexample
    with pytest.raises(ValueError, match="must have a reference each, got 'even' twice"):
        run_module.ledger(statements=[even, even])
    with pytest.raises(ValueError, match="match must be part of a reference, .*, got 'odd'"):
        run_module.ledger(match="odd", statements=[even])
    with pytest.raises(ValueError, match="must have a counterexample, got 'even'"):
        run_module.replay(first)
    with pytest.raises(ValueError, match="must have the shape of desired"):
        equal(np.ones(2), np.ones(3))


def test_only_what_fails_by_a_finite_amount_has_an_excess():
    cases = [
        (None, 0),
        (Instance(2.0, 1.0), 0),
        (Instance(2.0, 3.0), 0.5),
        (Instance(1.0, math.inf), 0),
    ]
    for instance, excess in cases:
        assert run_module._excess(instance) == excess


def test_noised_mixtures_keep_the_variance_that_is_preserved():
    """E X_t² = α² E X₀² + 1 − α², by sums over the grid."""
    case = training._mixture(np.random.default_rng(0))
    grid, square = training._Grid(case), np.mean(case["means"] ** 2 + case["deviations"] ** 2)
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
    monkeypatch.setattr(training, "_train", lambda case, steps: case["W"])
    cases = (training._start(rng) for _ in range(20))
    case, instance = next((c, i) for c in cases if (i := training._theorem(c)) is not None)
    powers = np.exp(case["x"] @ case["W"])
    outputs = np.sqrt(len(case["a"])) * (powers / powers.sum(axis=1, keepdims=True)) @ case["a"]
    assert case["Y"].size == 2
    assert instance.value == pytest.approx(np.linalg.norm(outputs - case["Y"]) ** 2, rel=1e-9)
    assert instance.bound == case["accuracy"]


def test_starts_are_antisymmetric_with_readouts_of_both_signs():
    case = networks.draw(np.random.default_rng(0), (2, 3, 2, 32))
    half = case["a"][:16]
    assert np.array_equal(case["a"][16:], -half)
    assert np.array_equal(case["W"][:, 16:], case["W"][:, :16])
    assert all(set(column) == {-1, 1} for column in half.T)


def test_errors_of_hessians_are_as_large_as_said():
    """‖E‖ = 1, so that (1 − ε)H ≼ H̃ ≼ (1 + ε)H is as tight as it may be."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        error = newton._strong(rng)["E"]
        assert np.abs(np.linalg.eigvalsh(error)) == pytest.approx(np.ones(len(error)))


def table_shows_all(rows, capsys):
    text = table.markdown(rows)
    lines = text.splitlines()
    assert sum(line.startswith("| [") for line in lines) == len(rows)
    assert sum(line.startswith("- **") for line in lines) == len(FAILING)
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert widths == {8}
    table.show(rows)
    out = capsys.readouterr().out
    assert all(row.reference in out for row in rows)
    assert f"{len(rows) - len(FAILING)} of {len(rows)} statements held" in out


def test_the_quick_run(capsys):
    """One run, which takes half of a minute, and all that it must show."""
    rows = theory.ledger(quick=True)
    every_statement_is_measured(rows)
    what_fails_is_known_and_the_rest_holds(rows)
    counterexamples_fail_again(rows)
    counterexamples_by_hand(rows)
    table_shows_all(rows, capsys)


def test_written_ledger_is_that_of_these_statements():
    text = table.PATH.read_text(encoding="utf-8")
    for statement in run_module.STATEMENTS:
        assert f"| {statement.reference} |".replace("|", "\\|")[2:-2] in text
        assert statement.statement.replace("|", "\\|") in text, statement.reference
    assert text.count("\n- **") == len(FAILING)


@pytest.mark.slow
def test_command_line():
    run = subprocess.run(
        [sys.executable, "-m", "softntk.theory", "--quick"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"of {len(run_module.STATEMENTS)} statements held on every instance." in run.stdout
    refused = subprocess.run(
        [sys.executable, "-m", "softntk.theory", "--quick", "--write"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "leave out --quick" in refused.stderr


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
    gained = training._rate(case) * lowest * np.sum((outputs - Y) ** 2)
    assert statement.check(case).bound == pytest.approx(0.1 * gained, rel=1e-6)


def test_what_is_judged_by_the_tolerance_of_equalities_is_one():
    """And nothing else; of the derivatives of both regressions."""
    seen = set()
    for statement in run_module.STATEMENTS:
        if statement.reference[:3] in ("[S]", "[D]") and not statement.count > 20:
            found = statement.check(statement.sample(np.random.default_rng(0)))
            if found is not None:
                assert (found.bound == TOLERANCE) == statement.equality, statement.reference
                seen.add((statement.reference[:3], statement.equality))
    assert seen >= {("[S]", True), ("[D]", True)}


def test_statements_name_the_activation_that_they_are_about():
    for statement in run_module.STATEMENTS:
        paper, _, title = statement.reference.partition(" ")
        if title.startswith("Lipschitz:") and "for u =" in statement.statement:
            linear = "u = e^z + z" in statement.statement
            assert linear == (paper == "[S]" or title.endswith("res_exp")), statement.reference

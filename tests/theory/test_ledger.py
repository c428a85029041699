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
from softntk.theory._ledger import counterexamples, oracles, table
from softntk.theory._ledger import run as run_module
from softntk.theory._ledger.statement import (
    EQUALITY_TOLERANCE,
    Instance,
    Statement,
    equal,
)

# Every statement that is known to be false as remembered; the rest must hold on every instance.
FAILING = {
    "[G] lemma: |⟨w_r, x_i⟩| ≤ B, C = 1",
    "[G] lemma: |⟨w_r, x_i⟩| ≤ B, every r",
    "[S] lemma: ‖f‖ ≤ 1",
    "[S] lemma: α ≥ β",
    "[S] lemma: α > 0",
    "[S] Lipschitz: 1/α",
    "[S] lemma: −20 I ≼ B ≼ 20 I",
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
            assert row.error <= EQUALITY_TOLERANCE


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
        case = named(rows, "[S] Hessian is PSD without weights").case
        exact = oracles.regression(case["A"], case["b"], 0 * case["w"], case["x"], "res_exp")
        assert np.linalg.eigvalsh(exact.hessian)[0] < -1e-6 * np.abs(case["A"]).max() ** 2


def test_a_broken_bound_is_noticed():
    whole = next(s for s in run_module.STATEMENTS if s.reference == "[D] lemma: ‖f‖ ≤ 1")

    def divided(case):
        instance = whole.check(case)
        assert instance is not None
        return instance._replace(bound=instance.bound / 2)

    row = run_module.ledger(statements=[dataclasses.replace(whole, check=divided)])[0]
    assert 0 < row.held < row.instances == whole.count
    assert row.tightness is not None
    assert row.case is not None
    assert row.tightness.worst < 1
    n, d = row.case["A"].shape
    assert (n, d) == (1, 1)  # f = 1 for a single sample
    assert (
        row.counterexample
        == f"A = {counterexamples.format_entry(row.case['A'])}, x = {counterexamples.format_entry(row.case['x'])}: 1 > 0.5"
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
        assert counterexamples.relative_excess(instance) == excess


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
    text = table.LEDGER_PATH.read_text(encoding="utf-8")
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

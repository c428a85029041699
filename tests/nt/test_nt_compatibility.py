"""The table of ``python -m softntk.nt``: every part works, and one that does not is said not to."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from helpers import slow_except

from softntk.nt import _self_check as table

PARTS = {
    f"{part}, {case.partition(':')[0]}": (part, case, run) for part, case, run in table.parts()
}


FAST = (
    *("stax, Dense", "batch", "monte_carlo", "empirical_ntk_vp_fn"),
    *("predict.gp_inference", "predict.gradient_descent,", "predict.max_learning_rate"),
)


@pytest.mark.parametrize("part", slow_except(PARTS, *(p for p in PARTS if p.startswith(FAST))))
def test_every_part_works(part):
    row = table.check(PARTS[part])
    assert row.works, row


def test_what_does_not_work_is_said():
    wrong = table.check(("part", "case", lambda: (np.ones(2), 2 * np.ones(2))))
    shape = table.check(("part", "case", lambda: (np.ones(2), np.ones(3))))
    fails: Any = lambda: 1 / 0
    raised = table.check(("part", "case", fails))
    assert not any(row.works for row in (wrong, shape, raised))
    assert wrong.error == 0.5
    assert shape.problem == "shape (2,) instead of (3,)"
    assert raised.problem == "ZeroDivisionError: division by zero"


@pytest.mark.slow
def test_the_command_prints_the_table():
    run = subprocess.run(
        [sys.executable, "-m", "softntk.nt"], capture_output=True, text=True, check=True
    )
    assert f"{len(table.parts())} of {len(table.parts())} parts work" in run.stdout

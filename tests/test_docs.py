"""Every example in a docstring and in the README runs and says what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from helpers import slow_except

import softntk

# Five to fifteen seconds each: examples that train networks, and examples of thousands of points.
HEAVY = {
    "softntk.curvature.sketch",
    "softntk.diffusion._denoisers.kernel",
    "softntk.diffusion._denoisers.linearised",
    "softntk.diffusion.metrics",
    "softntk.diffusion._distributions",
    "softntk.diffusion._denoisers.network",
    "softntk.ntk._depth",
    "softntk.sklearn._ntk_classifier",
    "softntk.sklearn._softmax_regression",
    "softntk.solvers._minimise.contraction",
    "softntk.solvers._minimise.driver",
    "softntk.solvers._natural_gradient",
    "softntk.solvers._newton.transform",
    "softntk.theory._perturbation.measure",
    "softntk.theory.feature_learning",
    "softntk.theory.lazy",
    "softntk.theory._certificates.minimum",
    "softntk.theory.generalisation._risk",
}
MODULES = sorted(m.name for m in pkgutil.walk_packages(softntk.__path__, "softntk."))
README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize(
    "name", slow_except(["softntk", *MODULES], "softntk", *(m for m in MODULES if m not in HEAVY))
)
def test_docstrings(name):
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0


def test_the_examples_are_found():
    assert (
        sum(
            len(t.examples)
            for m in MODULES
            for t in doctest.DocTestFinder().find(importlib.import_module(m))
        )
        > 30
    )


@pytest.mark.optimised
def test_readme(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(block, str(README), "exec"), {})
    trained, predicted = (float(v) for v in capsys.readouterr().out.split())
    assert abs(trained / predicted - 1) < 0.05

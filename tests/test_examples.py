"""Every example runs at small size and finds what theory promises."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.optimised
def test_quickstart(tmp_path, capsys):
    reports = load("quickstart").main(["--small", "--output", str(tmp_path / "picture.png")])
    assert [r.family for r in reports] == ["softmax", "relu", "exp"]
    for r in reports:
        assert np.all(np.diff(r.losses) < 1e-4)
        np.testing.assert_allclose(r.losses[r.steps[:5]], r.predicted[:5], rtol=0.05)
        assert r.network_accuracy > 0.9
        assert r.kernel_accuracy > 0.9
        assert r.distances[-1] < r.distances[0]
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "λ_min" in out
    assert "test accuracy" in out


def test_help_explains_the_options(capsys):
    with pytest.raises(SystemExit):
        load("quickstart").main(["--help"])
    assert "--small" in capsys.readouterr().out


def test_every_example_has_a_test():
    assert {p.stem for p in EXAMPLES.glob("*.py")} == {"quickstart"}

"""Every example runs at small size and finds what theory promises."""

import importlib.util
from pathlib import Path
from types import ModuleType

import _common
import numpy as np
import pytest

NAMES = (
    "quickstart",
    "kernel_regression",
    "deep_limits",
    "deep_digits",
    "resnet_softmax",
    "in_context",
    "newton",
    "natural_gradient",
    "classify_digits",
    "own_network",
    "feature_learning",
    "perturbation",
    "certify",
    "width",
    "diffusion_mixture",
    "diffusion_digits",
    "diffusion_tabular",
)
EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
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


@pytest.mark.slow
@pytest.mark.optimised
def test_kernel_regression(tmp_path, capsys):
    reports = load("kernel_regression").main(["--small", "--output", str(tmp_path / "picture.png")])
    assert [r.name for r in reports] == ["softmax", "relu", "linear"]
    softmax, _, linear = reports
    assert softmax.accuracies[-1] > max(0.8, linear.accuracies[-1])
    for r in reports:
        assert r.accuracies[-1] > r.accuracies[0]
        assert 0 < r.dimensions[-1] < 200
        # Equal diagonals, so the traces are known: n e for softmax, n/2 for ReLU, n for the linear
        # kernel.
        trace = 200 * {"softmax": np.e, "relu": 0.5, "linear": 1.0}[r.name]
        np.testing.assert_allclose(r.spectrum.sum(), trace, rtol=1e-3)
        assert r.seen[-1] > 0.99
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_deep_limits(tmp_path, capsys):
    diagrams, found = load("deep_limits").main(
        ["--small", "--output", str(tmp_path / "picture.png")]
    )
    softmax, relu, erf = (d.found for d in diagrams)
    assert np.all(softmax.slope[softmax.exists] <= 1)
    assert not softmax.exists.all()
    np.testing.assert_array_equal(np.asarray(relu.exists).all(axis=0), diagrams[1].weight < 2)
    assert np.max(erf.slope) > 1
    for d in found:
        assert d.ntk[-1] < d.ntk[0]
        assert d.nngp[-1] < d.nngp[0]
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "softmax: ordered on" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_deep_digits(tmp_path, capsys):
    rows = load("deep_digits").main(["--small", "--output", str(tmp_path / "picture.png")])
    assert len(rows) == 2 * 2 * 2 * 2  # networks, layers, kernels, depths
    assert min(r.accuracy for r in rows) > 0.85
    shallow, deep = (
        r for r in rows if (r.network, r.convolutional, r.kernel) == ("softmax", False, "nngp")
    )
    # q = 0.25 e^q + 0.05 has its root at 0.4370: two more layers leave less than, but about (0.25
    # e^q)² of the contrast.
    assert 0.6 * 0.387**2 < deep.contrast / shallow.contrast < 0.387**2
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_resnet_softmax(tmp_path, capsys):
    found, convex = load("resnet_softmax").main(
        ["--small", "--output", str(tmp_path / "picture.png")]
    )
    for f in found:
        assert np.all(np.diff(f.losses) <= 0)
        assert f.spectrum[0] > 0  # a minimum
        np.testing.assert_allclose(f.diagonal.sum() + f.low_rank.sum(), f.spectrum.sum(), rtol=1e-8)
        assert np.sum(np.abs(f.low_rank) > 1e-12 * f.spectrum[-1]) <= 2
    for c in convex:
        assert np.all(np.diff(c.smallest) >= 0)
        assert c.largest_convex < c.promised
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "proved to be convex" in capsys.readouterr().out


@pytest.mark.optimised
@pytest.mark.slow
def test_in_context(tmp_path, capsys):
    report = load("in_context").main(["--small", "--output", str(tmp_path / "picture.png")])
    assert np.all(np.diff(report.losses) <= 0)
    assert report.accuracies["learned"][-1] > max(0.6, report.accuracies["learned"][0])
    np.testing.assert_allclose(report.attention["learned"].sum(axis=1), 1, rtol=1e-6)
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "share that is right" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_newton(tmp_path, capsys):
    runs = load("newton").main(["--small", "--output", str(tmp_path / "picture.png")])
    for r in runs[2:]:
        assert r.gradients[-1] <= 1e-9
        assert len(r.gradients) < 40
        np.testing.assert_allclose(r.loss, runs[1].loss, rtol=1e-6)
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "passes over A" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_natural_gradient(tmp_path, capsys):
    runs = load("natural_gradient").main(["--small", "--output", str(tmp_path / "picture.png")])
    assert len(runs) == 9
    for r in runs[::3]:
        assert r.losses[-1] < 1e-8
        assert len(r.losses) < 15
    for r in [*runs[1::3], *runs[2::3]]:
        assert r.losses[-1] > 1e-8
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "steps to" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_classify_digits(tmp_path, capsys):
    report = load("classify_digits").main(["--small", "--output", str(tmp_path / "picture.png")])
    ours, theirs = report.rows[:2]
    # One problem, solved twice: as far as scikit-learn's tolerance goes.
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=2e-3)
    for row in report.rows:
        assert row.accuracy > 0.75
        np.testing.assert_allclose(row.probabilities.sum(axis=1), 1, atol=1e-5)
    newton, adam = report.losses.values()
    assert len(newton) <= 16
    assert newton[-1] <= 1e-3 * newton[0]
    assert newton[-1] < adam[-1]
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "calibration error" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_own_network(tmp_path, capsys):
    reports = load("own_network").main(["--small", "--output", str(tmp_path / "picture.png")])
    for report in reports:
        np.testing.assert_allclose(report.measured, report.predicted, rtol=0.1)
        assert report.measured[-1] < report.measured[0]
        assert (report.probabilities.argmax(axis=1) == report.labels).mean() > 0.5
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "largest eigenvalue" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_feature_learning(tmp_path, capsys):
    curves = load("feature_learning").main(["--small", "--output", str(tmp_path / "picture.png")])
    by = {(c.panel, c.family, c.kind): c for c in curves}
    for family in ("softmax", "relu"):
        assert by["width", family, "antisymmetric start"].slope < -0.3
        assert by["scale", family, "antisymmetric start"].slope < -0.6
        for name in ("single index", "hierarchical"):
            assert np.all(np.diff(by["alignment", family, name].values) > 0)
            assert by[name, family, name].values.min() < by[name, family, name].extra["random"]
        error, bound = (by["risk", family, kind].values for kind in ("test error", "bound"))
        assert np.all(error < bound)
        assert by["time", family, ""].extra["error"] < by["time", family, ""].values[0] / 4
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "distances, one step, noise, stopping, risk" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_perturbation(tmp_path, capsys):
    sweeps = load("perturbation").main(["--small", "--output", str(tmp_path / "picture.png")])
    for r in [row for rows in sweeps.values() for row in rows]:
        assert r.random <= r.adversarial <= r.ours
        assert r.adversarial <= r.paper
    at = {(r.family, r.sigma): r.adversarial for r in sweeps["sigma"]}
    for sigma in (0.1, 2.0):  # normalisation helps at both ends
        assert at["softmax", sigma] < 0.2 * at["exp", sigma]
    softmax, relu = (
        [r.random for r in sweeps["radius"] if r.family == f] for f in ("softmax", "relu")
    )
    np.testing.assert_allclose(softmax[1] / softmax[0], 10, rtol=0.1)  # smooth
    assert relu[2] < 5 * relu[1]  # kinks: like √R
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "our proof" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_the_options(name, capsys):
    with pytest.raises(SystemExit):
        load(name).main(["--help"])
    assert "--small" in capsys.readouterr().out


def test_the_cache_is_switched_on_when_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr("softntk.compilation_cache", lambda: calls.append("on"))
    parser = _common.make_parser("example.py", "What it does.", small="seconds")
    assert not parser.parse_args([]).small
    assert calls == []
    parser.parse_args(["--cache"])
    assert calls == ["on"]


def test_every_example_has_a_test():
    assert {p.stem for p in EXAMPLES.glob("[a-z]*.py")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.optimised
def test_certify(tmp_path, capsys):
    proofs, bars = load("certify").main(["--small", "--output", str(tmp_path / "picture.png")])
    assert [p.family for p in proofs] == ["softmax", "res_softmax", "exp"]
    for p in proofs:
        assert p.obeyed
        assert p.squares[-1] < p.squares[0]
        assert p.found.width < 3000
    held = [b for b in bars if b.ball.holds]
    assert len(held) >= 4
    assert all(b.distance <= b.ball.error for b in held)
    assert held[-1].ball.error < 1e-9
    assert "slope of relu jumps" in capsys.readouterr().out
    assert (tmp_path / "picture.png").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.optimised
def test_width(tmp_path, capsys):
    reports = load("width").main(["--small", "--output", str(tmp_path / "picture.png")])
    assert [r.family for r in reports] == ["softmax", "relu", "exp"]
    for r in reports:
        mean, band = r.slope("concentration")
        assert abs(mean + 0.5) < 0.15 + 2 * band
        assert r.smallest[-1].min() > r.smallest[0].min()
        assert r.success[-1].all()
    assert "slopes over the width" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_diffusion_mixture(tmp_path, capsys):
    estimates, stopped, coupled, found = load("diffusion_mixture").main(
        ["--small", "--output", str(tmp_path / "picture.png")]
    )
    network, kernel = estimates
    assert network.errors.mean() < 0.2
    assert kernel.errors.mean() < 0.05
    assert kernel.distance < 3
    constants = [e.losses[0] - e.losses[1] for e in estimates]
    assert abs(constants[0] - constants[1]) < 0.01 * constants[0]
    assert stopped.errors[-1] > 3 * stopped.errors.min()  # overfitted
    assert stopped.chosen["holdout"][1] < 1.5 * stopped.errors.min()
    assert max(d[-1] for d in coupled.distances.values()) < 0.1
    assert found[2][-1] < 0.05
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "stopping by rademacher" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_diffusion_digits(tmp_path, capsys):
    reports = load("diffusion_digits").main(["--small", "--output", str(tmp_path / "picture.png")])
    real, network, gaussian, density = reports
    assert network.energy < gaussian.energy < density.energy
    assert gaussian.sure < network.sure < real.sure
    assert real.nearest < network.nearest < gaussian.nearest
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "kernel density" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.optimised
def test_diffusion_tabular(tmp_path, capsys):
    reports = load("diffusion_tabular").main(["--small", "--output", str(tmp_path / "picture.png")])
    real, network, gaussian = reports
    assert real.correlation_error < network.correlation_error < gaussian.correlation_error
    assert real.origin > network.origin > gaussian.origin
    assert max(network.distances.values()) < 0.15
    assert network.late > 0.8
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    assert "airport" in capsys.readouterr().out

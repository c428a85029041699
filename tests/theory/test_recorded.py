"""Numbers of bounds, certificates and ledger statements on fixed instances, as recorded when they were seen to be right.

That they bound what they should is the subject of the other tests, which a looser bound would pass as well. These notice it:
every constant, sign and index of a bound shows in its value. ``python tests/theory/test_recorded.py`` records them again.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softntk as sn
from softntk.networks import Parameters
from softntk.theory import _ledger
from softntk.theory._local_bound import LocalBound

PATH = Path(__file__).with_name("recorded.json")
# References of statements that draw with jax.random, whose streams may change, or take seconds.
NOT_MEASURED = ("[ours] perturbed kernel", "[S] lemma: sparsifier")
# Values that are differences of nearly equal numbers, or nothing but rounding.
ROUNDED = {"[G] one step: C₂": 0.1, "[S] lemma: one Newton step": 0.1, "[S] theorem: iterations": np.inf}


def check_sum(case: dict[str, Any]) -> float:
    """Return one number that every part of an instance enters."""
    parts = [np.ravel(np.asarray(value, float)) for name, value in sorted(case.items()) if name != "seed"]
    weights = [np.cos(np.arange(part.size) + index) for index, part in enumerate(parts)]
    return float(sum(weight @ part for weight, part in zip(weights, parts, strict=True)))


def statement_numbers(statement, seed: int) -> list[float | None]:
    """Return the check sum of the first instance that fulfils the premises, its bound and its value."""
    rng = np.random.default_rng(seed)
    measured = not (statement.equality or statement.reference in NOT_MEASURED)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for _ in range(60):
            case = statement.sample(rng)
            instance = statement.check(case) if measured else None
            if instance is not None or not measured:
                break
    numbers = [instance.bound, instance.value] if instance is not None else [None, None]
    return [check_sum(case), *numbers]


def weights(seed: int, d: int, m: int, k: int, sigma: float, pairs: bool, bias: bool) -> Parameters:
    rng = np.random.default_rng(seed)
    half = m // 2 if pairs else m
    hidden = sigma * rng.normal(size=(d, half))
    readout = rng.choice([-1.0, 1.0], size=(half, k))
    shift = sigma * rng.normal(size=half) if bias else None
    if pairs:
        hidden = np.concatenate([hidden, hidden], axis=1)
        readout = np.concatenate([readout, -readout])
        shift = None if shift is None else np.concatenate([shift, shift])
    with jax.enable_x64(True):
        bias_leaf = None if shift is None else jnp.asarray(shift)
        return Parameters(hidden=jnp.asarray(hidden), readout=jnp.asarray(readout), bias=bias_leaf)


CONVERGENCE = {
    # family, k, width, parameterization, bias, pairs, size of the residual
    "softmax": ("softmax", 1, 1200, "ntk", False, True, 1e-4),
    "softmax, everything": ("softmax", 2, 901, "paper", True, False, 0.05),
    "res_softmax": ("res_softmax", 1, 1200, "ntk", False, True, 4e-4),
    "res_softmax, everything": ("res_softmax", 2, 901, "paper", True, False, 0.01),
    "exp": ("exp", 2, 600, "ntk", True, False, 3e-3),
    "too far": ("softmax", 1, 200, "ntk", False, True, 0.5),
}


def convergence_numbers(case: str) -> list[float]:
    family, k, m, parameterization, bias, pairs, size = CONVERGENCE[case]
    net = sn.networks.two_layer(family, width=m, out_dim=k, bias=bias, antisymmetric=pairs, parameterization=parameterization)
    params = weights(1, 3, m, k, 0.4, pairs, bias)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 3)) / np.sqrt(3)
    with jax.enable_x64(True):
        y = np.asarray(net.apply_fn(params, jnp.asarray(x))) + size * rng.normal(size=(3, k))
    found = sn.theory.certify_convergence(net, params, x, y)
    names = ("learning_rate", "rate", "flow_rate", "smallest_singular_value", "final_singular_value")
    names = (*names, "largest_singular_value", "residual_norm", "progress")
    numbers = [float(getattr(found, name)) for name in names]
    return [float(found.holds), *numbers, found.radius if found.holds else 0.0]


MINIMA = (
    "exp normalized",
    "exp rescaled",
    "exp plain",
    "res_exp normalized",
    "cosh normalized",
    "sinh rescaled",
    "identity plain",
)


def regression(case: str) -> sn.regression.Problem:
    activation, form = case.split()
    A = np.random.default_rng(3).normal(size=(7, 2)) / 2
    u = np.asarray(sn.activations.get(activation).u(jnp.asarray(A @ np.array([0.3, -0.2]))))
    b = {"normalized": u / u.sum(), "rescaled": np.full(7, 1 / 7), "plain": u}[form]
    return sn.regression.problem(A, b, activation, form, 0.5)


def minimum_numbers(case: str, best: list[float]) -> list[float]:
    with jax.enable_x64(True):
        found = sn.theory.certify_minimum(regression(case), np.array(best) + 1e-3 * np.array([1.0, -2.0]))
    numbers = [found.radius, found.convex_radius, found.error, found.strength, found.kantorovich]
    return [float(found.holds), *numbers, *found.bars.tolist()]


LOCAL = {
    "softmax": ("exp", True, False, False, 2),
    "softmax, all trained": ("exp", True, True, True, 1),
    "res_softmax": ("res_exp", True, True, False, 2),
    "relu": ("relu", False, False, True, 1),
    "cosh": ("cosh", False, True, True, 2),
    "cosh normalized": ("cosh", True, False, False, 1),
    "sinh": ("sinh", False, False, True, 1),
    "erf": ("erf", False, True, True, 2),
    "identity": ("identity", False, False, True, 1),
}


def local_numbers(case: str) -> list[float]:
    activation, normalize, bias, train_readout, k = LOCAL[case]
    options = {"activation": activation, "normalize": normalize, "bias": bias, "train_readout": train_readout}
    net = sn.networks.two_layer(width=11, out_dim=k, antisymmetric=False, parameterization="paper", **options)
    params = weights(4, 3, 11, k, 0.4, False, bias)
    x = np.random.default_rng(5).normal(size=(3, 3)) / np.sqrt(3)
    with jax.enable_x64(True):
        bound = LocalBound(net.architecture, params, x)
        return [norm for R in (1e-3, 0.1, 3.0) for norm in bound(R)]


STATEMENTS = {statement.reference: statement for statement in _ledger.STATEMENTS}
RECORDED = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}


def agree(numbers, recorded, rtol=1e-6):
    assert [number is None for number in numbers] == [number is None for number in recorded]
    pairs = [(n, r) for n, r in zip(numbers, recorded, strict=True) if n is not None]
    np.testing.assert_allclose([n for n, _ in pairs], [r for _, r in pairs], rtol=rtol, atol=0)


@pytest.mark.parametrize("reference", STATEMENTS)
def test_statements(reference):
    for seed in (7, 8):
        numbers = statement_numbers(STATEMENTS[reference], seed)
        recorded = RECORDED["statements"][f"{reference} {seed}"]
        agree(numbers[:2], recorded[:2])
        if reference not in ROUNDED:
            agree(numbers[2:], recorded[2:], rtol=1e-4)
        elif np.isfinite(ROUNDED[reference]):
            agree(numbers[2:], recorded[2:], rtol=ROUNDED[reference])


@pytest.mark.parametrize("case", CONVERGENCE)
def test_convergence(case, x64):
    agree(convergence_numbers(case), RECORDED["convergence"][case])


@pytest.mark.parametrize("case", MINIMA)
def test_minima(case):
    agree(minimum_numbers(case, RECORDED["minimisers"][case]), RECORDED["minima"][case], rtol=1e-5)


@pytest.mark.parametrize("case", LOCAL)
def test_local_bounds(case):
    agree(local_numbers(case), RECORDED["local"][case])


def record() -> None:
    with jax.enable_x64(True):
        best = {case: np.asarray(sn.solvers.minimise(regression(case), jnp.zeros(2)).value).tolist() for case in MINIMA}
    recorded = {
        "statements": {f"{name} {seed}": statement_numbers(one, seed) for name, one in STATEMENTS.items() for seed in (7, 8)},
        "convergence": {case: convergence_numbers(case) for case in CONVERGENCE},
        "minimisers": best,
        "minima": {case: minimum_numbers(case, best[case]) for case in MINIMA},
        "local": {case: local_numbers(case) for case in LOCAL},
    }
    PATH.write_text(json.dumps(recorded, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()

"""The fuzzer in CI: every public name has a target, and a seeded sample of cases has no findings."""

import collections
import inspect
import re
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest

import softntk
from fuzz.cases import TARGETS, make_case, run_case
from fuzz.draw import Draw
from fuzz.surface import public_surface, surface_lines
from fuzz.targets import NEEDS_NONE
from fuzz.wrong_values import REFUSED, wrong_values

SEED = 18
CASES_A_TARGET = 10
"""In CI; times the number of targets about two thousand cases."""
SHARE_WRONG = 0.98
"""Wrong calls end before anything compiles, valid ones do not: ``run.py`` tries more of these."""


@pytest.fixture(autouse=True)
def _as_users_call() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_every_public_name_has_a_target():
    missing = sorted(set(public_surface()) - set(TARGETS) - set(NEEDS_NONE))
    assert not missing, (
        f"these public names need a target in tests/fuzz/targets_*.py, or a reason in NEEDS_NONE: {missing}"
    )


def test_the_surface_can_be_compared():
    """A line for each name, the same in every process, with what a default or an alias is."""
    lines = surface_lines()
    assert lines == sorted(set(lines))
    assert not any("0x" in line for line in lines)
    named = {re.split(r"[^\w.]", line)[0] for line in lines}
    assert named >= set(public_surface())
    assert any(re.match(r"ntk\.solve\(.*max_steps: int = \d+", line) for line in lines)
    assert set(lines) >= {
        "diffusion.metrics.mmd = diffusion.mmd",
        "solvers.NewtonState.damping: property",
        "solution.Result.SUCCESSFUL = 0",
        "theory.bounds.FAMILIES: tuple",
    }


def test_every_target_and_every_reason_is_of_a_public_name():
    beyond = {
        name for name in TARGETS if name.startswith("networks.Network.")
    }  # fields that are functions
    named = {name for name in set(TARGETS) - beyond if not _is_reachable(name)}
    stale = sorted(named - set(public_surface()))
    assert not stale, f"no public names: {stale}"
    assert not set(TARGETS) & set(NEEDS_NONE)


def _is_reachable(name: str) -> bool:
    owner = softntk
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner is not None


def test_every_argument_has_a_kind():
    """But for those that hold the function itself and what a target says it leaves out."""
    left_out = {"self", "options", "args", "name", "activation"}
    for name, target in TARGETS.items():
        function = public_surface().get(name)
        if function is None:
            continue
        missing = set(inspect.signature(function).parameters) - set(target.kinds) - left_out
        assert not missing, f"{name}: {missing} without a kind"


def test_a_case_follows_from_its_seed_and_index():
    targets = [TARGETS[name] for name in ("ntk.predict_gd", "networks.two_layer")]
    for index in range(20):
        first, second = (make_case(targets, SEED, index) for _ in range(2))
        assert first.target is second.target
        assert first.wrong == second.wrong
        assert repr(first.target.make(first.draw).arguments) == repr(
            second.target.make(second.draw).arguments
        )


def test_wrong_values_are_wrong():
    """At least half of what is tried must be refused: the fuzzer would see a function that accepts
    everything.
    """
    draw = Draw(np.random.default_rng(0), mild=True)
    for kind, value in (
        ("rows", np.ones((3, 2))),
        ("positive", 1.0),
        ("count", 2),
        ("flag", True),
        ("choice", "exp"),
    ):
        options = wrong_values(kind, value, draw)
        assert sum(proper is REFUSED for _, _, proper in options) > len(options) / 2


COSTLY_ARGUMENTS = ("diffusion.Denoiser.__call__", "theory.Perturbation.of")
"""Methods of what takes long to make."""


@pytest.mark.parametrize("part", range(8))
def test_no_findings(part):
    names = sorted(set(TARGETS) - set(COSTLY_ARGUMENTS))[part::8]
    targets = [TARGETS[name] for name in names]
    findings = [
        run_case(make_case(targets, SEED, index, share_wrong=SHARE_WRONG, few=True))
        for index in range(CASES_A_TARGET * len(targets))
    ]
    found = [finding for finding in findings if finding]
    kinds = collections.Counter((finding.target, finding.kind) for finding in found)
    first = "\n".join(
        f"{finding.target} #{finding.index} {finding.kind}: {finding.text}"
        for finding in found[:10]
    )
    assert not found, f"{len(found)} findings, {dict(kinds)}; targets {names}:\n{first}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, target in TARGETS.items() if target.slow))
def test_valid_calls_of_what_compiles_for_long(name):
    found = [
        run_case(make_case([TARGETS[name]], SEED, index, slow=True, share_wrong=0))
        for index in range(4)
    ]
    assert not any(found), [finding for finding in found if finding]

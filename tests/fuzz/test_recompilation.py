"""The second call of every public function, with other numbers of the same shapes, compiles nothing."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxtyping
import numpy as np
import pytest
from helpers import slow_except

import fuzz.targets  # noqa: F401  (registers the targets)
from fuzz.cases import TARGETS, Call, Target
from fuzz.draw import Draw
from softntk.solution import NumericalError

COMPILES_AGAIN: dict[str, str] = {
    "ntk.empirical": "a readout of ±1 has a program of its own; here the second readout has none",
    "theory.lazy.distances": "by ntk.empirical, for the same reason",
}
"""Public functions whose second call compiles, and why."""

PARTS = 4
"""Groups of functions whose compiled programs are released one after the other."""


@pytest.fixture(autouse=True)
def _as_users_call() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _scaled(leaf: Any) -> Any:
    """The same array with other numbers; what is no array of real numbers stays."""
    is_array = isinstance(leaf, np.ndarray | jax.Array) and np.ndim(leaf) > 0
    if is_array and jax.numpy.issubdtype(leaf.dtype, np.floating):
        return leaf * leaf.dtype.type(1 + 2**-7)
    return leaf


def _make_call(target: Target, *, other_numbers: bool) -> Call:
    """The call of a target with everything made anew, the same in all but its numbers."""
    call = target.make(Draw(np.random.default_rng(7), mild=True))
    if not other_numbers:
        return call
    arguments = {name: jax.tree.map(_scaled, value) for name, value in call.arguments.items()}
    return call._replace(arguments=arguments)


def _run(function: Callable, call: Call) -> bool:
    """Call a function; return whether it takes these numbers."""
    try:
        jax.block_until_ready(jax.tree.leaves(function(**call.arguments)))
    except (ValueError, NumericalError):
        return False
    return True


def _programs_of_second_call(target: Target, compilations: list[str]) -> int:
    """Count the programs that a second call compiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = _make_call(target, other_numbers=False)
        assert _run(target.function, first), target.name
        # Arguments are made before the count: what a user compiles for them is the user's.
        for other_numbers in (True, False):
            second = _make_call(target, other_numbers=other_numbers)
            compilations.clear()
            if _run(target.function, second):
                return len(compilations)
    raise AssertionError(f"{target.name} takes its own arguments only once")


FAST = [name for name, target in TARGETS.items() if not target.slow]
GROUPS = [
    *(("fast", part) for part in range(PARTS)),
    *(("slow", part) for part in range(PARTS)),
]


def test_exceptions_are_of_public_functions():
    assert set(COMPILES_AGAIN) <= set(TARGETS)


@pytest.mark.parametrize(
    ("speed", "part"), slow_except(GROUPS, *(group for group in GROUPS if group[0] == "fast"))
)
def test_second_calls_compile_nothing(compilations, speed, part):
    names = FAST if speed == "fast" else [name for name in TARGETS if name not in FAST]
    found = {}
    for name in names[part::PARTS]:
        count = _programs_of_second_call(TARGETS[name], compilations)
        if count and name not in COMPILES_AGAIN:
            found[name] = count
    assert not found
    jax.clear_caches()

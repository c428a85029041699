"""Targets and cases: how a public function is called, what its answer must be, and what a wrong
call must say.

A case is (seed, index): the target, the precision, the arguments and what is wrong with them follow
from the two numbers.
"""

import dataclasses
import itertools
import re
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import softntk
from fuzz.draw import SETTINGS, Draw
from fuzz.oracles import finite
from fuzz.words import PACKAGE_FOLDER, as_numbers, describe, error_text, short
from fuzz.wrong_values import FINITE, REFUSED, wrong_values
from softntk.solution import NumericalError

MAX_MESSAGE_LENGTH = 600
KINDS = (
    "deep traceback",
    "unnamed",
    "accepted",
    "crash",
    "NaN",
    "not converted",
    "wrong",
    "refused",
    "long message",
)


class Call(NamedTuple):
    """A valid call.

    Attributes:
        arguments: by name, in the order of the signature.
        check: of the result: None, or what is wrong with it. Without one, NaN is wrong.
        refusals: a pattern of messages by which this input may be refused, as documented; "" for
            none.
    """

    arguments: Mapping[str, Any]
    check: Callable[[Any], str | None] | None = None
    refusals: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """A public function and how to call it.

    Attributes:
        name: as the surface has it.
        make: draws a valid call.
        kinds: of the arguments, by name; see ``wrong_values``.
        function: what is called, with the arguments by keyword.
        slow: compiles for long: valid calls only on request, and nothing that is converted.
        may_fail: a NumericalError is one of the answers.
        laws_only: no independent oracle.
    """

    name: str
    make: Callable[[Draw], Call]
    kinds: Mapping[str, str]
    function: Callable
    slow: bool = False
    may_fail: bool = False
    laws_only: bool = False


class Finding(NamedTuple):
    """What was wrong with the answer to a case."""

    target: str
    index: int
    kind: str
    text: str


class Case(NamedTuple):
    """One call of a target.

    Attributes:
        target: what is called.
        index: of the case.
        draw: the randomness of it, and its precision.
        wrong: whether an argument is to be wrong.
    """

    target: Target
    index: int
    draw: Draw
    wrong: bool


TARGETS: dict[str, Target] = {}


def target(
    public_name: str,
    function: Callable | None = None,
    /,
    *,
    slow: bool = False,
    may_fail: bool = False,
    laws_only: bool = False,
    **kinds: str,
) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    """Return a decorator that makes the target of a public name from a function that draws its
    valid calls.
    """

    def register(make: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        called = function or _find(public_name)
        TARGETS[public_name] = Target(public_name, make, kinds, called, slow, may_fail, laws_only)
        return make

    return register


def _find(name: str) -> Callable:
    *path, last = name.split(".")
    if path[-1][0].islower():
        owner: Any = softntk
        for part in path:
            owner = getattr(owner, part)
        return getattr(owner, last)

    def method(self: Any, **arguments: Any) -> Any:
        return getattr(self, last)(**arguments)

    return method


def make_case(
    targets: list[Target],
    seed: int,
    index: int,
    slow: bool = False,
    share_wrong: float = 0.65,
    few: bool = False,
) -> Case:
    """Return the case of a seed and an index.

    Args:
        targets: taken in turns.
        seed: of everything.
        index: of the case.
        slow: valid calls of what compiles for long, too.
        share_wrong: of the calls.
        few: one precision and one shape for each target, so that little is compiled.
    """
    position = index % len(targets)
    chosen = targets[position]
    generator = np.random.default_rng([seed, index])
    wrong = bool(chosen.kinds) and (generator.random() < share_wrong or (chosen.slow and not slow))
    setting = position % len(SETTINGS) if few else None
    return Case(chosen, index, Draw(generator, mild=wrong, setting=setting), wrong)


def run_case(case: Case) -> Finding | None:
    """Return what is wrong with the answer to a case, or None."""
    with jax.enable_x64(case.draw.x64), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = _run_wrong if case.wrong else _run_valid
        result = run(case)
    if result is None:
        return None
    kind, text = result
    setting = f"{case.draw.dtype}{' in x64' if case.draw.x64 else ''}"
    return Finding(case.target.name, case.index, kind, f"[{setting}] {text}")


# --- valid calls
# --------------------------------------------------------------------------------------------------


def _run_valid(case: Case) -> tuple[str, str] | None:
    call = case.target.make(case.draw)
    try:
        result = case.target.function(**call.arguments)
        jax.block_until_ready(jax.tree.leaves(result))
    except NumericalError as error:
        return (
            None
            if case.target.may_fail
            else ("refused", f"{describe(call.arguments)} → {error_text(error)}")
        )
    except Exception as error:
        if call.refusals and isinstance(error, ValueError) and re.search(call.refusals, str(error)):
            return None
        kind = "refused" if isinstance(error, ValueError | TypeError) else "crash"
        return kind, f"{describe(call.arguments)} → {error_text(error)}"
    try:
        message = call.check(result) if call.check else never_nan(result)
    except Exception as error:  # what is done with the result fails
        return "crash", f"{describe(call.arguments)} → the check: {error_text(error)}"
    if message is None:
        return None
    return ("NaN" if "NaN" in message else "wrong"), f"{describe(call.arguments)} → {message}"


def never_nan(result: Any) -> str | None:
    """Refuse NaN in any leaf of a result."""
    for leaf in jax.tree.leaves(result):
        array = as_numbers(leaf)
        if array is not None and np.isnan(array).any():
            return f"NaN in {short(array)}"
    return None


# --- wrong calls
# --------------------------------------------------------------------------------------------------


def _run_wrong(case: Case) -> tuple[str, str] | None:
    chosen, draw = case.target, case.draw
    call = chosen.make(draw)
    names = list(chosen.kinds)
    arguments = dict(call.arguments)
    if draw.random() < 0.06 and len(arguments) > 1:
        return _run_swapped(chosen, draw, arguments)
    name = names[int(draw.integers(len(names)))]
    options = wrong_values(chosen.kinds[name], arguments.get(name), draw)
    if chosen.slow:
        options = [option for option in options if option[2] is REFUSED]
    if not options:
        return None
    label, wrong, proper = options[int(draw.integers(len(options)))]
    arguments[name] = wrong
    text = f"{name}={label}"
    try:
        result = chosen.function(**arguments)
        jax.block_until_ready(jax.tree.leaves(result))
    except Exception as error:
        # What does not fit another argument may be told by the name of that one.
        return judge_error(error, tuple(names) if label.startswith("of ") else (name,), text)
    if is_told(result):
        return None
    if proper is FINITE:
        message = finite(result)
        kind = "NaN" if message and "NaN" in message else "accepted"
        return (kind, f"{text} → {message}") if message else None
    if proper is REFUSED:
        return "accepted", f"{text} → {short(result)}"
    return _compare(chosen, arguments, name, proper, result, text)


def is_told(result: Any) -> bool:
    """Return whether a result says by its code that it is none."""
    code = getattr(result, "result", None)
    return getattr(result, "holds", None) is False or (
        code is not None and np.ndim(code) == 0 and int(code) != 0
    )


def _compare(
    chosen: Target, arguments: dict[str, Any], name: str, proper: Any, result: Any, text: str
) -> tuple[str, str] | None:
    message = never_nan(result)
    if message:
        return "NaN", f"{text} → {message}"
    try:
        expected = chosen.function(**{**arguments, name: proper})
    except Exception as error:
        return "refused", f"the proper value for {text} → {error_text(error)}"
    got, want = (
        [as_numbers(leaf) for leaf in jax.tree.leaves(tree)] for tree in (result, expected)
    )
    if len(got) != len(want):
        return (
            "not converted",
            f"{text} → another structure, {short(result)} instead of {short(expected)}",
        )
    for first, second in zip(got, want, strict=True):
        if first is None or second is None:
            continue
        if first.shape != second.shape:
            return "not converted", f"{text} → shape {first.shape} instead of {second.shape}"
        size = np.max(np.abs(second), initial=0, where=np.isfinite(second))
        if not np.allclose(first, second, rtol=2e-2, atol=2e-2 * size, equal_nan=True):
            return "not converted", f"{text} → {short(first)} instead of {short(second)}"
    return None


def _run_swapped(chosen: Target, draw: Draw, arguments: dict[str, Any]) -> tuple[str, str] | None:
    names = [name for name in arguments if name in chosen.kinds]
    pairs = [
        (first, second)
        for first, second in itertools.pairwise(names)
        if are_different(
            chosen.kinds[first], chosen.kinds[second], arguments[first], arguments[second]
        )
    ]
    if not pairs:
        return None
    first, second = pairs[int(draw.integers(len(pairs)))]
    arguments[first], arguments[second] = arguments[second], arguments[first]
    text = f"{first} and {second} swapped"
    try:
        result = chosen.function(**arguments)
        jax.block_until_ready(jax.tree.leaves(result))
    except Exception as error:
        return judge_error(error, (first, second), text)
    return "accepted", f"{text} → {short(result)}"


def are_different(kind: str, other: str, value: Any, another: Any) -> bool:
    """Return whether one argument in the place of the other is certainly wrong."""
    plain = {kind.rstrip("?"), other.rstrip("?")}
    if value is None or another is None or len(plain) == 1 or "callable" in plain:
        return False
    numbers = {
        "real",
        "positive",
        "nonnegative",
        "fraction",
        "count",
        "count0",
        "integers",
        "integers0",
        "numbers",
    }
    numbers |= {"momentum", "rate", "time", "above one", "integer"}
    return not (
        plain <= numbers
        or plain
        <= {
            "array",
            "weights",
            "through",
            "elements",
            "rows",
            "gram",
            "numbers",
            "positives",
            "nonnegatives",
        }
    )


def judge_error(error: Exception, names: tuple[str, ...], text: str) -> tuple[str, str] | None:
    """Return None for a short ValueError or TypeError of softntk that names the argument, and what
    is wrong otherwise.
    """
    message = str(error)
    said = f"{text} → {error_text(error)}"
    if not isinstance(error, ValueError | TypeError):
        return "crash", said
    if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE_FOLDER):
        return "deep traceback", said
    if len(message) >= MAX_MESSAGE_LENGTH:
        return "long message", said
    if not any(re.search(rf"\b{re.escape(name)}\b", message) for name in names):
        return "unnamed", said
    return None


def timed(case: Case) -> tuple[Finding | None, float]:
    """Return the finding of a case and the seconds that it took."""
    start = time.perf_counter()
    finding = run_case(case)
    return finding, time.perf_counter() - start

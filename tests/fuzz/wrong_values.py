"""Values of the wrong kind for an argument of each kind, and what the argument should have been,
where that is clear.

A kind is one of the names below; "?" behind it means that None is the default.

    rows, array, gram   floating-point numbers of a certain shape; positives, nonnegatives: with such entries;
                        times: the last, or none at all
    weights             a number or a vector, not negative
    elements            what an elementwise function takes: any shape, NaN and infinity go through
    through             an array of a certain shape, of which NaN and infinity go through
    integers            an array of integers; integers0: none negative
    numbers             a number or an array of any shape; real, positive, nonnegative, fraction: one number
    time, above one     one positive number, perhaps infinite; one above one
    count, count0       one integer, ≥ 1 or ≥ 0; integer: of any sign
    flag, choice, key, callable; names: one name or several; rule: a name or a number; rate: a number or a schedule
    net, apply          a network of softntk; or any function with parameters as well
    params, activation, object                              things of softntk
    momentum            a number in [0, 1)
    transform, loss, path       of optax; a problem or a function; a file
    keywords, zero                          further arguments; 0 or nothing
    three numbers, mean and covariance, path of weights     what they say
    text, dtype, shape, rows and columns, tree      a string, a precision, (-1, d), (n, d), a pytree of arrays
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fuzz.draw import Draw
from fuzz.wrong_arrays import FINITE as FINITE
from fuzz.wrong_arrays import REFUSED as REFUSED
from fuzz.wrong_arrays import (
    Option,
    array_options,
    elements_options,
    gram_options,
    integers0_options,
    integers_options,
    nonnegatives_options,
    positives_options,
    rows_options,
    through_options,
    weights_options,
)
from fuzz.wrong_networks import apply_options, net_options, params_options, params_through_options
from fuzz.wrong_structures import (
    keywords_options,
    moments_options,
    rows_and_columns_options,
    shape_options,
    three_numbers_options,
    tree_options,
    weights_path_options,
    zero_options,
)


def wrong_values(kind: str, value: Any, draw: Draw) -> list[Option]:
    """Return (description, wrong value, proper value or REFUSED) for an argument whose right value
    is given.
    """
    optional = kind.endswith("?")
    kind = kind.rstrip("?")
    options = _OPTIONS[kind](value, draw)
    options += [
        (f"{junk!r}", junk, REFUSED)
        for junk in ("abc", 1j, {}, {"a": 1.0})
        if not _is_fine(kind, junk)
    ]
    options.append(("object()", object(), REFUSED))
    if not optional:
        options.append(("None", None, REFUSED))
    return options


def _is_fine(kind: str, junk: Any) -> bool:
    return (
        (kind in ("text", "path") and isinstance(junk, str))
        or (kind == "tree" and isinstance(junk, dict))
        or (kind == "keywords" and junk == {})
    )


# --- numbers
# ------------------------------------------------------------------------------------------------------


def _real(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [
        ("NaN", float("nan"), REFUSED),
        ("'1.0'", "1.0", REFUSED),
        ("True", True, REFUSED),
        ("a Boolean array", jnp.asarray(True), REFUSED),
        ("[1.0]", [1.0], REFUSED),
        ("an array of two", jnp.ones(2), REFUSED),
        ("a complex array", jnp.asarray(1 + 1j), REFUSED),
        ("a string array", np.asarray("a"), REFUSED),
        ("an object array", np.asarray(None), REFUSED),
        ("a function", abs, REFUSED),
        ("NaN in an array", jnp.asarray(jnp.nan), REFUSED),
    ]
    if isinstance(value, int | float):
        number = float(value)
        options += [
            ("a NumPy number", np.float32(number), number),
            ("a JAX number", jnp.asarray(number, jnp.float32), number),
        ]
    return options


def _finite(value: Any, draw: Draw) -> list[Option]:
    return [
        *_real(value, draw),
        ("infinity", float("inf"), REFUSED),
        ("-infinity", -float("inf"), REFUSED),
    ]


def _nonnegative(value: Any, draw: Draw) -> list[Option]:
    return [
        *_finite(value, draw),
        ("-1.0", -1.0, REFUSED),
        ("a negative array", jnp.asarray(-1.0), REFUSED),
    ]


def _positive(value: Any, draw: Draw) -> list[Option]:
    return [
        *_nonnegative(value, draw),
        ("0.0", 0.0, REFUSED),
        ("0", 0, REFUSED),
        ("False", False, REFUSED),
    ]


def _rate(value: Any, draw: Draw) -> list[Option]:
    return [option for option in _positive(value, draw) if option[0] != "a function"]


def _fraction(value: Any, draw: Draw) -> list[Option]:
    return [*_positive(value, draw), ("1.5", 1.5, REFUSED), ("1.0", 1.0, REFUSED)]


def _time(value: Any, draw: Draw) -> list[Option]:
    return [option for option in _positive(value, draw) if option[0] != "infinity"]


def _above_one(value: Any, draw: Draw) -> list[Option]:
    return [*_positive(value, draw), ("1.0", 1.0, REFUSED), ("0.5", 0.5, REFUSED)]


def _numbers(value: Any, draw: Draw) -> list[Option]:
    return [
        ("NaN", float("nan"), REFUSED),
        ("NaN in an array", jnp.asarray([jnp.nan]), REFUSED),
        ("'1.0'", "1.0", REFUSED),
        ("True", True, REFUSED),
        ("Booleans", jnp.asarray([True]), REFUSED),
        ("complex numbers", jnp.asarray([1j]), REFUSED),
        ("strings", np.asarray(["a"]), REFUSED),
        ("ragged", [[1.0], [1.0, 2.0]], REFUSED),
        ("objects", np.asarray([None]), REFUSED),
    ]


def _count0(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [
        ("-1", -1, REFUSED),
        ("2.5", 2.5, REFUSED),
        ("2.0", 2.0, REFUSED),
        ("'2'", "2", REFUSED),
        ("True", True, REFUSED),
        ("[2]", [2], REFUSED),
        ("NaN", float("nan"), REFUSED),
        ("a floating-point array", jnp.asarray(2.0), REFUSED),
        ("an array of integers", jnp.asarray([2, 3]), REFUSED),
    ]
    if isinstance(value, int):
        options += [
            ("a NumPy integer", np.int64(value), value),
            ("a JAX integer", jnp.asarray(value), value),
        ]
    return options


def _integer(value: Any, draw: Draw) -> list[Option]:
    return [option for option in _count0(value, draw) if option[0] != "-1"]


def _count(value: Any, draw: Draw) -> list[Option]:
    return [*_count0(value, draw), ("0", 0, REFUSED), ("False", False, REFUSED)]


# --- the rest
# -----------------------------------------------------------------------------------------------------


def _flag(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [
        (f"{junk!r}", junk, REFUSED) for junk in (1, 0, "yes", "False", 2.0, [], jnp.ones(2))
    ]
    if isinstance(value, bool):
        options.append(("a NumPy Boolean", np.bool_(value), value))
    return options


def _choice(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [
        ("1", 1, REFUSED),
        ("a list", ["exp"], REFUSED),
        ("bytes", b"exp", REFUSED),
        ("''", "", REFUSED),
    ]
    if isinstance(value, str):
        options += [
            ("misspelt", value[:-1] + "zz", REFUSED),
            ("in capitals", value.upper(), REFUSED),
            ("in a list", [value], REFUSED),
            ("in a NumPy array", np.asarray([value]), REFUSED),
        ]
    return options


def _times(value: Any, draw: Draw) -> list[Option]:
    """Any number of them, none included."""
    return [option for option in nonnegatives_options(value, draw) if option[0] != "empty"]


def _rule(value: Any, draw: Draw) -> list[Option]:
    """A name, or a number."""
    return [option for option in _choice(value, draw) if option[0] != "1"]


def _names(value: Any, draw: Draw) -> list[Option]:
    return [option for option in _choice(value, draw) if not option[0].startswith("in a ")]


def _key(value: Any, draw: Draw) -> list[Option]:
    return [
        ("0", 0, REFUSED),
        ("1.5", 1.5, REFUSED),
        ("two keys", jax.random.split(jax.random.key(0)), REFUSED),
        ("two old keys", jax.random.split(jax.random.PRNGKey(0)), REFUSED),
        ("an array", jnp.zeros(2), REFUSED),
        ("three integers", jnp.zeros(3, jnp.uint32), REFUSED),
        ("a NumPy generator", np.random.default_rng(0), REFUSED),
        ("an old key", jax.random.PRNGKey(0), jax.random.key(0)),
    ]


def _callable(value: Any, draw: Draw) -> list[Option]:
    return [
        ("3", 3, REFUSED),
        ("an array", jnp.ones(2), REFUSED),
        ("a list", [len], REFUSED),
        ("False", False, REFUSED),
    ]


def _object(value: Any, draw: Draw) -> list[Option]:
    def own(x: Any) -> Any:
        return x

    return [
        ("'softmax'", "softmax", REFUSED),
        ("3", 3, REFUSED),
        ("1.5", 1.5, REFUSED),
        ("a list", [1.0, 2.0], REFUSED),
        ("a matrix", jnp.eye(3), REFUSED),
        ("a function", own, REFUSED),
        ("the type", type(value), REFUSED),
    ]


def _activation(value: Any, draw: Draw) -> list[Option]:
    return [*_choice("exp", draw), ("a function", np.exp, REFUSED), ("a type", dict, REFUSED)]


def _text(value: Any, draw: Draw) -> list[Option]:
    return [("1", 1, REFUSED), ("bytes", b"exp", REFUSED), ("a list", ["exp"], REFUSED)]


def _dtype(value: Any, draw: Draw) -> list[Option]:
    return [
        ("1", 1, REFUSED),
        ("'float'", "flaot32", REFUSED),
        ("integers", jnp.int32, REFUSED),
        ("complex", complex, REFUSED),
    ]


def _momentum(value: Any, draw: Draw) -> list[Option]:
    return [*_nonnegative(0.5, draw), ("1.0", 1.0, REFUSED)]


def _transform(value: Any, draw: Draw) -> list[Option]:
    return [
        ("'adam'", "adam", REFUSED),
        ("3", 3, REFUSED),
        ("0.1", 0.1, REFUSED),
        ("a function", abs, REFUSED),
        ("optax.adam itself", optax.adam, REFUSED),
        ("a list", [optax.adam(0.1)], REFUSED),
        ("()", (), REFUSED),
    ]


def _loss(value: Any, draw: Draw) -> list[Option]:
    return [
        ("'softmax'", "softmax", REFUSED),
        ("3", 3, REFUSED),
        ("a matrix", jnp.eye(3), REFUSED),
        ("a list", [1], REFUSED),
    ]


def _path(value: Any, draw: Draw) -> list[Option]:
    return [
        ("3", 3, REFUSED),
        ("a list", ["a"], REFUSED),
        ("1.5", 1.5, REFUSED),
        ("True", True, REFUSED),
    ]


# "abc" is a path: nothing is written by a call that is wrong otherwise, so that it is left out.
_OPTIONS: dict[str, Callable[[Any, Draw], list[Option]]] = {
    "rows": rows_options,
    "array": array_options,
    "gram": gram_options,
    "elements": elements_options,
    "through": through_options,
    "positives": positives_options,
    "nonnegatives": nonnegatives_options,
    "times": _times,
    "weights": weights_options,
    "integers": integers_options,
    "integers0": integers0_options,
    "numbers": _numbers,
    "real": _finite,
    "nonnegative": _nonnegative,
    "positive": _positive,
    "fraction": _fraction,
    "rate": _rate,
    "time": _time,
    "above one": _above_one,
    "integer": _integer,
    "count": _count,
    "count0": _count0,
    "flag": _flag,
    "choice": _choice,
    "names": _names,
    "rule": _rule,
    "key": _key,
    "callable": _callable,
    "net": net_options,
    "apply": apply_options,
    "params": params_options,
    "params through": params_through_options,
    "object": _object,
    "activation": _activation,
    "text": _text,
    "dtype": _dtype,
    "shape": shape_options,
    "tree": tree_options,
    "momentum": _momentum,
    "rows and columns": rows_and_columns_options,
    "transform": _transform,
    "loss": _loss,
    "path": _path,
    "keywords": keywords_options,
    "zero": zero_options,
    "three numbers": three_numbers_options,
    "mean and covariance": moments_options,
    "path of weights": weights_path_options,
}

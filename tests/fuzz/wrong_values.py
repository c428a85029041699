"""Values of the wrong kind for an argument of each kind, and what the argument should have been, where that is clear.

A kind is one of the names below; "?" behind it means that None is the default.

    rows, array, gram   floating-point numbers of a certain shape; positives, nonnegatives: with such entries
    weights             a number or a vector, not negative
    elements            what an elementwise function takes: any shape, NaN and infinity go through
    through             an array of a certain shape, of which NaN and infinity go through
    integers            an array of integers; integers0: none negative
    numbers             a number or an array of any shape; real, positive, nonnegative, fraction: one number
    time, above one     one positive number, perhaps infinite; one above one
    count, count0       one integer, ≥ 1 or ≥ 0; integer: of any sign
    flag, choice, key, callable; names: one name or several; rate: a number or a schedule
    net, apply          a network of softntk; or any function with parameters as well
    params, activation, object                              things of softntk
    momentum            a number in [0, 1)
    transform, loss, path       of optax; a problem or a function; a file
    text, dtype, shape, rows and columns, tree      a string, a precision, (-1, d), (n, d), a pytree of arrays
"""

import fractions
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

from fuzz.draw import Draw

REFUSED = object()
"""In the place of the proper value: there is none, the value must be refused."""

FINITE = object()
"""In the place of the proper value: the value is right, and must be refused or give something finite."""

Option = tuple[str, Any, Any]


def wrong_values(kind: str, value: Any, draw: Draw) -> list[Option]:
    """Return (description, wrong value, proper value or REFUSED) for an argument whose right value is given."""
    optional = kind.endswith("?")
    kind = kind.rstrip("?")
    options = _OPTIONS[kind](value, draw)
    options += [(f"{junk!r}", junk, REFUSED) for junk in ("abc", 1j, {}, {"a": 1.0}) if not _is_fine(kind, junk)]
    options.append(("object()", object(), REFUSED))
    if not optional:
        options.append(("None", None, REFUSED))
    return options


def _is_fine(kind: str, junk: Any) -> bool:
    return (kind in ("text", "path") and isinstance(junk, str)) or (kind == "tree" and isinstance(junk, dict))


# --- arrays -------------------------------------------------------------------------------------------------------


def _array(value: Any, draw: Draw) -> list[Option]:
    if value is None:
        return [("'1'", "1", REFUSED), ("[[1, 'a']]", [[1, "a"]], REFUSED)]
    x = np.asarray(value, np.float64)
    single = jnp.asarray(x, jnp.float32)
    options: list[Option] = [
        ("objects", np.array([object()] * x.size).reshape(x.shape), REFUSED),
        ("fractions", np.array([fractions.Fraction(1, 3)] * x.size).reshape(x.shape), jnp.full(x.shape, 1 / 3)),
        ("complex numbers", x + 1j, REFUSED),
        ("a complex JAX array", jnp.asarray(x + 1j), REFUSED),
        ("strings", x.astype(str), REFUSED),
        ("Booleans", x > 0, REFUSED),
        ("a Boolean JAX array", jnp.asarray(x > 0), REFUSED),
        ("bytes", b"abc", REFUSED),
        ("a function", np.sum, REFUSED),
        ("a type", float, REFUSED),
        ("dates", x.astype("datetime64[s]"), REFUSED),
        ("NaN", _with(x, np.nan), REFUSED),
        ("NaN in a JAX array", jnp.asarray(_with(x, np.nan), jnp.float32), REFUSED),
        ("-infinity", _with(x, -np.inf), REFUSED),
        ("1e300", _with(x, 1e300), FINITE),
        ("of one more axis", single[None], REFUSED),
        ("empty", single[:0] if x.ndim else np.zeros(0), REFUSED),
        ("nested lists", x.tolist(), x),
        ("NumPy float64", x, FINITE),
        ("half precision", jnp.asarray(x, jnp.float16), FINITE),
    ]
    if x.ndim:
        longer = np.concatenate([x, x[:1]]) if x.ndim else x
        options += [
            ("ragged", [[1.0, 2.0], [3.0]], REFUSED),
            ("one number", 1.5, REFUSED),
            ("a list of strings", ["a"] * len(x), REFUSED),
            ("a list of None", [None] * len(x), REFUSED),
            ("a list of mixed kinds", [*x.tolist()[:-1], "b"], REFUSED),
            ("of another length", jnp.asarray(longer, jnp.float32), None),
        ]
        if x.ndim == 2:
            options.append(("a SciPy matrix", scipy.sparse.csr_matrix(x), REFUSED))
        options += _frames(x)
    if x.ndim >= 2:
        options.append(("its first row", single[0], REFUSED))
    integers = np.arange(x.size).reshape(x.shape)
    options.append(("integers", integers, jnp.asarray(integers, jnp.float32)))
    return [option for option in options if option[2] is not None]


SHAPELESS = {"NaN", "NaN in a JAX array", "-infinity", "1e300", "of one more axis", "empty", "one number", "its first row"}


def _elements(value: Any, draw: Draw) -> list[Option]:
    return [option for option in _array(value, draw) if option[0] not in SHAPELESS]


def _through(value: Any, draw: Draw) -> list[Option]:
    return [option for option in _array(value, draw) if option[0] not in {"NaN", "NaN in a JAX array", "-infinity", "1e300"}]


def _frames(x: np.ndarray) -> list[Option]:
    try:
        import pandas
    except ImportError:
        return []
    if x.ndim > 2:
        return []
    frame = pandas.DataFrame(x) if x.ndim == 2 else pandas.Series(x)
    mixed = frame.astype(object)
    if x.ndim == 2:
        mixed.iloc[0, 0] = "a"
    else:
        mixed.iloc[0] = "a"
    return [("a pandas table", frame, x), ("a pandas table with strings", mixed, REFUSED)]


def _with(x: np.ndarray, entry: float) -> np.ndarray:
    x = np.array(x, np.float64)
    x.reshape(-1)[-1] = entry
    return x


def _rows(value: Any, draw: Draw) -> list[Option]:
    x = None if value is None else np.asarray(value, np.float64)
    options = _array(value, draw)
    if x is not None:
        wider = np.concatenate([x, x[:, :1]], axis=1)
        options.append(("of no columns", jnp.zeros((len(x), 0)), REFUSED))
        options.append(("of three axes", jnp.asarray(wider, jnp.float32)[:, :, None], REFUSED))
    return options


def _gram(value: Any, draw: Draw) -> list[Option]:
    options = _array(value, draw)
    if value is not None:
        x = np.asarray(value, np.float64)
        skew = x.copy()
        skew[0, -1] += 1 + np.abs(x).max()
        options.append(("not square", jnp.asarray(x[:, :-1], jnp.float32), REFUSED))
        if len(x) > 1:
            options.append(("not symmetric", jnp.asarray(skew, jnp.float32), REFUSED))
    return options


def _positives(value: Any, draw: Draw) -> list[Option]:
    options = _nonnegatives(value, draw)
    if value is not None:
        options.append(("a zero", jnp.asarray(_with(np.asarray(value), 0), jnp.float32), REFUSED))
    return options


def _nonnegatives(value: Any, draw: Draw) -> list[Option]:
    options = _array(value, draw)
    if value is not None:
        options.append(("a negative number", jnp.asarray(_with(np.asarray(value), -1.0), jnp.float32), REFUSED))
    return options


def _integers(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [("[1.5]", [1.5], REFUSED), ("one string", "1", REFUSED), ("a function", len, REFUSED)]
    if value is not None:
        x = np.asarray(value)
        options += [
            ("floating-point numbers", x.astype(float) + 0.5, REFUSED),
            ("strings", x.astype(str), REFUSED),
            ("Booleans", x > 0, REFUSED),
            ("complex numbers", x + 0j, REFUSED),
            ("objects", np.array([object()] * x.size).reshape(x.shape), REFUSED),
            ("of one more axis", x[None], REFUSED),
            ("beyond int64", [2**70], REFUSED),
            ("a list", x.tolist(), jnp.asarray(x)),
        ]
    return options


def _integers0(value: Any, draw: Draw) -> list[Option]:
    options = _integers(value, draw)
    if value is not None:
        options.append(("a negative integer", -1 - np.asarray(value), REFUSED))
    return options


def _weights(value: Any, draw: Draw) -> list[Option]:
    whole = [option for option in _nonnegatives(value, draw) if option[0] != "one number"]
    return [*whole, ("-1.0", -1.0, REFUSED), ("NaN", float("nan"), REFUSED), ("True", True, REFUSED)]


# --- numbers ------------------------------------------------------------------------------------------------------


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
        options += [("a NumPy number", np.float32(number), number), ("a JAX number", jnp.asarray(number, jnp.float32), number)]
    return options


def _finite(value: Any, draw: Draw) -> list[Option]:
    return [*_real(value, draw), ("infinity", float("inf"), REFUSED), ("-infinity", -float("inf"), REFUSED)]


def _nonnegative(value: Any, draw: Draw) -> list[Option]:
    return [*_finite(value, draw), ("-1.0", -1.0, REFUSED), ("a negative array", jnp.asarray(-1.0), REFUSED)]


def _positive(value: Any, draw: Draw) -> list[Option]:
    return [*_nonnegative(value, draw), ("0.0", 0.0, REFUSED), ("0", 0, REFUSED), ("False", False, REFUSED)]


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
        options += [("a NumPy integer", np.int64(value), value), ("a JAX integer", jnp.asarray(value), value)]
    return options


def _integer(value: Any, draw: Draw) -> list[Option]:
    return [option for option in _count0(value, draw) if option[0] != "-1"]


def _count(value: Any, draw: Draw) -> list[Option]:
    return [*_count0(value, draw), ("0", 0, REFUSED), ("False", False, REFUSED)]


# --- the rest -----------------------------------------------------------------------------------------------------


def _flag(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [(f"{junk!r}", junk, REFUSED) for junk in (1, 0, "yes", "False", 2.0, [], jnp.ones(2))]
    if isinstance(value, bool):
        options.append(("a NumPy Boolean", np.bool_(value), value))
    return options


def _choice(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [("1", 1, REFUSED), ("a list", ["exp"], REFUSED), ("bytes", b"exp", REFUSED), ("''", "", REFUSED)]
    if isinstance(value, str):
        options += [
            ("misspelt", value[:-1] + "zz", REFUSED),
            ("in capitals", value.upper(), REFUSED),
            ("in a list", [value], REFUSED),
            ("in a NumPy array", np.asarray([value]), REFUSED),
        ]
    return options


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
    return [("3", 3, REFUSED), ("an array", jnp.ones(2), REFUSED), ("a list", [len], REFUSED), ("False", False, REFUSED)]


def _net(value: Any, draw: Draw) -> list[Option]:
    def own(params: Any, x: Any) -> Any:
        return x @ params

    return [*_apply(value, draw), ("a function", own, REFUSED)]


def _apply(value: Any, draw: Draw) -> list[Option]:
    return [
        ("'softmax'", "softmax", REFUSED),
        ("3", 3, REFUSED),
        ("a tuple of strings", ("a", "b", "c"), REFUSED),
        ("an empty tuple", (), REFUSED),
        ("an array", jnp.ones((3, 2)), REFUSED),
    ]


def _params(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [
        ("3", 3, REFUSED),
        ("an array", jnp.ones((3, 8)), REFUSED),
        ("a list", [jnp.ones((3, 8)), jnp.ones((8, 2))], REFUSED),
        ("a dictionary", {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}, REFUSED),
        ("()", (), REFUSED),
    ]
    if value is not None and hasattr(value, "hidden"):
        hidden, readout = value.hidden, value.readout
        options += [
            ("of another width", value.replace(hidden=hidden[:, :-2], readout=readout[:-2]), REFUSED),
            ("of fewer features", value.replace(hidden=hidden[:-1]), REFUSED),
            ("of another number of outputs", value.replace(readout=readout[:, :1]), REFUSED),
            ("that do not fit each other", value.replace(readout=readout[:-2]), REFUSED),
            ("complex", value.replace(hidden=hidden + 1j), REFUSED),
            ("strings", value.replace(hidden="abc"), REFUSED),
            ("None inside", value.replace(hidden=None), REFUSED),
            ("NaN inside", value.replace(hidden=hidden.at[0, 0].set(jnp.nan)), REFUSED),
            ("integers", value.replace(hidden=jnp.ones(hidden.shape, int)), REFUSED),
            ("Booleans", value.replace(hidden=hidden > 0), REFUSED),
        ]
    return options


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
    return [("1", 1, REFUSED), ("'float'", "flaot32", REFUSED), ("integers", jnp.int32, REFUSED), ("complex", complex, REFUSED)]


def _shape(value: Any, draw: Draw) -> list[Option]:
    return [
        ("a number", 3, REFUSED),
        ("of one number", (3,), REFUSED),
        ("of three numbers", (2, 2, 2), REFUSED),
        ("a fraction", (-1, 2.5), REFUSED),
        ("no features", (-1, 0), REFUSED),
        ("negative", (4, -3), REFUSED),
        ("strings", ("a", "b"), REFUSED),
        ("Booleans", (True, True), REFUSED),
    ]


def _rows_and_columns(value: Any, draw: Draw) -> list[Option]:
    options = [option for option in _shape(value, draw) if option[0] != "no features"]
    return [*options, ("no rows", (0, 2), REFUSED), ("NaN", (float("nan"), 2), REFUSED)]


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
    return [("'softmax'", "softmax", REFUSED), ("3", 3, REFUSED), ("a matrix", jnp.eye(3), REFUSED), ("a list", [1], REFUSED)]


def _path(value: Any, draw: Draw) -> list[Option]:
    return [("3", 3, REFUSED), ("a list", ["a"], REFUSED), ("1.5", 1.5, REFUSED), ("True", True, REFUSED)]


def _tree(value: Any, draw: Draw) -> list[Option]:
    return [
        ("integers", jnp.arange(3), REFUSED),
        ("complex numbers", jnp.ones(3) * 1j, REFUSED),
        ("strings", np.asarray(["a"]), REFUSED),
        ("a function inside", {"a": len}, REFUSED),
        ("text inside", {"a": "b"}, REFUSED),
        ("NaN", jnp.asarray([jnp.nan]), REFUSED),
    ]


# "abc" is a path: nothing is written by a call that is wrong otherwise, so that it is left out.
_OPTIONS: dict[str, Callable[[Any, Draw], list[Option]]] = {
    "rows": _rows,
    "array": _array,
    "gram": _gram,
    "elements": _elements,
    "through": _through,
    "positives": _positives,
    "nonnegatives": _nonnegatives,
    "weights": _weights,
    "integers": _integers,
    "integers0": _integers0,
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
    "key": _key,
    "callable": _callable,
    "net": _net,
    "apply": _apply,
    "params": _params,
    "object": _object,
    "activation": _activation,
    "text": _text,
    "dtype": _dtype,
    "shape": _shape,
    "tree": _tree,
    "momentum": _momentum,
    "rows and columns": _rows_and_columns,
    "transform": _transform,
    "loss": _loss,
    "path": _path,
}

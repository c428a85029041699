"""Wrong values of arrays: of other types, shapes and entries than an argument wants."""

import fractions
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from fuzz.draw import Draw

REFUSED = object()
"""In the place of the proper value: there is none, the value must be refused."""

FINITE = object()
"""In the place of the proper value: the value is right, and must be refused or give something
finite.
"""

Option = tuple[str, Any, Any]


def array_options(value: Any, draw: Draw) -> list[Option]:
    if value is None:
        return [("'1'", "1", REFUSED), ("[[1, 'a']]", [[1, "a"]], REFUSED)]
    x = np.asarray(value, np.float64)
    single = jnp.asarray(x, jnp.float32)
    options: list[Option] = [
        ("objects", np.array([object()] * x.size).reshape(x.shape), REFUSED),
        (
            "fractions",
            np.array([fractions.Fraction(1, 3)] * x.size).reshape(x.shape),
            jnp.full(x.shape, 1 / 3),
        ),
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


SHAPELESS = {
    "NaN",
    "NaN in a JAX array",
    "-infinity",
    "1e300",
    "of one more axis",
    "empty",
    "one number",
    "its first row",
}


def elements_options(value: Any, draw: Draw) -> list[Option]:
    return [option for option in array_options(value, draw) if option[0] not in SHAPELESS]


def through_options(value: Any, draw: Draw) -> list[Option]:
    return [
        option
        for option in array_options(value, draw)
        if option[0] not in {"NaN", "NaN in a JAX array", "-infinity", "1e300"}
    ]


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


def rows_options(value: Any, draw: Draw) -> list[Option]:
    x = None if value is None else np.asarray(value, np.float64)
    options = array_options(value, draw)
    if x is not None:
        wider = np.concatenate([x, x[:, :1]], axis=1)
        options.append(("of no columns", jnp.zeros((len(x), 0)), REFUSED))
        options.append(("of three axes", jnp.asarray(wider, jnp.float32)[:, :, None], REFUSED))
    return options


def gram_options(value: Any, draw: Draw) -> list[Option]:
    options = array_options(value, draw)
    if value is not None:
        x = np.asarray(value, np.float64)
        skew = x.copy()
        skew[0, -1] += 1 + np.abs(x).max()
        options.append(("not square", jnp.asarray(x[:, :-1], jnp.float32), REFUSED))
        if len(x) > 1:
            options.append(("not symmetric", jnp.asarray(skew, jnp.float32), REFUSED))
    return options


def positives_options(value: Any, draw: Draw) -> list[Option]:
    options = nonnegatives_options(value, draw)
    if value is not None:
        options.append(("a zero", jnp.asarray(_with(np.asarray(value), 0), jnp.float32), REFUSED))
    return options


def nonnegatives_options(value: Any, draw: Draw) -> list[Option]:
    options = array_options(value, draw)
    if value is not None:
        options.append(
            ("a negative number", jnp.asarray(_with(np.asarray(value), -1.0), jnp.float32), REFUSED)
        )
    return options


def integers_options(value: Any, draw: Draw) -> list[Option]:
    options: list[Option] = [
        ("[1.5]", [1.5], REFUSED),
        ("one string", "1", REFUSED),
        ("a function", len, REFUSED),
    ]
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


def integers0_options(value: Any, draw: Draw) -> list[Option]:
    options = integers_options(value, draw)
    if value is not None:
        options.append(("a negative integer", -1 - np.asarray(value), REFUSED))
    return options


def weights_options(value: Any, draw: Draw) -> list[Option]:
    whole = [option for option in nonnegatives_options(value, draw) if option[0] != "one number"]
    return [
        *whole,
        ("-1.0", -1.0, REFUSED),
        ("NaN", float("nan"), REFUSED),
        ("True", True, REFUSED),
    ]

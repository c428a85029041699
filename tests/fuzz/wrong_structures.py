"""Wrong shapes, trees, keywords and tuples."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fuzz.draw import Draw
from fuzz.wrong_arrays import REFUSED, Option


def shape_options(value: Any, draw: Draw) -> list[Option]:
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


def rows_and_columns_options(value: Any, draw: Draw) -> list[Option]:
    options = [option for option in shape_options(value, draw) if option[0] != "no features"]
    return [*options, ("no rows", (0, 2), REFUSED), ("NaN", (float("nan"), 2), REFUSED)]


def tree_options(value: Any, draw: Draw) -> list[Option]:
    return [
        ("integers", jnp.arange(3), REFUSED),
        ("complex numbers", jnp.ones(3) * 1j, REFUSED),
        ("strings", np.asarray(["a"]), REFUSED),
        ("a function inside", {"a": len}, REFUSED),
        ("text inside", {"a": "b"}, REFUSED),
        ("NaN", jnp.asarray([jnp.nan]), REFUSED),
    ]


def keywords_options(value: Any, draw: Draw) -> list[Option]:
    return [
        ("3", 3, REFUSED),
        ("a list", [("scale", 2.0)], REFUSED),
        ("numbers as names", {1: 2.0}, REFUSED),
        ("an array", jnp.ones(2), REFUSED),
        ("of no argument", {"a": 1.0}, REFUSED),
    ]


def zero_options(value: Any, draw: Draw) -> list[Option]:
    wrong = (1, -1, "0", 0.0, True, (0,), [0])
    return [(repr(option), option, REFUSED) for option in wrong]


def three_numbers_options(value: Any, draw: Draw) -> list[Option]:
    wrong = (
        1.0,
        (1.0, 2.0),
        (1.0, 2.0, 3.0, 4.0),
        (1.0, float("nan"), 2.0),
        (1.0, 2.0, "a"),
        (1j, 2.0, 3.0),
        (-1.0, 2.0, 3.0),
    )
    return [(repr(option), option, REFUSED) for option in wrong]


def moments_options(value: Any, draw: Draw) -> list[Option]:
    mean, covariance = jnp.zeros(2), jnp.eye(2)
    return [
        ("3", 3, REFUSED),
        ("the mean alone", (mean,), REFUSED),
        ("the other way round", (covariance, mean), REFUSED),
        ("no covariance", (mean, None), REFUSED),
        ("NaN", (mean, covariance * jnp.nan), REFUSED),
        ("complex", (mean * 1j, covariance), REFUSED),
        ("strings", (["a", "b"], covariance), REFUSED),
        ("Booleans", (mean == 0, covariance), REFUSED),
        ("a function", abs, REFUSED),
    ]


def weights_path_options(value: Any, draw: Draw) -> list[Option]:
    return [
        ("3", 3, REFUSED),
        ("an array", jnp.ones((2, 3, 8)), REFUSED),
        ("a dictionary", {"hidden": jnp.ones((2, 3, 8))}, REFUSED),
        ("nothing", [], REFUSED),
        ("numbers", [1, 2], REFUSED),
        ("a function", abs, REFUSED),
    ]

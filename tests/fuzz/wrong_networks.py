"""Wrong networks and wrong parameters."""

from typing import Any

import jax.numpy as jnp

from fuzz.draw import Draw
from fuzz.wrong_arrays import REFUSED, Option


def net_options(value: Any, draw: Draw) -> list[Option]:
    def own(params: Any, x: Any) -> Any:
        return x @ params

    return [*apply_options(value, draw), ("a function", own, REFUSED)]


def apply_options(value: Any, draw: Draw) -> list[Option]:
    return [
        ("'softmax'", "softmax", REFUSED),
        ("3", 3, REFUSED),
        ("a tuple of strings", ("a", "b", "c"), REFUSED),
        ("an empty tuple", (), REFUSED),
        ("an array", jnp.ones((3, 2)), REFUSED),
    ]


def params_options(value: Any, draw: Draw) -> list[Option]:
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
            (
                "of another width",
                value.replace(hidden=hidden[:, :-2], readout=readout[:-2]),
                REFUSED,
            ),
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


def params_through_options(value: Any, draw: Draw) -> list[Option]:
    """Weights that are not finite make outputs of +inf, as they do inside of a program."""
    return [option for option in params_options(value, draw) if option[0] != "NaN inside"]

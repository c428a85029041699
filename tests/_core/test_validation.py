"""Arguments: what is converted, what is refused, and that every refusal names its argument."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from softntk._core import validation as validation

TABLE = [[1.0, 2.0], [3.0, 4.0]]
ROWS = {
    "list": TABLE,
    "tuple": tuple(map(tuple, TABLE)),
    "numpy": np.array(TABLE),
    "float32": np.array(TABLE, np.float32),
    "pandas": pd.DataFrame(TABLE, columns=["a", "b"]),
    "jax": jnp.array(TABLE),
    "list of JAX arrays": [jnp.array(row) for row in TABLE],
    "fortran": np.asfortranarray(TABLE),
}
NO_ROWS = {
    "None": (None, "array of numbers, got NoneType"),
    "text": ("abc", "array of numbers, got str"),
    "dict": ({"a": 1.0}, "array of numbers, got dict"),
    "function": (jnp.sin, "array of numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "array of numbers, got list"),
    "objects": (np.array([[1, 2]], object), "real numbers"),
    "strings": (np.array([["1"]]), "real numbers"),
    "table of strings": (pd.DataFrame({"a": ["u"]}), "real numbers"),
    "complex": (np.array([[1j]]), "real numbers"),
    "Boolean": (np.array([[True]]), "real numbers"),
    "integers": ([[1, 2]], "floating-point array"),
    "sparse": (scipy.sparse.eye_array(2), "toarray"),
    "vector": ([1.0, 2.0], r"shape \[n, d\]"),
    "empty": (np.zeros((0, 3)), "at least one row"),
    "NaN": ([[np.nan]], "NaN or infinite"),
    "keys": (jax.random.split(jax.random.key(0)), "real numbers"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_come_from_anywhere(kind):
    rows = validation.as_rows("points", ROWS[kind])
    assert isinstance(rows, jax.Array)
    assert rows.dtype == jnp.float32
    assert rows.tolist() == TABLE


@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_is_no_rows_is_named(kind, untyped):
    value, message = NO_ROWS[kind]
    with pytest.raises(ValueError, match=f"^points must .*{message}"):
        validation.as_rows("points", value)


def test_what_fits_float64_only_is_refused_where_jax_has_float32():
    with pytest.raises(
        ValueError, match=r"x must be finite in float32, got 1 entries .* first at x\[0, 1\]"
    ):
        validation.as_rows("x", np.array([[1.0, 1e39]]))
    with jax.enable_x64(True):
        assert validation.as_rows("x", np.array([[1.0, 1e39]])).dtype == jnp.float64


def test_shapes_and_precisions():
    assert validation.as_floating("y", 2.0).shape == ()
    assert validation.as_floating("y", np.zeros((2, 3, 4)), ("n", "…")).shape == (2, 3, 4)
    assert validation.as_floating("y", np.zeros((2, 3, 4)), ("…", 4)).shape == (2, 3, 4)
    for shape in (("n",), ("n", 2), (3, "k")):
        with pytest.raises(ValueError, match=r"y must have shape \["):
            validation.as_floating("y", np.zeros((2, 3)), shape)
    with pytest.raises(ValueError, match="y must be float32 or float64, got float16"):
        validation.as_floating("y", np.zeros(2, np.float16), half=False)
    with pytest.raises(ValueError, match="y must not be empty"):
        validation.as_floating("y", np.zeros(0))
    assert validation.as_floating("y", np.zeros(0), empty=True).shape == (0,)


def test_pairs(untyped):
    first, second = validation.as_pair(TABLE, None)
    assert first.shape == (2, 2)
    assert second is None
    with pytest.raises(ValueError, match="x2 must have as many features as x1"):
        validation.as_pair(TABLE, [[1.0]])
    with pytest.raises(ValueError, match="x2 must have the dtype of x1"):
        validation.as_pair(TABLE, jnp.array(TABLE, jnp.bfloat16))


def test_integers_must_fit():
    assert validation.as_integers("steps", [0, 10]).tolist() == [0, 10]
    with pytest.raises(ValueError, match="steps must lie between .* up to 3000000000"):
        validation.as_integers("steps", np.array([3 * 10**9]))
    with pytest.raises(ValueError, match="steps must be integers"):
        validation.as_integers("steps", [1.5])


@pytest.mark.parametrize(
    "value",
    ["1", None, 1j, {}, [], True, np.nan, np.inf, np.ones(2), 10**400, np.array("1"), jnp.sin],
)
def test_what_is_no_number_is_named(value, untyped):
    with pytest.raises(ValueError, match="^rate must be a positive finite number, got"):
        validation.check_number("rate", value, above=0)


def test_numbers_become_python_floats_and_tracers_pass():
    for value in (2, 2.0, np.float64(2), np.int32(2), jnp.float32(2), np.array(2.0)):
        number = validation.check_number("rate", value, above=0)
        assert type(number) is float
        assert number == 2
    assert jax.grad(lambda rate: 3 * validation.check_number("rate", rate, above=0))(-1.0) == 3


def test_bounds_are_stated():
    limits: tuple[tuple[dict[str, Any], str], ...] = (
        ({"at_least": 0}, "a finite number at least 0"),
        ({"above": 0, "below": 1}, "a finite number above 0 and below 1"),
        ({"at_most": -3.5}, "a finite number at most -3.5"),
    )
    for bounds, words in limits:
        with (
            pytest.raises(ValueError, match=f"delta must be {words}, got -1")
            if "at_most" not in bounds
            else pytest.raises(ValueError, match=f"delta must be {words}, got 0")
        ):
            validation.check_number("delta", 0 if "at_most" in bounds else -1, **bounds)
    inside: tuple[dict[str, Any], ...] = ({"at_least": 1}, {"at_most": 1}, {"above": 0, "below": 2})
    outside: tuple[dict[str, Any], ...] = ({"above": 1}, {"below": 1})
    for ends in inside:
        assert validation.check_number("delta", 1, **ends) == 1
    for ends in outside:
        with pytest.raises(ValueError, match="delta"):
            validation.check_number("delta", 1, **ends)
    assert validation.check_number("delta", np.inf, above=0, infinite=True) == np.inf


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, np.nan, [1]])
def test_what_is_no_positive_integer_is_named(value, untyped):
    with pytest.raises(ValueError, match="^width must be a positive integer, got"):
        validation.check_positive_int("width", value)


def test_integers_are_python_integers_and_cannot_be_traced():
    for value in (3, np.int64(3), jnp.int32(3)):
        assert validation.check_integer("width", value, 1, 3) == 3
    with pytest.raises(ValueError, match="width must be a positive integer of at most 2, got 3"):
        validation.check_integer("width", 3, 1, 2)
    with pytest.raises(ValueError, match="width must be an integer, got"):
        jax.jit(lambda width: validation.check_integer("width", width))(3)


def test_choices(untyped):
    assert validation.check_choice("form", "plain", ("plain", "rescaled")) == "plain"
    with pytest.raises(
        ValueError,
        match=r"form must be one of \['plain', 'rescaled'\], got 'plan'. Did you mean 'plain'\?",
    ):
        validation.check_choice("form", "plan", ("plain", "rescaled"))
    for value in (["plain"], None, {"plain"}, 3):
        with pytest.raises(ValueError, match="form must be one of"):
            validation.check_choice("form", value, ("plain",))


def test_keys(untyped):
    for key in (jax.random.key(0), jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        jax.random.normal(validation.check_key("key", key))
    for key in (0, "k", None, jnp.zeros(2), jnp.zeros(3, jnp.uint32)):
        with pytest.raises(ValueError, match="key must be a random key, got"):
            validation.check_key("key", key)
    with pytest.raises(ValueError, match="key must be one key, got"):
        validation.check_key("key", jax.random.split(jax.random.key(0)))


def test_flags_and_functions(untyped):
    assert validation.check_flag("throw", np.bool_(True)) is True
    for value in ("no", 1, None, []):
        with pytest.raises(ValueError, match="throw must be True or False"):
            validation.check_flag("throw", value)
    assert validation.check_callable("loss", jnp.sin) is jnp.sin
    with pytest.raises(ValueError, match="loss must be a function, got 3"):
        validation.check_callable("loss", 3)


MASKED = np.ma.masked_array([[1.0, 2.0]], [[True, False]])


@pytest.mark.parametrize("masked", [MASKED, [MASKED, MASKED], [np.ma.masked, 1.0], MASKED[0, 0]])
def test_what_is_behind_a_mask_is_refused(masked, untyped):
    for convert in (
        validation.as_floating,
        validation.as_real_array,
        lambda name, x: validation.as_dtype(name, x, jnp.float32),
    ):
        with pytest.raises(ValueError, match="^x must have no masked entries"):
            convert("x", masked)
    assert validation.as_floating("x", np.ma.masked_array([1.0, 2.0])).tolist() == [1, 2]


def test_a_masked_number_is_none(untyped):
    for check, value in ((validation.check_number, 1.0), (validation.check_integer, 1)):
        with pytest.raises(ValueError, match="^x must be"):
            check("x", np.ma.masked_array(value, True))
        assert check("x", np.ma.masked_array(value, False)) == 1


def test_infinity_passes_where_it_may_but_what_only_float64_holds_does_not():
    assert np.isinf(validation.as_floating("x", [np.inf], finite=False)).all()
    with pytest.raises(
        ValueError, match="x must be finite in float32, got 1 entries beyond its largest number"
    ):
        validation.as_floating("x", [np.inf, np.nan, 1e39], finite=False)
    with jax.enable_x64(True):
        assert validation.as_floating("x", [1e39], finite=False).tolist() == [1e39]


def test_counts_fit_the_counters_of_programs(untyped):
    assert validation.check_count("steps", 2**31 - 1) == 2**31 - 1
    for value in (2**31, 10**400):
        with pytest.raises(
            ValueError, match="^steps must be a positive integer of at most 2147483647, got"
        ):
            validation.check_count("steps", value)
    with pytest.raises(ValueError, match="^steps must be a positive integer, got 0"):
        validation.check_count("steps", 0)

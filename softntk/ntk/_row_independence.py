"""A test that the rows of a user's function do not interact.

If they do not, the Jacobian consists of one small block for each of the n rows, instead of one
block for each pair of rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.meshes import run_without_explicit_axes
from softntk._core.validation import is_concrete
from softntk._linalg.norms import tree_norm
from softntk.ntk._user_functions import OwnFunction, try_outputs

MAX_COMPARED_ROWS = 8  # rows on which the test compares derivatives
MAX_CHECKED_PROGRAMS = 256  # number of programs that are remembered as checked

# Relative change of a derivative above which rows interact. Rounding in half precision and TF32
# stays below it; batch normalisation and dropout change far more.
MAX_RELATIVE_CHANGE = 0.05

_CHECKED_PROGRAMS: set[Any] = set()


def check_rows_independent(
    function: OwnFunction, x: Float[Array, "n ..."], alternative: str = ""
) -> None:
    """Raise if the rows of a function interact; where values are traced, nothing is checked.

    The test compares Jᵀv of a few rows passed together with the sum of Jᵀv of the same rows passed
    one by one. Outputs are not compared, because they may be zero, as those of an antisymmetric
    network are.

    Args:
        function: bound by :func:`softntk.ntk._user_functions.bind`.
        x: points.
        alternative: text that the message appends to its remedy, such as ", or vmap_axes=None".

    Raises:
        ValueError: the rows interact by more than the rounding of half precision.
    """
    # 1. Skip one row, traced values, and programs that have been checked.
    if len(x) == 1 or not all(map(is_concrete, jax.tree.leaves((function, x)))):
        return
    program = _program_key(function, x)
    if program in _CHECKED_PROGRAMS:
        return

    # 2. Compare on a few rows, spread over all of them.
    sample_size = min(len(x), MAX_COMPARED_ROWS)
    sample_rows = np.unique(np.linspace(0, len(x) - 1, sample_size).astype(int))
    sample = run_without_explicit_axes(lambda x: x[sample_rows])(x)
    try_outputs(function, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    difference, size = np.asarray(_compare_rows(function, sample), np.float64)
    if difference > MAX_RELATIVE_CHANGE * size:
        raise ValueError(
            "apply_fn must treat each row of x alone, but the derivative of the outputs changes by "
            f"{difference / size:.2g} of itself when rows are passed one by one: batch "
            "normalisation in training mode, or one key of dropout for all rows, does that. "
            "Use running averages (train=False, inference=True, deterministic=True)"
            f"{alternative}."
        )

    # 3. Remember the program.
    if program is not None:
        if len(_CHECKED_PROGRAMS) >= MAX_CHECKED_PROGRAMS:
            _CHECKED_PROGRAMS.clear()
        _CHECKED_PROGRAMS.add(program)


def _program_key(function: OwnFunction, x: Float[Array, "n ..."]) -> Any:
    """Return a key of the compiled program, or None if an array of flags may change what it does.

    One check is enough for a program without flags, whatever its weights, constants and points.
    """
    if any(leaf.dtype == jnp.bool_ for leaf in function.constants):
        return None
    leaves, structure = jax.tree.flatten(function)
    return structure, x.shape[1:], tuple((leaf.shape, leaf.dtype) for leaf in leaves)


@jax.jit
def _compare_rows(function: OwnFunction, x: Float[Array, "b ..."]) -> Float[Array, "2"]:
    """Return :func:`_rows_difference`, whatever mesh the points are on."""
    return run_without_explicit_axes(_rows_difference)(function, x)


def _rows_difference(function: OwnFunction, x: Float[Array, "b ..."]) -> Float[Array, "2"]:
    """Return ‖Jᵀv of all rows − its sum over single rows‖, and the larger of the two norms."""
    # A vector v without pattern, so that no symmetry of the outputs (those of a softmax sum to one)
    # makes Jᵀv vanish.
    out = function.out_structure(x)
    index = jnp.arange(out.shape[0] * out.shape[1], dtype=jnp.float32).reshape(out.shape)
    vector = jnp.cos(index * index + 1).astype(out.dtype)

    def pull_back(x: Array, v: Array) -> tuple[Array, ...]:
        return jax.vjp(lambda weights: function(weights, x), function.weights)[1](v)[0]

    batch_gradient = pull_back(x, vector)
    row_gradients = jax.vmap(lambda point, v: pull_back(point[None], v[None]))(x, vector)
    row_sum = jax.tree.map(functools.partial(jnp.sum, axis=0), row_gradients)
    difference = tree_norm(jax.tree.map(jnp.subtract, batch_gradient, row_sum))
    return jnp.stack([difference, jnp.maximum(tree_norm(batch_gradient), tree_norm(row_sum))])

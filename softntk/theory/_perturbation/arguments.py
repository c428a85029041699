"""Checks of the arguments of :func:`softntk.theory.perturbation`: radii, kinds and paths."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import check_choice
from softntk._core.validation.on_host import as_double, check_known, known_number
from softntk.networks import Parameters
from softntk.theory._arguments import check_weights

PERTURBATION_KINDS = ("random", "adversarial")
"""Kinds of perturbations that are searched for; the weights of a path are a third kind, "path"."""


def to_double(params: Parameters) -> Parameters:
    """Return the weights in float64."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)


def check_radii(radii: float | Sequence[float] | Float[np.ndarray | Array, " q"]) -> list[float]:
    """Return the radii as a list; refuse radii that are not positive or are repeated."""
    values = np.atleast_1d(as_double("radii", radii, integers=True))
    if values.ndim != 1:
        raise ValueError(f"radii must be a number or a list of them, got shape {values.shape}.")
    # Radii are keys of the results, so that each may occur once.
    for R in values:
        known_number("radii", float(R), above=0)
    if len(set(values.tolist())) < len(values):
        raise ValueError(f"radii must name each radius once, got {values.tolist()}.")
    return values.tolist()


def check_kinds(kinds: object, path: object) -> tuple[str, ...]:
    """Return the kinds as a tuple; refuse unknown and repeated ones, and none without a path."""
    if isinstance(kinds, str) or not isinstance(kinds, Sequence):
        raise ValueError(
            f"kinds must be a tuple of names among {sorted(PERTURBATION_KINDS)}, got {kinds!r}."
        )
    for kind in kinds:
        check_choice("kinds", kind, PERTURBATION_KINDS)
    has_entries = bool(kinds) or path is not None
    if len(set(kinds)) < len(kinds) or not has_entries:
        raise ValueError(
            "kinds must name each kind once, and at least one where there is no path, "
            f"got {tuple(kinds)}."
        )
    return tuple(kinds)


def check_path(params: Parameters, path: object) -> list[Parameters]:
    """Return the weights along the path in float64; refuse other shapes and other readouts."""
    check_known("path", path)
    path_weights = []
    for weights in _split_path(path):
        if not isinstance(weights, Parameters):
            raise ValueError(_shape_message(params, type(weights).__name__))
        if _leaf_shapes(weights) != _leaf_shapes(params):
            raise ValueError(_shape_message(params, _leaf_shapes(weights)))
        # The bounds hold for moves of the hidden weights at one readout.
        weights = to_double(check_weights("path", weights))
        if not np.array_equal(np.asarray(weights.readout), params.readout):
            raise ValueError(
                "path must keep the readout, got one that moves. Only hidden weights are bounded."
            )
        path_weights.append(weights)
    return path_weights


def _shape_message(params: Parameters, actual: object) -> str:
    """Return the message for weights that are not of the shapes of params."""
    return f"path must have weights of the shapes of params, {_leaf_shapes(params)}, got {actual}."


def _split_path(path: object) -> Sequence[object]:
    """Return a path as a list of weights, at least one."""
    # Weights stacked along a leading axis, as a scan returns them, are taken apart.
    if isinstance(path, Parameters):
        leaves = jax.tree.leaves(path)
        length = len(leaves[0]) if np.ndim(leaves[0]) else 0
        if any(np.shape(leaf)[:1] != (length,) for leaf in leaves):
            raise ValueError(
                "path must have the same leading axis in all its weights, got others. "
                "Stack whole parameters."
            )
        path = [jax.tree.map(lambda leaf, i=i: leaf[i], path) for i in range(length)]
    if not isinstance(path, Sequence) or isinstance(path, str):
        raise ValueError(
            "path must be Parameters with a leading axis, or a list of them, "
            f"got {type(path).__name__}."
        )
    if not path:
        raise ValueError("path must have at least one set of weights, got none.")
    return path


def _leaf_shapes(params: Parameters) -> list[tuple[int, ...]]:
    """Return the shapes of hidden weights, readout and bias (if any)."""
    leaves = (params.hidden, params.readout, params.bias)
    return [np.shape(leaf) for leaf in leaves if leaf is not None]

"""Functions of the user's, ``apply_fn(params, x, **apply_kwargs)``, as functions of weights and
rows.

Libraries keep other things beside the weights: activations, flags, counters, keys, running
averages. :func:`bind` takes them apart: what is differentiated by (weights), arrays that are
constants, and the rest, which is part of the compiled program. What apply_fn returns is looked at
once, without running it; that rows do not interact is tested where the values are known.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from softntk._core.meshes import run_without_explicit_axes
from softntk._core.trained_leaves import trained_leaves
from softntk._core.validation import check_callable, is_concrete
from softntk._linalg.norms import tree_norm

MAX_ROWS_COMPARED = 8
MAX_PROGRAMS_REMEMBERED = 256

_WEIGHT = "weight"
_CONSTANT = "constant"


class Static:
    """What is no array among the leaves, with the structure of all; equal where the program is."""

    def __init__(self, structure: Any, leaves: tuple):
        """Take the structure of (params, apply_kwargs), and of each leaf what it is and its value."""
        self.structure = structure
        self.leaves = leaves
        self._key = (structure, tuple((kind, type(value), value) for kind, value in leaves))

    def __eq__(self, other: object) -> bool:
        """Return whether structure and leaves are equal, 1 and True being different."""
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        """Return the hash of both."""
        return hash(self._key)


class _ByIdentity:
    """A function that cannot be hashed (a module with a list in it), equal to itself."""

    def __init__(self, function: Callable):
        self.function = function
        owner = getattr(function, "__self__", function)
        self._key = (id(owner), getattr(function, "__func__", None))

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class OwnFunction(eqx.Module):
    """An apply_fn with everything but its weights and the points bound; outputs are [n, k].

    Attributes:
        weights: what derivatives are taken by, the floating-point arrays of params.
        constants: other arrays of params, and arrays of apply_kwargs.
        apply_fn: the function.
        static: everything else.
    """

    weights: tuple[Array, ...]
    constants: tuple[Array, ...]
    apply_fn: Callable = eqx.field(static=True)
    static: Static = eqx.field(static=True)

    def __call__(self, weights: tuple[Array, ...], x: Float[Array, "n ..."]) -> Float[Array, "n k"]:
        """Return the outputs, [n, k]."""
        out = self.evaluate(weights, x)
        return out[:, None] if out.ndim == 1 else out

    def evaluate(self, weights: tuple[Array, ...], x: Float[Array, "n ..."]) -> Any:
        """Return what apply_fn does."""
        remaining = {_WEIGHT: iter(weights), _CONSTANT: iter(self.constants)}
        leaves = [
            next(remaining[kind]) if kind in remaining else value
            for kind, value in self.static.leaves
        ]
        params, apply_kwargs = jax.tree.unflatten(self.static.structure, leaves)
        return self.apply_fn(params, x, **apply_kwargs)

    def out_structure(self, x: Float[Array, "n ..."]) -> jax.ShapeDtypeStruct:
        """Return shape [n, k] and dtype of the outputs."""
        out = trace_outputs(self, x)
        return jax.ShapeDtypeStruct((*out.shape, 1)[:2], out.dtype)

    def astype(self, dtype: DTypeLike) -> "OwnFunction":
        """Return the function with floating-point weights and constants in another precision."""

        def cast(leaf: Array) -> Array:
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        weights = tuple(map(cast, self.weights))
        constants = tuple(map(cast, self.constants))
        return OwnFunction(weights, constants, self.apply_fn, self.static)


# --- parameters
# ---------------------------------------------------------------------------------------


def bind(net: Any, params: Any, x: Float[Array, "n ..."], apply_kwargs: Any = None) -> OwnFunction:
    """Return the OwnFunction of a function, or of a triple that holds one, at these parameters.

    Args:
        net: ``apply_fn(params, x, **apply_kwargs)``, or ``(init_fn, apply_fn, kernel_fn)``.
        params: any pytree; leaves that are no floating-point arrays are constants. Of flax.linen's
            variables so are running averages and caches, of flax.nnx's everything but
            ``nnx.Param``, and Python's floats inside of an equinox module.
        x: points.
        apply_kwargs: arrays among them are arguments of the compiled program, all else is static.

    Raises:
        ValueError: net, params or apply_kwargs do not fit each other; apply_fn does not return one
            floating-point array [n] or [n, k].
    """
    apply_fn = _as_apply_fn(net)
    apply_kwargs = as_keywords(apply_kwargs)
    weights, constants, entries = [], [], []
    for name, leaves in (("params", _label(params)), ("apply_kwargs", _label_all(apply_kwargs))):
        for kind, leaf in leaves:
            array = _as_array(name, leaf)
            if array is None:
                entries.append(("static", _check_hashable(name, leaf)))
            elif kind == _WEIGHT and jnp.issubdtype(array.dtype, jnp.floating):
                weights.append(array)
                entries.append((_WEIGHT, None))
            else:
                constants.append(array)
                entries.append((_CONSTANT, None))
    if not weights:
        raise ValueError(
            f"params must hold a floating-point array that is trained, got {_describe(params)}. "
            "Pass the network's weights; register a class of your own as a pytree, e.g. with "
            "jax.tree_util.register_dataclass."
        )
    structure = jax.tree.structure((params, apply_kwargs))
    _check_hashable("params", structure)
    function = OwnFunction(
        tuple(weights), tuple(constants), apply_fn, Static(structure, tuple(entries))
    )
    check_outputs(function, x)
    return function


def _as_apply_fn(net: Any) -> Callable:
    if isinstance(net, tuple):
        if len(net) != 3 or not all(map(callable, net)):
            raise ValueError(
                "net must be a network of two_layer, a triple (init_fn, apply_fn, kernel_fn) or an "
                f"apply_fn(params, x), got a tuple of {len(net)}."
            )
        net = net[1]
    check_callable(
        "net", net, "a network of two_layer, a triple of functions or an apply_fn(params, x)"
    )
    if isinstance(net, type):
        raise ValueError(f"net must be an apply_fn(params, x), got the class {net.__name__}.")
    try:
        hash(net)
    except TypeError:
        return _ByIdentity(net)
    return net


def as_keywords(apply_kwargs: object) -> dict[str, Any]:
    """Return further arguments of apply_fn as a dict; None stands for none."""
    if apply_kwargs is None:
        return {}
    if not isinstance(apply_kwargs, Mapping) or not all(
        isinstance(name, str) for name in apply_kwargs
    ):
        raise ValueError(
            "apply_kwargs must be a dict of further arguments of apply_fn, e.g. {'train': False}, got "
            f"{_describe(apply_kwargs)}."
        )
    return dict(apply_kwargs)


def refuse_keywords(apply_kwargs: object) -> None:
    """Refuse further arguments of the networks of two_layer, which take none."""
    keywords = as_keywords(apply_kwargs)
    if keywords:
        raise ValueError(
            f"apply_kwargs must be None for a network of two_layer, got {sorted(keywords)}."
        )


def _label_all(tree: object) -> list[tuple[str, Any]]:
    return [(_CONSTANT, leaf) for leaf in jax.tree.leaves(tree)]


def _label(params: object) -> list[tuple[str, Any]]:
    """Return the leaves in order, each with what it is, if it is a floating-point array."""
    labelled = []
    for leaf, trained in zip(jax.tree.leaves(params), trained_leaves(params), strict=True):
        number = trained and isinstance(leaf, float)  # jax.grad differentiates by it
        labelled.append((_WEIGHT if trained else _CONSTANT, jnp.asarray(leaf) if number else leaf))
    return labelled


def _as_array(name: str, leaf: object) -> Array | None:
    """Return an array of JAX, or None of what is no array."""
    if isinstance(leaf, np.ndarray | np.generic) and not isinstance(leaf, jax.Array):
        if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == np.bool_):
            raise ValueError(f"{name} must hold arrays of numbers, got one of dtype {leaf.dtype}.")
        leaf = jnp.asarray(leaf)
    if not isinstance(leaf, jax.Array):
        return None
    if name == "params" and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise ValueError(
            f"params must be real, got an array of dtype {leaf.dtype}. Pass real and imaginary parts "
            "and put them together inside of apply_fn."
        )
    return leaf


def _check_hashable(name: str, value: Any) -> Any:
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a pytree whose leaves are arrays or can be hashed, but: {error}. Register "
            "its class as a pytree, e.g. with jax.tree_util.register_dataclass, or split it, e.g. with "
            "equinox.partition(model, equinox.is_inexact_array)."
        ) from None
    return value


def _describe(value: object) -> str:
    text = " ".join(repr(value).split())
    return f"{type(value).__name__}: {text if len(text) <= 60 else text[:60] + '…'}"


# --- outputs
# ------------------------------------------------------------------------------------------


def check_outputs(function: OwnFunction, x: Float[Array, "n ..."]) -> None:
    """Refuse an apply_fn that does not return one floating-point array [n] or [n, k]."""
    out = _try_outputs(function, x)
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise ValueError(
            f"apply_fn must return one array [n] or [n, k], got {_describe_outputs(out)}. Return the "
            "outputs alone, e.g. lambda params, x: apply_fn(params, x)[0]; of flax.linen, without "
            "mutable=…."
        )
    shape = out.shape
    if len(shape) not in (1, 2) or shape[0] != len(x) or 0 in shape:
        flatten = " Flatten them: .reshape(len(x), -1)." if len(shape) > 2 else ""
        raise ValueError(
            f"apply_fn must return [n] or [n, k], one row a point, got shape {shape} for x of shape {x.shape}.{flatten}"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"apply_fn must return floating-point numbers, got dtype {out.dtype}.")


def trace_outputs(function: OwnFunction, x: Array | jax.ShapeDtypeStruct) -> Any:
    """Return the structure of what apply_fn returns; traced once for each program."""

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # without its place on a mesh

    return _evaluate.eval_shape(*jax.tree.map(describe, (function, x)))


_evaluate = jax.jit(lambda function, x: function.evaluate(function.weights, x))


def _try_outputs(function: OwnFunction, x: Array | jax.ShapeDtypeStruct) -> Any:
    """Return the same, and say what was called if it fails."""
    try:
        return trace_outputs(function, x)
    except Exception as error:
        keywords = jax.tree.unflatten(function.static.structure, function.static.leaves)[1]
        names = "".join(f", {name}=…" for name in keywords)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"apply_fn(params, x{names}) fails for x of shape {x.shape}: {reason} Check params, their "
            "order (params come first) and apply_kwargs; any number of rows must be possible."
        ) from error


def _describe_outputs(out: object) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of {len(out)}"
    if isinstance(out, dict):
        return f"a dict of {sorted(map(str, out))}"
    return type(out).__name__


# --- rows
# ---------------------------------------------------------------------------------------------


def check_rows_alone(function: OwnFunction, x: Float[Array, "n ..."], cure: str = "") -> None:
    """Refuse, where values are known, a function whose rows interact.

    Jᵀv of a few rows together is compared with that of the same rows one by one. It is not the
    outputs that are compared: they may vanish, as those of an antisymmetric network do.

    Args:
        function: of softntk.
        x: points.
        cure: what else to do, for the message.

    Raises:
        ValueError: they do, by more than the rounding of half precision.
    """
    if len(x) == 1 or not all(map(is_concrete, jax.tree.leaves((function, x)))):
        return
    program = _program_without_flags(function, x)
    if program in _PROGRAMS_OF_SINGLE_ROWS:
        return
    spread = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_ROWS_COMPARED)).astype(int))
    few = run_without_explicit_axes(lambda x: x[spread])(x)
    _try_outputs(function, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    difference, size = np.asarray(_compare_rows(function, few), np.float64)
    if difference > ROWS_TOLERANCE * size:
        raise ValueError(
            "apply_fn must treat each row of x alone, but the derivative of the outputs changes by "
            f"{difference / size:.2g} of itself when rows are passed one by one: batch "
            "normalisation in training mode, or one key of dropout for all rows, does that. Use running "
            f"averages (train=False, inference=True, deterministic=True){cure}."
        )
    if program is not None:
        if len(_PROGRAMS_OF_SINGLE_ROWS) >= MAX_PROGRAMS_REMEMBERED:
            _PROGRAMS_OF_SINGLE_ROWS.clear()
        _PROGRAMS_OF_SINGLE_ROWS.add(program)


_PROGRAMS_OF_SINGLE_ROWS: set[Any] = set()


def _program_without_flags(function: OwnFunction, x: Float[Array, "n ..."]) -> Any:
    """Return what a function is compiled for, if nothing but weights and points is open: then one
    look is enough.
    """
    if any(leaf.dtype == jnp.bool_ for leaf in function.constants):
        return None
    leaves, structure = jax.tree.flatten(function)
    return structure, x.shape[1:], tuple((leaf.shape, leaf.dtype) for leaf in leaves)


ROWS_TOLERANCE = 0.05
"""Of a derivative, relative: above the rounding of half precision and TF32, below what interaction
does.
"""


@jax.jit
def _compare_rows(function: OwnFunction, x: Float[Array, "b ..."]) -> Float[Array, "2"]:
    return run_without_explicit_axes(_rows_difference)(function, x)


def _rows_difference(function: OwnFunction, x: Float[Array, "b ..."]) -> Float[Array, "2"]:
    """Return how far Jᵀv of all rows is from that of the rows one by one, and the size of either."""
    out = function.out_structure(x)
    # Numbers of no pattern, so that no symmetry of the outputs (softmax: their sum is one) hides J.
    index = jnp.arange(out.shape[0] * out.shape[1], dtype=jnp.float32).reshape(out.shape)
    vector = jnp.cos(index * index + 1).astype(out.dtype)

    def pull(x: Array, v: Array) -> tuple[Array, ...]:
        return jax.vjp(lambda weights: function(weights, x), function.weights)[1](v)[0]

    together = pull(x, vector)
    alone = jax.vmap(lambda point, v: pull(point[None], v[None]))(x, vector)
    alone = jax.tree.map(functools.partial(jnp.sum, axis=0), alone)
    difference = tree_norm(jax.tree.map(jnp.subtract, together, alone))
    return jnp.stack([difference, jnp.maximum(tree_norm(together), tree_norm(alone))])

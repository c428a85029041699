"""Functions of the user, ``apply_fn(params, x, **apply_kwargs)``, with their parameters bound.

Libraries keep other things beside the weights in ``params``: activations, flags, counters, keys,
running averages. :func:`bind` separates them: the weights, by which derivatives are taken; arrays
that are constants; and everything else, which is part of the compiled program. What apply_fn
returns is inspected once, by tracing, without running it. :mod:`softntk.ntk._row_independence`
tests that rows do not interact.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from softntk._core.trained_leaves import trained_leaves
from softntk._core.validation import check_callable

# Kinds of leaves: derivatives are taken by weights; arrays that are constants may change without
# compiling again; static leaves are part of the program.
_WEIGHT_LEAF = "weight"
_CONSTANT_LEAF = "constant"
_STATIC_LEAF = "static"
MAX_DESCRIPTION_LENGTH = 60  # characters of a value in a message


class Static:
    """The static leaves of (params, apply_kwargs), with the structure of all leaves.

    Two of them are equal where the compiled programs are.

    Attributes:
        structure: the structure of (params, apply_kwargs).
        leaves: for each leaf its kind (weight, constant, static) and, if it is static, its value.
    """

    def __init__(self, structure: Any, leaves: tuple):
        """Store the structure and, for each leaf, its kind and value."""
        self.structure = structure
        self.leaves = leaves
        # Types are part of the key, because 1 == True.
        self._key = (structure, tuple((kind, type(value), value) for kind, value in leaves))

    def __eq__(self, other: object) -> bool:
        """Return whether structure and leaves are equal, 1 and True being different."""
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        """Return the hash of structure and leaves."""
        return hash(self._key)


class _ByIdentity:
    """A function that cannot be hashed, such as a module with a list; it equals only itself."""

    def __init__(self, function: Callable):
        self.function = function
        # Each access to a method makes a new object: compare its owner and its function.
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
        weights: the floating-point arrays of params, by which derivatives are taken.
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
        """Return the outputs of apply_fn as they are."""
        # The leaves in their old order, arrays from the arguments, all else from the record.
        leaf_sources = {_WEIGHT_LEAF: iter(weights), _CONSTANT_LEAF: iter(self.constants)}
        leaves = [
            next(leaf_sources[kind]) if kind in leaf_sources else value
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

        def cast_leaf(leaf: Array) -> Array:
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        weights = tuple(map(cast_leaf, self.weights))
        constants = tuple(map(cast_leaf, self.constants))
        return OwnFunction(weights, constants, self.apply_fn, self.static)


# --- parameters ----------------------------------------------------------------------------------


def bind(net: Any, params: Any, x: Float[Array, "n ..."], apply_kwargs: Any = None) -> OwnFunction:
    """Return the OwnFunction of a function, or of a triple that holds one, at these parameters.

    Args:
        net: ``apply_fn(params, x, **apply_kwargs)``, or ``(init_fn, apply_fn, kernel_fn)``.
        params: any pytree. Leaves that are no floating-point arrays are constants. Constants are
            also running averages and caches in the variables of flax.linen, everything but
            ``nnx.Param`` in flax.nnx, and Python floats inside of an equinox module.
        x: points.
        apply_kwargs: further arguments; arrays among them are arguments of the compiled program,
            everything else is static.

    Raises:
        ValueError: net, params or apply_kwargs do not fit each other; apply_fn does not return one
            floating-point array [n] or [n, k].
    """
    # 1. Sort the leaves into weights, constants and static ones, and remember which is which.
    apply_fn = _as_apply_fn(net)
    apply_kwargs = as_keywords(apply_kwargs)
    weights = []
    constants = []
    leaf_kinds = []
    labelled_params = _label_params(params)
    labelled_kwargs = _label_constants(apply_kwargs)
    for name, leaves in (("params", labelled_params), ("apply_kwargs", labelled_kwargs)):
        for kind, leaf in leaves:
            array = _as_array_leaf(name, leaf)
            if array is None:
                leaf_kinds.append((_STATIC_LEAF, _check_hashable(name, leaf)))
            elif kind == _WEIGHT_LEAF and jnp.issubdtype(array.dtype, jnp.floating):
                weights.append(array)
                leaf_kinds.append((_WEIGHT_LEAF, None))
            else:
                constants.append(array)
                leaf_kinds.append((_CONSTANT_LEAF, None))

    # 2. Check that there is something to differentiate by.
    if not weights:
        raise ValueError(
            f"params must hold a floating-point array that is trained, got {_describe(params)}. "
            "Pass the network's weights; register a class of your own as a pytree, e.g. with "
            "jax.tree_util.register_dataclass."
        )

    # 3. Bind, check that the program can be cached, and what the function returns.
    structure = jax.tree.structure((params, apply_kwargs))
    _check_hashable("params", structure)
    function = OwnFunction(
        tuple(weights), tuple(constants), apply_fn, Static(structure, tuple(leaf_kinds))
    )
    check_outputs(function, x)
    return function


def _as_apply_fn(net: Any) -> Callable:
    """Return the function of a triple, or net itself, as something that can be hashed."""
    # 1. The second function of a triple.
    if isinstance(net, tuple):
        if len(net) != 3 or not all(map(callable, net)):
            raise ValueError(
                "net must be a network of two_layer, a triple (init_fn, apply_fn, kernel_fn) or an "
                f"apply_fn(params, x), got a tuple of {len(net)}."
            )
        net = net[1]

    # 2. A function, and no class, whose parameters would be taken for weights.
    check_callable(
        "net", net, "a network of two_layer, a triple of functions or an apply_fn(params, x)"
    )
    if isinstance(net, type):
        raise ValueError(f"net must be an apply_fn(params, x), got the class {net.__name__}.")

    # 3. Programs are cached by the function, so it must be hashable.
    try:
        hash(net)
    except TypeError:
        return _ByIdentity(net)
    return net


def as_keywords(apply_kwargs: object) -> dict[str, Any]:
    """Return further arguments of apply_fn as a dict, empty for None."""
    if apply_kwargs is None:
        return {}
    if not isinstance(apply_kwargs, Mapping) or not all(
        isinstance(name, str) for name in apply_kwargs
    ):
        raise ValueError(
            "apply_kwargs must be a dict of further arguments of apply_fn, e.g. {'train': False}, "
            f"got {_describe(apply_kwargs)}."
        )
    return dict(apply_kwargs)


def refuse_keywords(apply_kwargs: object) -> None:
    """Raise if further arguments are passed for a network of two_layer, which takes none."""
    keywords = as_keywords(apply_kwargs)
    if keywords:
        raise ValueError(
            f"apply_kwargs must be None for a network of two_layer, got {sorted(keywords)}."
        )


def _label_constants(tree: object) -> list[tuple[str, Any]]:
    """Return the leaves in order, each marked as a constant."""
    return [(_CONSTANT_LEAF, leaf) for leaf in jax.tree.leaves(tree)]


def _label_params(params: object) -> list[tuple[str, Any]]:
    """Return the leaves in order, each marked as a weight or a constant."""
    labelled_leaves = []
    for leaf, is_trained in zip(jax.tree.leaves(params), trained_leaves(params), strict=True):
        # A Python float is a weight where jax.grad would differentiate by it.
        is_trained_number = is_trained and isinstance(leaf, float)
        kind = _WEIGHT_LEAF if is_trained else _CONSTANT_LEAF
        labelled_leaves.append((kind, jnp.asarray(leaf) if is_trained_number else leaf))
    return labelled_leaves


def _as_array_leaf(name: str, leaf: object) -> Array | None:
    """Return the leaf as a JAX array, or None if it is no array."""
    if isinstance(leaf, np.ndarray | np.generic) and not isinstance(leaf, jax.Array):
        if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == np.bool_):
            raise ValueError(f"{name} must hold arrays of numbers, got one of dtype {leaf.dtype}.")
        leaf = jnp.asarray(leaf)
    if not isinstance(leaf, jax.Array):
        return None
    if name == "params" and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise ValueError(
            f"params must be real, got an array of dtype {leaf.dtype}. "
            "Pass real and imaginary parts and put them together inside of apply_fn."
        )
    return leaf


def _check_hashable(name: str, value: Any) -> Any:
    """Return the value; raise where it cannot be hashed."""
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a pytree whose leaves are arrays or can be hashed, but: {error}. "
            "Register its class as a pytree, e.g. with jax.tree_util.register_dataclass, or split "
            "it, e.g. with equinox.partition(model, equinox.is_inexact_array)."
        ) from None
    return value


def _describe(value: object) -> str:
    """Return the type and the beginning of the text of a value, for messages."""
    value_text = " ".join(repr(value).split())
    if len(value_text) > MAX_DESCRIPTION_LENGTH:
        value_text = value_text[:MAX_DESCRIPTION_LENGTH] + "…"
    return f"{type(value).__name__}: {value_text}"


# --- outputs -------------------------------------------------------------------------------------


def check_outputs(function: OwnFunction, x: Float[Array, "n ..."]) -> None:
    """Raise if an apply_fn does not return one floating-point array [n] or [n, k]."""
    # One array, of the right shape, of the right dtype.
    out = try_outputs(function, x)
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise ValueError(
            f"apply_fn must return one array [n] or [n, k], got {_describe_outputs(out)}. "
            "Return the outputs alone, e.g. lambda params, x: apply_fn(params, x)[0]; "
            "of flax.linen, without mutable=…."
        )
    shape = out.shape
    if len(shape) not in (1, 2) or shape[0] != len(x) or 0 in shape:
        flatten_advice = " Flatten them: .reshape(len(x), -1)." if len(shape) > 2 else ""
        raise ValueError(
            f"apply_fn must return [n] or [n, k], one row a point, "
            f"got shape {shape} for x of shape {x.shape}.{flatten_advice}"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"apply_fn must return floating-point numbers, got dtype {out.dtype}.")


def trace_outputs(function: OwnFunction, x: Array | jax.ShapeDtypeStruct) -> Any:
    """Return shapes and dtypes of what apply_fn returns; traced once for each program."""

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        # Without the sharding, so that one trace serves all meshes.
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return _evaluate.eval_shape(*jax.tree.map(describe, (function, x)))


_evaluate = jax.jit(lambda function, x: function.evaluate(function.weights, x))


def try_outputs(function: OwnFunction, x: Array | jax.ShapeDtypeStruct) -> Any:
    """Return :func:`trace_outputs`; name the call in the message if it fails."""
    try:
        return trace_outputs(function, x)
    except Exception as error:
        keywords = jax.tree.unflatten(function.static.structure, function.static.leaves)[1]
        names = "".join(f", {name}=…" for name in keywords)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"apply_fn(params, x{names}) fails for x of shape {x.shape}: {reason} "
            "Check params, their order (params come first) and apply_kwargs; "
            "any number of rows must be possible."
        ) from error


def _describe_outputs(out: object) -> str:
    """Return what apply_fn returned, in words, for messages."""
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of {len(out)}"
    if isinstance(out, dict):
        return f"a dict of {sorted(map(str, out))}"
    return type(out).__name__

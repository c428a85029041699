"""A key under which traced programs that do the same share what XLA compiled.

JAX stores compiled programs by the identity of the Python function. A loss or a transform that is
created for each call, ``lambda p: f(p, x)``, is another function each time, and so the same program
is compiled again. Its trace, a jaxpr, is the same up to the names of variables. The key of
a jaxpr is what remains without these names: two programs with equal keys map equal inputs to equal
outputs.

Derivative rules (of ``jax.custom_jvp`` and ``jax.custom_vjp``) are no part of the key, because they
do not change what a program evaluates to. So a shared program may be evaluated, not differentiated.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.extend.core
import numpy as np

from softntk._core.meshes import varying_axes
from softntk._core.validation import is_concrete

# Parameters that only matter when a program is differentiated; and ``flatten``, in which equinox
# records the structure of outputs, which follows from the other parameters.
IGNORED_PARAMETERS = frozenset(
    {"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees", "jvp", "flatten"}
)

MAX_COMPARED_SIZE = 1024
"""Arrays inside a program up to this size are compared by value, larger ones by identity."""


def program_key(jaxpr: jax.extend.core.Jaxpr) -> Hashable:
    """Return a key that is equal for jaxprs which differ in the names of their variables only.

    Args:
        jaxpr: a traced program; its constants are inputs like the others.

    Returns:
        Nested tuples. They hold on to the objects that are compared by identity, so that no other
        object can take their place as long as the key lives.
    """
    # 1. Number the variables in the order in which they are bound.
    numbers: dict[Any, int] = {}

    def bind(variables: list) -> tuple:
        for variable in variables:
            numbers[variable] = len(numbers)
        return tuple(str_of_type(variable.aval) for variable in variables)

    def atom(value: Any) -> Hashable:
        if isinstance(value, jax.extend.core.Literal):
            return "literal", str_of_type(value.aval), _parameter_key(value.val)
        return numbers[value]

    # 2. One tuple an equation: what it does, to which variables, under which context.
    inputs = bind(jaxpr.constvars), bind(jaxpr.invars)
    equations = []
    for equation in jaxpr.eqns:
        operands = tuple(map(atom, equation.invars))
        parameters = tuple(
            (name, _parameter_key(value))
            for name, value in sorted(equation.params.items())
            if name not in IGNORED_PARAMETERS
        )
        results = bind(equation.outvars)
        context = _parameter_key(getattr(equation, "ctx", None))
        equations.append((equation.primitive, operands, parameters, results, context))
    return inputs, tuple(equations), tuple(map(atom, jaxpr.outvars))


def str_of_type(aval: Any) -> str:
    """Return shape, dtype, weak type, sharding and varying axes of an abstract value as text."""
    weak = getattr(aval, "weak_type", False)
    sharding = getattr(aval, "sharding", None)
    return f"{aval.str_short()} {weak} {sharding} {sorted(map(str, varying_axes(aval)))}"


class _Identity:
    """An object that is equal to itself only; it keeps the object alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value


def _parameter_key(value: Any) -> Hashable:
    """Return a key that compares a parameter of an equation by value, or else by identity."""
    if isinstance(value, jax.extend.core.ClosedJaxpr):
        constants = tuple(map(_parameter_key, value.consts))
        return "closed", program_key(value.jaxpr), constants
    if isinstance(value, jax.extend.core.Jaxpr):
        return "jaxpr", program_key(value)
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        # The text tells 1 from True, 0.0 from -0.0, and is equal for two NaNs.
        return type(value).__name__, repr(value)
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_parameter_key, value))
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return type(value), tuple((str(name), _parameter_key(part)) for name, part in items)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array_key(value)
    return _hashable_or_identity(value)


def _array_key(value: np.ndarray | np.generic | jax.Array) -> Hashable:
    """Return a key of an array: its entries if they are few numbers, else its identity."""
    if not is_concrete(value):
        # A traced array belongs to one trace: it equals nothing, and must not be kept alive.
        return _Identity(object())
    is_number = not jax.numpy.issubdtype(value.dtype, jax.dtypes.extended)
    is_small = is_number and value.dtype != object and value.size <= MAX_COMPARED_SIZE
    is_local = not isinstance(value, jax.Array) or value.is_fully_addressable
    if not (is_small and is_local):
        return _Identity(value)
    return "array", value.shape, str(value.dtype), np.asarray(value).tobytes()


def _hashable_or_identity(value: Any) -> Hashable:
    """Return a key that compares a value by == if it can be hashed, else by identity."""
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return type(value), value

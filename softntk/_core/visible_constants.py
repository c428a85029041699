"""Functions whose closed-over arrays can be seen by the program around them.

A function that closes over data, ``jax.jit(lambda p: loss(p, x, y))``, holds x and y as constants
of its own compiled program. Where such a function is called inside of a larger program, they stay
hidden in it: the larger program is compiled anew for other data of the same shapes, and keeps a
copy of them. Here the function is traced once, and its inner compiled functions are dissolved, so
that their constants belong to the program around it, as those of a function without ``jit`` do.
Constants inside of the function's loops, branches and custom derivative rules stay hidden.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import equinox as eqx
import jax
import jax.extend.core
from jaxtyping import PyTree

from softntk._core.bound_loss import BoundLoss
from softntk._core.closures import has_arrays
from softntk._core.records import function_record, static

JIT_PRIMITIVES = ("jit", "pjit")
"""Names of the primitive that calls a compiled function, of newer and older versions of JAX."""

CLOSED_FORMS = ("gradient", "value_and_gradient", "hessian", "check")
"""Functions with one of these attributes have derivatives of their own: they are not traced."""


@function_record
class TracedFunction:
    """A function as a pytree of the arrays that it closes over.

    It takes arguments of the shapes and dtypes for which it was traced.

    Attributes:
        constants: the arrays that the function closes over.
        jaxpr: the trace.
        structure: the tree structure of the results.
    """

    constants: list
    jaxpr: jax.extend.core.Jaxpr = static()
    structure: Any = static()

    def __call__(self, *arguments: PyTree) -> PyTree:
        """Return what the function returns."""
        leaves = filter(eqx.is_array, jax.tree.leaves(arguments))
        bound_jaxpr = jax.extend.core.ClosedJaxpr(self.jaxpr, self.constants)
        results = jax.extend.core.jaxpr_as_fun(bound_jaxpr)(*leaves)
        return jax.tree.unflatten(self.structure, results)


def trace_function(function: Callable[..., PyTree], *arguments: PyTree) -> TracedFunction:
    """Return a function as a pytree of the arrays that it closes over.

    Args:
        function: a function of the arguments; the result has the derivatives of it.
        arguments: arrays or shapes; leaves of other types are static, and the same in each call.
    """
    jaxpr, shapes = _trace(function, arguments)
    if _hides_constants(jaxpr.jaxpr):
        # Tracing once more makes the constants of inner programs constants of this trace.
        inner_jaxpr = jaxpr
        jaxpr = jax.make_jaxpr(
            lambda *leaves: _evaluate(inner_jaxpr.jaxpr, inner_jaxpr.consts, leaves)
        )(*inner_jaxpr.in_avals)
    return TracedFunction(jaxpr.consts, jaxpr.jaxpr, jax.tree.structure(shapes))


def _trace(
    function: Callable[..., PyTree], arguments: tuple
) -> tuple[jax.extend.core.ClosedJaxpr, PyTree]:
    """Return the trace of a function of the arrays among its arguments, and its results' shapes."""
    arrays, static_leaves = eqx.partition(
        arguments, lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    )

    def function_of_arrays(arrays: PyTree) -> PyTree:
        return function(*eqx.combine(arrays, static_leaves))

    return jax.make_jaxpr(function_of_arrays, return_shape=True)(arrays)


def with_visible_constants(function: Any, *arguments: PyTree) -> Any:
    """Return the same function, without constants that are hidden in inner compiled functions.

    Use it inside of a program that calls a user's function. A function that hides none, or has
    closed forms, is returned as it is.

    Args:
        function: a user's loss, or a :class:`~softntk._core.bound_loss.BoundLoss` of one.
        arguments: examples, of the shapes and dtypes that it will be called with.
    """
    if isinstance(function, BoundLoss):
        (params,) = arguments
        inner_arguments = (function.complete(params), *function.args)
        inner = with_visible_constants(function.function, *inner_arguments)
        return BoundLoss(inner, function.args, function.constants)
    if has_arrays(function) or any(hasattr(function, name) for name in CLOSED_FORMS):
        return function
    jaxpr, _ = _trace(function, arguments)
    return trace_function(function, *arguments) if _hides_constants(jaxpr.jaxpr) else function


def _hides_constants(jaxpr: jax.extend.core.Jaxpr) -> bool:
    """Return whether a compiled function that a trace calls has arrays as constants."""
    return any(
        _holds_constants(equation.params["jaxpr"])
        for equation in jaxpr.eqns
        if equation.primitive.name in JIT_PRIMITIVES
    )


def _holds_constants(program: jax.extend.core.ClosedJaxpr) -> bool:
    """Return whether a compiled function has arrays as constants, or calls one that has."""
    is_array = [isinstance(constant, jax.Array) for constant in program.consts]
    return any(is_array) or _hides_constants(program.jaxpr)


def _evaluate(
    jaxpr: jax.extend.core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]
) -> list:
    """Return the results of a trace, with inner compiled functions that hide constants dissolved.

    Except for these functions it does what ``jax.extend.core.jaxpr_as_fun`` does.
    """
    # 1. Give values to the inputs.
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]

    # 2. Evaluate one equation after the other.
    for equation in jaxpr.eqns:
        operands = list(map(read, equation.invars))
        is_program = equation.primitive.name in JIT_PRIMITIVES
        if is_program and _holds_constants(equation.params["jaxpr"]):
            program = equation.params["jaxpr"]
            results = _evaluate(program.jaxpr, program.consts, operands)
        else:
            results = _evaluate_equation(equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _evaluate_equation(equation: jax.extend.core.JaxprEqn, operands: list) -> Sequence[Any]:
    """Return the results of one equation of a trace."""
    # Older versions of JAX return a pair: the operands that are functions, and the parameters.
    parameters = equation.primitive.get_bind_params(equation.params)
    functions = ()
    if isinstance(parameters, tuple):
        functions, parameters = parameters
    with getattr(equation.ctx, "manager", nullcontext()):
        results = equation.primitive.bind(*functions, *operands, **parameters)
    return results if equation.primitive.multiple_results else [results]

"""Compiled programs that are shared by functions with equal traces.

``jax.jit`` compiles each function object anew, and the losses, transforms and scores of users are
often new objects for every call. Here a function is traced, which takes milliseconds. What XLA
compiled for an equal trace is used again, which saves seconds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
from jaxtyping import PyTree

from softntk._core.program_key import program_key
from softntk._core.validation import is_concrete

MAX_SHARED_PROGRAMS = 256
"""How many programs are kept: those that were used last."""

_PROGRAMS: dict[Any, Callable[..., list]] = {}


def share_program(
    function: Callable[..., PyTree], arguments: tuple
) -> tuple[Callable[..., PyTree], list]:
    r"""Return a compiled function of (constants, \*arguments), and the arrays it closes over.

    Args:
        function: a function of arrays and pytrees of arrays; it is called once, with traced
            arguments.
        arguments: examples, of the shapes and dtypes that the result will be called with.

    Returns:
        The compiled function, and its first argument: a list of arrays. Inside of a transformation
        some of them may be traced; derivatives by them are those of the function.
    """
    # 1. Trace; what the function closes over becomes an argument, so that it is not in the key.
    closed_jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    structure = jax.tree.structure(shapes)
    # 2. A shared program may have another function's derivative rules, so it is only evaluated:
    #    under a transformation the function's own program is used.
    own_program = _compile(closed_jaxpr.jaxpr)
    shared_program = _find_or_store(program_key(closed_jaxpr.jaxpr), own_program)

    def run_program(constants: list, *arguments: Any) -> PyTree:
        leaves = jax.tree.leaves(arguments)
        is_evaluation = all(map(is_concrete, constants)) and all(map(is_concrete, leaves))
        program = shared_program if is_evaluation else own_program
        return jax.tree.unflatten(structure, program(constants, leaves))

    return run_program, closed_jaxpr.consts


def evaluate_shared(function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """Return ``function(*arguments)``, computed by a program that equal functions share.

    Use it for a dozen small operations outside of ``jax.jit``, each of which would otherwise be
    compiled by itself.
    """
    run_program, constants = share_program(function, arguments)
    return run_program(constants, *arguments)


def _compile(jaxpr: jax.extend.core.Jaxpr) -> Callable[..., list]:
    """Return a compiled function of (constants, leaves of the arguments)."""

    @jax.jit
    def program(constants: list, leaves: list) -> list:
        bound_jaxpr = jax.extend.core.ClosedJaxpr(jaxpr, constants)
        return jax.extend.core.jaxpr_as_fun(bound_jaxpr)(*leaves)

    return program


def _find_or_store(key: Any, program: Callable[..., list]) -> Callable[..., list]:
    """Return the program that is stored under an equal key, or store this one."""
    stored = _PROGRAMS.pop(key, program)
    _PROGRAMS[key] = stored  # moved to the end: the first one is the least recently used
    if len(_PROGRAMS) > MAX_SHARED_PROGRAMS:
        _PROGRAMS.pop(next(iter(_PROGRAMS)))
    return stored

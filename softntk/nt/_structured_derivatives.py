"""STRUCTURED_DERIVATIVES and AUTO of neural_tangents on current JAX; applied by :mod:`softntk.nt`.

STRUCTURED_DERIVATIVES linearises the network in its parameters, walks that linear program backwards
one equation at a time and contracts the Jacobian of each equation that reads a parameter, using its
structure (a weight matrix acts on each row alike, a bias is broadcast, …). The walk and the
structure rules are those of neural_tangents, unchanged. Four of its steps used JAX's internals, and
are written anew here in JAX's public API: linearise, transpose an equation, differentiate an
equation, and read a value.
"""

import contextlib
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters.ad import UndefinedPrimal, Zero
from jaxtyping import Array

from softntk.nt._views import View

# A module of neural_tangents, whose attributes the repair replaces.
Module = Any
# The value of a variable: an array; UndefinedPrimal, for a linear input without one; or a
# ShapedArray, where a structure rule has trimmed an input to its shape.
Value = Any
Atom = Var | Literal

# Primitives that call a program, which stands in their place here: no structure rule looks into a
# call.
INLINED_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")


def repair(empirical: Module) -> None:
    """Replace the steps of ``neural_tangents._src.empirical`` that used JAX's internals."""
    empirical._get_primals_out_and_pullback = _primals_out_and_pullback(empirical)
    empirical._eqn_vjp_fn = _transpose_equation
    empirical._eqn_jvp_fn = _differentiate_equation
    empirical._read_primal = _read_primal
    empirical._get_flops = _count_flops
    # Names in profiles, and the checks of jax_enable_checks: neither changes a result.
    empirical.ad = View(
        empirical.ad,
        source_info_util=types.SimpleNamespace(
            transform_name_stack=lambda _: contextlib.nullcontext()
        ),
        config=types.SimpleNamespace(jax_enable_checks=False),
    )


# --- the linear program ---


def _bind(eqn: JaxprEqn, values: Sequence[Value]) -> list:
    """Evaluate an equation; return its outputs."""
    outputs = eqn.primitive.bind(*values, **eqn.params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _read(env: Mapping[Var, Value], atom: Atom) -> Value:
    """Return the value of a variable or literal."""
    return atom.val if isinstance(atom, Literal) else env[atom]


def _split(x: Array, sizes: Sequence[int | np.integer], axis: int) -> list[Array]:
    """Split an array by slices, which are one primitive each."""
    slice_ends = np.cumsum(np.asarray(sizes))
    return [
        jax.lax.slice_in_dim(x, int(end - size), int(end), axis=axis)
        for size, end in zip(sizes, slice_ends, strict=True)
    ]


def _flatten_program(jaxpr: Jaxpr, consts: Sequence[Value], *args: Value) -> list:
    """Evaluate a program without calls and without ``split``, so that each equation has one output.

    ``jnp.split`` was slices when neural_tangents was written. Now it is one primitive of many
    outputs, which neural_tangents refuses.
    """
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        values = [_read(env, atom) for atom in eqn.invars]
        if eqn.primitive.name == "split":
            outputs = _split(values[0], **eqn.params)
        elif eqn.primitive.name in INLINED_CALLS:
            called_program = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
            body_consts = getattr(called_program, "consts", ())
            outputs = _flatten_program(
                getattr(called_program, "jaxpr", called_program), body_consts, *values
            )
        else:
            outputs = _bind(eqn, values)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [_read(env, atom) for atom in jaxpr.outvars]


def _make_linear_program(
    linear: Callable, tangents: Sequence[jax.ShapeDtypeStruct]
) -> tuple[types.SimpleNamespace, list]:
    """Return the program of a linear function, and its constants.

    All its equations are linear and needed by an output: the backward walk takes every equation for
    a linear one. Equations without a tangent (recomputation under ``jax.checkpoint``, a constant
    that a rule computes late) are evaluated here and become constants.
    """
    # 1. Trace, and trace again without calls.
    traced = jax.make_jaxpr(linear)(*tangents)
    flat_program = jax.make_jaxpr(
        lambda *args: _flatten_program(traced.jaxpr, traced.consts, *args)
    )(*tangents)
    # 2. Evaluate the equations that depend on constants only.
    constants: dict = dict(zip(flat_program.jaxpr.constvars, flat_program.consts, strict=True))
    linear_equations = []
    for eqn in flat_program.jaxpr.eqns:
        if all(isinstance(atom, Literal) or atom in constants for atom in eqn.invars):
            _evaluate_constant(eqn, constants)
        else:
            linear_equations.append(eqn)
    # 3. Remove the equations that no output needs.
    needed_vars = {atom for atom in flat_program.jaxpr.outvars if not isinstance(atom, Literal)}
    live_equations = []
    for eqn in reversed(linear_equations):
        if needed_vars.intersection(eqn.outvars):
            live_equations.append(eqn)
            needed_vars.update(atom for atom in eqn.invars if not isinstance(atom, Literal))
    program = types.SimpleNamespace(
        constvars=list(constants),
        invars=flat_program.jaxpr.invars,
        outvars=flat_program.jaxpr.outvars,
        eqns=live_equations[::-1],
    )
    return program, list(constants.values())


def _evaluate_constant(eqn: JaxprEqn, constants: MutableMapping[Var, Value]) -> None:
    """Evaluate an equation of constants, and add its outputs to them."""
    values = [_read(constants, atom) for atom in eqn.invars]
    constants.update(zip(eqn.outvars, _bind(eqn, values), strict=True))


def _primals_out_and_pullback(empirical: Module) -> Callable:
    """Linearise with ``jax.linearize``: ``ad.linearize`` takes and returns other things now."""

    def primals_out_and_pullback(
        fn: Callable, mode: Any, _j_rules: bool, _s_rules: bool, _fwd: bool | None, *primals_in: Any
    ) -> tuple[Any, Callable]:
        """Return fn(*primals_in) and the pullback by neural_tangents' backward walk."""
        leaves, in_tree = jax.tree.flatten(primals_in)
        tangents = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
        # Without jit, as in neural_tangents: no calls in the program.
        with jax.disable_jit():
            primals_out, linear = jax.linearize(
                lambda *xs: fn(*jax.tree.unflatten(in_tree, xs)), *leaves
            )
            program, consts = _make_linear_program(linear, tangents)

        def pullback(*cotangents: Any) -> Any:
            pulled_back = empirical._backward_pass(
                program,
                mode=mode,
                consts=consts,
                primals_in=[UndefinedPrimal(var.aval) for var in program.invars],
                cotangents_in=tuple(jax.tree.leaves(cotangents)),
                _j_rules=_j_rules,
                _s_rules=_s_rules,
                _fwd=_fwd,
            )
            return jax.tree.unflatten(in_tree, pulled_back)

        return primals_out, pullback

    return primals_out_and_pullback


# --- one equation ---


def _read_primal(env: Mapping[Var, Value], atom: Atom) -> Value:
    """Return the value of an input, or an ``UndefinedPrimal`` where it has none.

    neural_tangents used ``DShapedArray`` for this, which has left JAX.
    """
    return atom.val if isinstance(atom, Literal) else env.get(atom, UndefinedPrimal(atom.aval))


def _zeros_if_abstract(x: Value) -> Value:
    """Return x, or zeros of its shape where only the shape is left.

    A structure rule has trimmed such an input; its values do not matter.
    """
    aval = getattr(x, "aval", x)
    if isinstance(x, UndefinedPrimal | jax.core.ShapedArray):
        return jnp.zeros(aval.shape, aval.dtype)
    return x


def _transpose_equation(eqn: JaxprEqn | None, cotangent: Value, *values: Value) -> Sequence[Any]:
    """Return the cotangents of the linear inputs of an equation, ``None`` for other inputs.

    Without an equation the map is the identity. With ``jax.linear_transpose``: the tables of
    transposition rules were ``ad.reducing_transposes`` and others, with other signatures.
    """
    if eqn is None:
        return (cotangent,)
    if isinstance(cotangent, Zero):
        return [Zero(atom.aval) for atom in eqn.invars]
    linear_inputs = [i for i, value in enumerate(values) if isinstance(value, UndefinedPrimal)]

    def forward(*xs: Any) -> Any:
        linear_values = dict(zip(linear_inputs, xs, strict=True))
        inputs = [
            linear_values[i] if i in linear_values else _zeros_if_abstract(value)
            for i, value in enumerate(values)
        ]
        return _bind(eqn, inputs)[0]

    shapes = [
        jax.ShapeDtypeStruct(values[i].aval.shape, values[i].aval.dtype) for i in linear_inputs
    ]
    output: Any = eqn.outvars[0].aval
    linear_cotangents = jax.linear_transpose(forward, *shapes)(cotangent.astype(output.dtype))
    cotangents = dict(zip(linear_inputs, linear_cotangents, strict=True))
    return [cotangents.get(i) for i in range(len(values))]


def _differentiate_equation(eqn: JaxprEqn | None, idx: int, tangents: Any, *values: Value) -> Any:
    """Return the tangent of the output of an equation that is linear in input ``idx``.

    Without an equation the map is the identity.
    """
    if eqn is None:
        return tangents

    def forward(x: Value) -> Value:
        inputs = [x if i == idx else _zeros_if_abstract(value) for i, value in enumerate(values)]
        return _bind(eqn, inputs)[0]

    return jax.jvp(forward, (jnp.zeros_like(tangents),), (tangents,))[1]


# --- AUTO ---


def _count_flops(f: Callable, optimize: bool, *args: Any, **kwargs: Any) -> float:
    """Return the number of operations of ``f``; infinity for what cannot run, so AUTO avoids it.

    ``cost_analysis`` returned a list; now it is a dict.
    """
    try:
        lowered = jax.jit(f).lower(*args, **kwargs)
    except NotImplementedError:
        return float("inf")
    cost_analysis: Any = (lowered.compile() if optimize else lowered).cost_analysis()
    return cost_analysis["flops"]

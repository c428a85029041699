"""STRUCTURED_DERIVATIVES and AUTO of neural_tangents on current JAX; applied by :mod:`softntk.nt`.

STRUCTURED_DERIVATIVES linearises the network in its parameters, walks that linear program backwards
one equation at a time and contracts the Jacobian of each equation that reads a parameter, using its
structure (a weight matrix acts on each row alike, a bias is broadcast, …). The walk and the
structure rules are neural_tangents' own and untouched. Its four steps that went through JAX's
internals are given anew in public API: linearise, transpose an equation, differentiate one, read a
value.
"""

import contextlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.interpreters.ad import UndefinedPrimal, Zero

from softntk.nt._views import View

INLINED = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
"""Calls whose body stands in the program instead of them: no structure rule sees through a call."""


def repair(empirical: Any) -> None:
    """Give ``neural_tangents._src.empirical`` the steps that it took with JAX's internals."""
    empirical._get_primals_out_and_pullback = _primals_out_and_pullback(empirical)
    empirical._eqn_vjp_fn = _transpose_equation
    empirical._eqn_jvp_fn = _differentiate_equation
    empirical._read_primal = _read_primal
    empirical._get_flops = _flops
    # Names in profiles, and the checks of jax_enable_checks: neither changes a result.
    empirical.ad = View(
        empirical.ad,
        source_info_util=types.SimpleNamespace(
            transform_name_stack=lambda _: contextlib.nullcontext()
        ),
        config=types.SimpleNamespace(jax_enable_checks=False),
    )


# --- the linear program
# -------------------------------------------------------------------------------------------


def _bind(eqn: Any, values: Sequence[Any]) -> list:
    out = eqn.primitive.bind(*values, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _read(env: Mapping[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, Literal) else env[atom]


def _split(x: Any, sizes: Any, axis: int) -> list:
    ends = np.cumsum(sizes)
    return [
        jax.lax.slice_in_dim(x, int(end - size), int(end), axis=axis)
        for size, end in zip(sizes, ends, strict=True)
    ]


def _flatten_program(jaxpr: Any, consts: Sequence[Any], *args: Any) -> list:
    """Evaluate a program without calls, and with slices for ``split``: each equation gets one
    output.

    ``jnp.split`` was slices when neural_tangents was written; now it is one primitive of many
    outputs, which it refuses.
    """
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        values = [_read(env, v) for v in eqn.invars]
        if eqn.primitive.name == "split":
            out = _split(values[0], **eqn.params)
        elif eqn.primitive.name in INLINED:
            body = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
            out = _flatten_program(
                getattr(body, "jaxpr", body), getattr(body, "consts", ()), *values
            )
        else:
            out = _bind(eqn, values)
        env.update(zip(eqn.outvars, out, strict=True))
    return [_read(env, v) for v in jaxpr.outvars]


def _linear_program(linear: Callable, tangents: Sequence[jax.ShapeDtypeStruct]) -> tuple[Any, list]:
    """The program of a linear function and its constants, with none but linear equations that an
    output needs.

    What depends on no tangent (recomputation under ``jax.checkpoint``, a constant that a rule
    computes late) is evaluated here and becomes a constant: the backward walk takes every equation
    for a linear one.
    """
    closed = jax.make_jaxpr(linear)(*tangents)
    closed = jax.make_jaxpr(lambda *args: _flatten_program(closed.jaxpr, closed.consts, *args))(
        *tangents
    )
    known: dict = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    equations = []
    for eqn in closed.jaxpr.eqns:
        if all(isinstance(v, Literal) or v in known for v in eqn.invars):
            known.update(
                zip(eqn.outvars, _bind(eqn, [_read(known, v) for v in eqn.invars]), strict=True)
            )
        else:
            equations.append(eqn)
    needed = {v for v in closed.jaxpr.outvars if not isinstance(v, Literal)}
    live = []
    for eqn in reversed(equations):
        if needed.intersection(eqn.outvars):
            live.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    program = types.SimpleNamespace(
        constvars=list(known),
        invars=closed.jaxpr.invars,
        outvars=closed.jaxpr.outvars,
        eqns=live[::-1],
    )
    return program, list(known.values())


def _primals_out_and_pullback(empirical: Any) -> Callable:
    """Linearise with ``jax.linearize``: ``ad.linearize`` takes and returns other things now."""

    def primals_out_and_pullback(
        fn: Callable, mode: Any, _j_rules: bool, _s_rules: bool, _fwd: bool | None, *primals_in: Any
    ) -> tuple[Any, Callable]:
        leaves, in_tree = jax.tree.flatten(primals_in)
        tangents = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
        with jax.disable_jit():  # as in neural_tangents: no calls in the program
            primals_out, linear = jax.linearize(
                lambda *xs: fn(*jax.tree.unflatten(in_tree, xs)), *leaves
            )
            jaxpr, consts = _linear_program(linear, tangents)

        def pullback(*cotangents: Any) -> Any:
            out = empirical._backward_pass(
                jaxpr,
                mode=mode,
                consts=consts,
                primals_in=[UndefinedPrimal(v.aval) for v in jaxpr.invars],
                cotangents_in=tuple(jax.tree.leaves(cotangents)),
                _j_rules=_j_rules,
                _s_rules=_s_rules,
                _fwd=_fwd,
            )
            return jax.tree.unflatten(in_tree, out)

        return primals_out, pullback

    return primals_out_and_pullback


# --- one equation
# -------------------------------------------------------------------------------------------------


def _read_primal(env: Mapping[Any, Any], v: Any) -> Any:
    """The value of an input, or that it has none (without ``DShapedArray``, which is gone)."""
    return v.val if isinstance(v, Literal) else env.get(v, UndefinedPrimal(v.aval))


def _concrete(x: Any) -> Any:
    # Where a structure rule has trimmed an input to its shape, the values do not matter.
    aval = getattr(x, "aval", x)
    return (
        jnp.zeros(aval.shape, aval.dtype)
        if isinstance(x, UndefinedPrimal | jax.core.ShapedArray)
        else x
    )


def _transpose_equation(eqn: Any, cotangent: Any, *values: Any) -> Sequence[Any]:
    """Cotangents of the linear inputs of an equation, ``None`` for the others (None for an
    equation: the identity).

    With ``jax.linear_transpose``: tables of transposition rules were ``ad.reducing_transposes`` and
    others, with other signatures.
    """
    if eqn is None:
        return (cotangent,)
    if isinstance(cotangent, Zero):
        return [Zero(v.aval) for v in eqn.invars]
    linear = [i for i, value in enumerate(values) if isinstance(value, UndefinedPrimal)]

    def forward(*xs: Any) -> Any:
        new = dict(zip(linear, xs, strict=True))
        return _bind(
            eqn, [new[i] if i in new else _concrete(value) for i, value in enumerate(values)]
        )[0]

    shapes = [jax.ShapeDtypeStruct(values[i].aval.shape, values[i].aval.dtype) for i in linear]
    out = jax.linear_transpose(forward, *shapes)(cotangent.astype(eqn.outvars[0].aval.dtype))
    cotangents = dict(zip(linear, out, strict=True))
    return [cotangents.get(i) for i in range(len(values))]


def _differentiate_equation(eqn: Any, idx: int, tangents: Any, *values: Any) -> Any:
    """Tangent of the output of an equation, linear in input ``idx`` (None for an equation: the
    identity).
    """
    if eqn is None:
        return tangents

    def forward(x: Any) -> Any:
        return _bind(eqn, [x if i == idx else _concrete(value) for i, value in enumerate(values)])[
            0
        ]

    return jax.jvp(forward, (jnp.zeros_like(tangents),), (tangents,))[1]


# --- AUTO
# ---------------------------------------------------------------------------------------------------------


def _flops(f: Callable, optimize: bool, *args: Any, **kwargs: Any) -> float:
    """Operations that ``f`` takes: ``cost_analysis`` is a dict now.

    What cannot run takes infinitely many: never chosen.
    """
    try:
        lowered = jax.jit(f).lower(*args, **kwargs)
    except NotImplementedError:
        return float("inf")
    analysis: Any = (lowered.compile() if optimize else lowered).cost_analysis()
    return analysis["flops"]

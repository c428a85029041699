r"""What sampling and likelihoods share: score functions as pytrees, and the probability-flow
equation.

A VP process is a rotation, X_t = cos θ X_0 + sin θ ε with cos θ = α and sin θ = √h, and in the
angle its probability flow is

    dX/dθ = −tan θ (X + s(t, X)) = E[−sin θ X_0 + cos θ ε | X],

whatever the schedule. The right-hand side is of the size of data and noise at every θ; in t and in
the log-SNR the same accuracy takes more evaluations (``sampling`` has the numbers).

Source: the angle, Salimans and Ho (2022), arXiv 2202.00512, section 4 and appendix D.
"""

import types
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from softntk._core.validation import check_number, is_concrete
from softntk.diffusion._arguments import as_output, check_known
from softntk.diffusion._sde import VPSDE
from softntk.solution import Result

ScoreFn = Callable[[Any, Any], Any]  # (t, x) -> [n, d]: t a scalar, x [n, d]

_CONVERTED: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()


def diffrax() -> Any:
    """Return the module, which is an extra."""
    try:
        import diffrax as module
    except ImportError as error:
        raise ImportError(
            "Sampling and likelihoods need diffrax: pip install 'softntk[diffusion]'."
        ) from error
    return module


def as_pytree(score_fn: ScoreFn, shape: tuple[int, int], dtype: Any) -> ScoreFn:
    """Return the same function with its arrays as leaves: arguments of compiled programs, not
    constants copied into them.

    A pytree with arrays is that already, and so is a bound method of one. Any other function is
    traced once for each shape, and what it closes over becomes the leaves.
    """
    method = isinstance(score_fn, types.MethodType)
    if method and _has_arrays(score_fn.__self__):
        return jax.tree_util.Partial(score_fn.__func__, _on_device(score_fn.__self__))
    if _has_arrays(score_fn):
        return _on_device(score_fn)
    owner, name = (score_fn.__self__, score_fn.__func__) if method else (score_fn, None)
    try:
        known = _CONVERTED.setdefault(owner, {})
    except TypeError:  # neither hashable nor weakly referable: traced anew each time
        known = {}
    key = (name, shape, jnp.dtype(dtype))
    if key not in known:
        example = jax.ShapeDtypeStruct((), dtype), jax.ShapeDtypeStruct(shape, dtype)
        converted = eqx.filter_closure_convert(score_fn, *example)
        if is_traced(converted):
            return converted
        known[key] = converted
    return known[key]


def is_traced(tree: Any) -> bool:
    """Return whether any leaf is traced."""
    return not all(map(is_concrete, jax.tree.leaves(tree)))


def _has_arrays(tree: Any) -> bool:
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(tree))


def _on_device(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree
    )


def score_at(score_fn: ScoreFn, t: Array, x: Array) -> Array:
    """Return the score in the dtype of x.

    Raises:
        ValueError: no array of real numbers of the shape of x.
    """
    return as_output("score_fn", score_fn(jnp.asarray(t, x.dtype), x), x)


def angles(sde: VPSDE, min_time: float, dtype: Any) -> tuple[Array, Array]:
    """Return θ with cos θ = α and sin θ = √h, exact at both ends: of T, or where α is the unit of
    rounding, and of min_time.
    """
    t = jnp.stack([jnp.asarray(sde.horizon, dtype), jnp.asarray(min_time, dtype)])
    first, last = jnp.arctan2(jnp.sqrt(sde.variance(t)), sde.alpha(t))
    return jnp.minimum(first, jnp.arctan(1 / jnp.finfo(dtype).eps).astype(dtype)), last


def time_of_angle(sde: VPSDE, theta: Array) -> Array:
    """Return the time where the angle is θ."""
    return sde.time(-2 * jnp.log(jnp.tan(theta)))


def flow(
    field: Callable[[Array, Array], tuple[Array, ...]],
    state: tuple[Array, ...],
    ends: tuple[Array, Array],
    tolerances: tuple[float, float],
    max_steps: int,
) -> tuple[tuple[Array, ...], Array, Array]:
    """Integrate the rows of a state, all with the same steps, each to the tolerance; a bad row does
    not stop the others.

    Args:
        field: (θ, x) → the derivatives of the state, whose first entry is x.
        state: x, [n, d], and quantities integrated along its path, each [n].
        ends: first and last θ.
        tolerances: relative and absolute, of a step: the root mean square over the coordinates of
            x, the most demanding row.
        max_steps: at most so many.

    Returns:
        The state at the end; which rows met a derivative that was not finite, [n]; a code, 0 or
        ``Result.MAX_STEPS``.
    """
    dfx = diffrax()

    def guarded(
        theta: Array, carry: tuple[tuple[Array, ...], Array], _: None
    ) -> tuple[tuple[Array, ...], Array]:
        derivatives = field(theta, carry[0][0])
        finite = [jnp.isfinite(part).reshape(len(part), -1).all(axis=1) for part in derivatives]
        bad = ~jnp.stack(finite).all(axis=0)
        still = tuple(
            jnp.where(jnp.expand_dims(bad, range(1, part.ndim)), 0, part) for part in derivatives
        )
        return still, jnp.where(bad, 1.0, 0.0).astype(carry[1].dtype)

    def norm(scaled: tuple[tuple[Array, ...], Array]) -> Array:
        return jnp.sqrt(jnp.max(jnp.stack([_per_row(part) for part in scaled[0]])))

    first, last = ends
    solution = dfx.diffeqsolve(
        dfx.ODETerm(guarded),
        dfx.Tsit5(),
        first,
        last,
        (last - first) / 50,
        (state, jnp.zeros(state[0].shape[0], state[0].dtype)),
        stepsize_controller=dfx.PIDController(*tolerances, norm=norm),
        max_steps=max_steps,
        throw=False,
    )
    (state, touched) = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    code = jnp.where(solution.result == dfx.RESULTS.successful, Result.SUCCESSFUL, Result.MAX_STEPS)
    return state, touched != 0, code.astype(jnp.int32)


def _per_row(part: Array) -> Array:
    """Return the mean square of each row, [n]."""
    return jnp.mean(part.reshape(part.shape[0], -1) ** 2, axis=1)


def code_of_rows(bad: Array, code: Array) -> Array:
    """Return ``Result.NONFINITE_SCORE`` if any row is bad, the code otherwise."""
    return lax.select(bad.any(), jnp.asarray(Result.NONFINITE_SCORE, jnp.int32), code)


def check_tolerances(rtol: float, atol: float, dtype: Any) -> tuple[float, float]:
    """Return the tolerances, if the precision can give them.

    Raises:
        ValueError: rtol not between 10 ε and 1, atol not positive.
    """
    least = 10 * float(jnp.finfo(dtype).eps)
    rtol = check_known("rtol", check_number("rtol", rtol, infinite=True))
    if not least <= rtol < 1:
        raise ValueError(
            f"rtol must lie between {least:.2g}, what {jnp.dtype(dtype)} can give, and 1, got {rtol!r}."
        )
    return rtol, check_known("atol", check_number("atol", atol, above=0))

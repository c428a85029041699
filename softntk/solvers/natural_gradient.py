r"""Natural gradient for over-parametrised networks: Gauss–Newton in function space.

For the loss ½‖F(θ) − Y‖², with J the Jacobian of the n·k outputs and r = F − Y,

    (JᵀJ + ρI)⁻¹ Jᵀr  =  Jᵀ (JJᵀ + ρI)⁻¹ r,

so that the system has as many unknowns as there are outputs, whatever the number of weights; and JJᵀ is the empirical neural
tangent kernel, an operator that is never formed. Between different outputs that kernel is small where the network is wide, so
that conjugate gradients preconditioned by I ⊗ K̄, K̄ its mean over outputs, [n, n], need few products.

Under a constant kernel one step without ρ fits the training data exactly: where gradient descent needs thousands of steps, at
a rate that the smallest eigenvalue decides, this one sees no eigenvalue at all.

Source: Zhang, Martens and Grosse (2019), NeurIPS, Fast convergence of natural gradient descent for overparameterized neural
networks; Cai et al. (2019), arXiv 1905.11675 (Gram–Gauss–Newton); MATH.md section 2 (the operator).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk import ntk
from softntk._validation import check_finite, check_floating, check_positive, check_positive_int
from softntk.networks import Network
from softntk.solution import Result
from softntk.solvers._trial import Step

Params = Any

_TRIALS = 10  # solutions with a larger ridge, at most
_ENOUGH, _GOOD = 1e-4, 0.75  # of the predicted decrease: a step is taken; the ridge is lowered


class NaturalGradientState(NamedTuple):
    """What the transform remembers, and tells.

    Attributes:
        count: updates so far.
        damping: ρ relative to the mean of the kernel's diagonal.
        kind: a :class:`softntk.solvers.Step`: GAUSS_NEWTON, or REJECTED where no ridge made the loss fall.
        negative_curvature: never.
        distortion: the relative residual of the last solve.
        conjugate_gradient_steps: in all.
        evaluations: of ``value_fn``, in all.
        result: a :class:`softntk.solution.Result`.
    """

    count: Int[Array, ""]
    damping: Float[Array, ""]
    kind: Int[Array, ""]
    negative_curvature: Bool[Array, ""]
    distortion: Float[Array, ""]
    conjugate_gradient_steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    result: Int[Array, ""]


def natural_gradient(
    net: Network | tuple[Callable, ...] | Callable,
    x: Float[Array | np.ndarray, "n ..."],
    y: Float[Array | np.ndarray, "n k"],
    *,
    ridge: float = 1e-6,
    rtol: float = 1e-3,
    max_cg_steps: int = 100,
    damped: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""−Jᵀ(JJᵀ + ρI)⁻¹(F − Y): one Gauss–Newton step on ½‖F(θ) − Y‖², or on any multiple of it.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an ``apply_fn(params, x) -> [n, k]`` whose rows
            do not interact.
        x: training points, [n, …].
        y: targets, [n, k].
        ridge: the first ρ, relative to the mean of the kernel's diagonal. It stands for what the outputs move beyond the
            linearisation.
        rtol: relative residual of the conjugate gradients; steps inexact by that much lose no convergence but the last digits.
        max_cg_steps: products with the kernel in one solve, at most.
        damped: look at ``value_fn`` after the step; while the loss does not fall ρ grows tenfold, and where it falls as the
            linearisation says ρ shrinks tenfold, down to rounding. Not damped: ρ stays, for loops without ``value_fn``.

    Returns:
        The transform. It takes the residual from the params and not from the gradient that it is given; its state is a
        :class:`NaturalGradientState`.

    Raises:
        ValueError: y not [n, k] or not finite, x as :func:`softntk.ntk.operator`; ridge, rtol or max_cg_steps not positive; at
            ``update`` no params, or no ``value_fn`` if damped.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=512, out_dim=1)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 4))
        >>> x = jax.random.normal(jax.random.key(1), (20, 4)) / 2
        >>> y = jnp.sin(x[:, :1])
        >>> loss = lambda p: 0.5 * jnp.sum((net.apply_fn(p, x) - y) ** 2)
        >>> sol = sn.solvers.minimise(loss, params, natural_gradient(net, x, y), rtol=1e-4)
        >>> bool(sol.stats["steps"] <= 8), bool(sol.stats["loss"][-1] < 1e-6 * sol.stats["loss"][0])
        (True, True)

    Source: see the module.
    """
    check_floating("y", y)
    if jnp.ndim(y) != 2 or len(y) != len(x):
        raise ValueError(f"y must have shape [n, k] with as many rows as x, got shapes {jnp.shape(y)} and {jnp.shape(x)}.")
    check_finite("y", y)
    check_positive("ridge", ridge)
    check_positive("rtol", rtol)
    check_positive_int("max_cg_steps", max_cg_steps)
    x, y = jnp.asarray(x), jnp.asarray(y)
    apply_fn = net[1] if isinstance(net, tuple) else net

    def init(params: Params) -> NaturalGradientState:
        zero, no = jnp.zeros((), y.dtype), jnp.zeros((), jnp.int32)
        return NaturalGradientState(
            count=no,
            damping=jnp.asarray(ridge, y.dtype),
            kind=jnp.asarray(Step.NONE, jnp.int32),
            negative_curvature=jnp.asarray(False),
            distortion=zero,
            conjugate_gradient_steps=no,
            evaluations=no,
            result=jnp.asarray(Result.SUCCESSFUL, jnp.int32),
        )

    def update(
        updates: Params,
        state: NaturalGradientState,
        params: Params | None = None,
        *,
        value: Any = None,
        value_fn: Callable[[Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, NaturalGradientState]:
        if params is None:
            raise ValueError("update needs params: the kernel is taken there.")
        if damped and (value is None or value_fn is None):
            raise ValueError("damped=True needs value and value_fn at update, as optax' line searches do; or use damped=False.")
        outputs, pull = jax.vjp(lambda params: apply_fn(params, x), params)
        residual = outputs - y
        operator = ntk.operator(net, params, x)
        mean = ntk.empirical(net, params, x, outputs="mean")
        size = jnp.mean(jnp.diagonal(mean))
        solve = lambda level: _solve(operator, mean, level * size, residual, rtol, max_cg_steps)
        step_of = lambda dual: jax.tree.map(lambda leaf: -leaf, pull(dual)[0])

        def attempt(carry: tuple) -> tuple:
            count, level, products, *_ = carry
            dual, made, image = solve(level)
            step = step_of(dual)
            if not damped:
                return count + 1, level, products + made, step, _relative(residual - image, residual), jnp.asarray(True)
            # The loss may be any multiple of ½‖r‖²: the prediction is in units of what it is now.
            assert value_fn is not None
            now, left = jnp.sum(residual**2), jnp.sum((residual - operator.mv(dual)) ** 2)
            predicted = value * (1 - left / now)
            after = jnp.asarray(value_fn(optax.apply_updates(params, step)), y.dtype)
            ratio = jnp.where(predicted > 0, (value - after) / jnp.where(predicted > 0, predicted, 1), -1)
            ratio = jnp.where(jnp.isfinite(ratio), ratio, -1)
            least = 4 * jnp.finfo(y.dtype).eps
            lowered = jnp.where(ratio > _GOOD, jnp.maximum(level / 10, least), level)
            level = jnp.where(ratio > _ENOUGH, lowered, 10 * level)
            return count + 1, level, products + made, step, _relative(residual - image, residual), ratio > _ENOUGH

        none = jax.tree.map(jnp.zeros_like, params)
        no = jnp.zeros((), jnp.int32)
        begun = (no, state.damping, no, none, jnp.zeros((), y.dtype), jnp.asarray(False))
        trials, level, products, step, error, taken = lax.while_loop(lambda c: (c[0] < _TRIALS) & ~c[-1], attempt, begun)
        fine = taken & jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(step)]).all()
        new = NaturalGradientState(
            count=state.count + 1,
            damping=level,
            kind=jnp.where(fine, Step.GAUSS_NEWTON, Step.REJECTED).astype(jnp.int32),
            negative_curvature=jnp.asarray(False),
            distortion=error,
            conjugate_gradient_steps=state.conjugate_gradient_steps + products,
            evaluations=state.evaluations + (trials if damped else 0),
            result=state.result,
        )
        return jax.tree.map(lambda leaf: jnp.where(fine, leaf, 0), step), new

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _relative(rest: Array, whole: Array) -> Float[Array, ""]:
    size = jnp.linalg.norm(whole)
    return jnp.where(size > 0, jnp.linalg.norm(rest) / jnp.where(size > 0, size, 1), 0)


def _solve(
    operator: lx.AbstractLinearOperator,
    mean: Float[Array, "n n"],
    ridge: Float[Array, ""],
    right: Float[Array, "n k"],
    rtol: float,
    max_steps: int,
) -> tuple[Float[Array, "n k"], Int[Array, ""], Float[Array, "n k"]]:
    """(K + ρ)⁻¹r by conjugate gradients, the products, and (K + ρ) times what was found."""
    n, eps = len(mean), jnp.finfo(mean.dtype).eps
    raised = mean + (ridge + 4 * n * eps * jnp.mean(jnp.diagonal(mean))) * jnp.eye(n, dtype=mean.dtype)
    factor = jnp.linalg.cholesky(raised)
    inverse = lambda v: jax.scipy.linalg.cho_solve((factor, True), v)
    structure = jax.eval_shape(lambda: right)
    product = lambda v: operator.mv(v) + ridge * v
    system = lx.FunctionLinearOperator(product, structure, lx.positive_semidefinite_tag)
    preconditioner = lx.FunctionLinearOperator(inverse, structure, lx.positive_semidefinite_tag)
    # Of a right side of root mean square one, lineax' absolute tolerance is relative to it.
    size = jnp.sqrt(jnp.mean(right**2))
    scale = jnp.where(size > 0, size, 1)
    rms = lambda v: jnp.sqrt(jnp.mean(v**2))
    solver = lx.CG(rtol=0.0, atol=rtol, max_steps=max_steps, norm=rms)
    found = lx.linear_solve(system, right / scale, solver, options={"preconditioner": preconditioner}, throw=False)
    value = scale * found.value
    return value, jnp.asarray(found.stats["num_steps"], jnp.int32), product(value)

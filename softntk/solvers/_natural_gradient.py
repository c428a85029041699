r"""Natural gradient for over-parametrised networks: Gauss–Newton in function space.

For the loss ½‖F(θ) − Y‖², with J the Jacobian of the n·k outputs and r = F − Y,

    (JᵀJ + ρI)⁻¹ Jᵀr  =  Jᵀ (JJᵀ + ρI)⁻¹ r,

so that the system has as many unknowns as there are outputs, whatever the number of weights; and
JJᵀ is the empirical neural tangent kernel, an operator that is never formed. Between different
outputs that kernel is small where the network is wide, so that conjugate gradients preconditioned
by I ⊗ K̄, K̄ its mean over outputs, [n, n], need few products.

Under a constant kernel one step without ρ fits the training data exactly: where gradient descent
needs thousands of steps, at a rate that the smallest eigenvalue decides, this one sees no
eigenvalue at all.

Source: Zhang, Martens and Grosse (2019), NeurIPS, Fast convergence of natural gradient descent for
overparameterized neural networks; Cai et al. (2019), arXiv 1905.11675 (Gram–Gauss–Newton);
MATHEMATICS.md#natural-gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk import ntk
from softntk._core.validation import (
    as_floating,
    check_callable,
    check_flag,
    check_integer,
    check_number,
)
from softntk._linalg.norms import scaled_norm, tree_norm
from softntk.networks import Network
from softntk.solution import Result
from softntk.solvers._diagnostics import Step, StepDiagnostics, initial_diagnostics

Params = Any

_TRIALS = 10  # solutions with a larger ridge, at most
_ROUNDINGS = 4  # ε times the terms of F: residuals that are no larger are zero
_ALIKE = 0.99  # the cosine between the gradient and that of ½‖F − Y‖², at least
_ENOUGH, _GOOD = 1e-4, 0.75  # of the predicted decrease: a step is taken; the ridge is lowered


class NaturalGradientState(NamedTuple):
    """What the transform remembers, and tells.

    Attributes:
        count: updates so far.
        conjugate_gradient_steps: in all.
        evaluations: of ``value_fn``, in all.
        diagnostics: what ``minimise`` reads, a :class:`softntk.solvers.StepDiagnostics`. ``kind``
            is GAUSS_NEWTON, CONVERGED where F = Y up to rounding, or REJECTED where no ridge
            decreased the loss; ``damping`` is ρ relative to the mean of the kernel's diagonal,
            ``model_error`` the relative residual of the last solve; ``result`` is FOREIGN_LOSS if
            the gradient is not that of a multiple of ½‖F − Y‖². They are attributes of the state
            as well, ``model_error`` under the name ``distortion``.
    """

    count: Int[Array, ""]
    conjugate_gradient_steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    diagnostics: StepDiagnostics

    @property
    def kind(self) -> Int[Array, ""]:
        """The kind of the last update, a :class:`softntk.solvers.Step`."""
        return self.diagnostics.kind

    @property
    def result(self) -> Int[Array, ""]:
        """A :class:`softntk.solution.Result`."""
        return self.diagnostics.result

    @property
    def damping(self) -> Float[Array, ""]:
        """The ridge ρ, relative to the mean of the kernel's diagonal."""
        return self.diagnostics.damping

    @property
    def negative_curvature(self) -> Bool[Array, ""]:
        """Always False: the Gauss–Newton matrix is positive semidefinite."""
        return self.diagnostics.negative_curvature

    @property
    def distortion(self) -> Float[Array, ""]:
        """The relative residual of the last solve."""
        return self.diagnostics.model_error

    @property
    def fits(self) -> Bool[Array, ""]:
        """Whether F = Y up to rounding, so that no step is needed."""
        return self.diagnostics.kind == Step.CONVERGED


def natural_gradient(
    net: Network | tuple[Callable, ...] | Callable,
    x: Float[Array | np.ndarray, "n ..."],
    y: Float[Array | np.ndarray, "n ..."],
    *,
    ridge: float = 1e-6,
    rtol: float = 1e-3,
    max_cg_steps: int = 100,
    damped: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""−Jᵀ(JJᵀ + ρI)⁻¹(F − Y): one Gauss–Newton step on ½‖F(θ) − Y‖², or on any multiple of it.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an
            ``apply_fn(params, x) -> [n, k]`` whose rows do not interact; [n] counts as k = 1.
        x: training points, [n, …].
        y: targets, [n, k], or [n] for one output.
        ridge: the first ρ, relative to the mean of the kernel's diagonal. It stands for what the
            outputs move beyond the linearisation.
        rtol: relative residual of the conjugate gradients; steps inexact by that much lose no
            convergence but the last digits.
        max_cg_steps: products with the kernel in one solve, at most.
        damped: look at ``value_fn`` after the step; while the loss does not fall ρ grows tenfold,
            and where it falls as the linearisation says ρ shrinks tenfold, down to rounding. Not
            damped: ρ stays, for loops without ``value_fn``.

    Returns:
        The transform. It takes the residual from the params and not from the gradient that it is
        given, which must be that of
        the loss all the same: if it is that of another one, nothing moves, and ``result`` of the
            state, a
        :class:`NaturalGradientState`, is FOREIGN_LOSS.

    Raises:
        ValueError: a net that is none, y not [n, k] or [n] or not finite, x not [n, …]; ridge, rtol
            or max_cg_steps not positive; at ``init`` or ``update`` params whose outputs are not of
            the shape of y; at ``update`` no params, or no ``value_fn`` if damped.

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
    x = as_floating("x", x)
    y = as_floating("y", y)
    if x.ndim == 0 or y.ndim not in (1, 2) or y.shape[0] != x.shape[0]:
        raise ValueError(
            f"y must have shape [n, k] with as many rows as x, got shapes {y.shape} and {x.shape}."
        )
    y = y.reshape(len(x), -1)
    ridge = check_number("ridge", ridge, above=0)
    rtol = check_number("rtol", rtol, above=0)
    max_cg_steps = check_integer("max_cg_steps", max_cg_steps, at_least=1)
    damped = check_flag("damped", damped)
    given_apply: Any = net[1] if isinstance(net, tuple) and len(net) > 1 else net
    check_callable("net", given_apply, "a network, or a function apply_fn(params, x)")
    own = not isinstance(net, Network)
    if not own and x.ndim != 2:
        raise ValueError(
            f"x must have shape [n, d], one row a point, for a network of two_layer, got shape {x.shape}."
        )
    rows = x.reshape(len(x), -1) if own else x

    def network_at(params: Params, value_fn: Any) -> tuple[Any, Params, Callable]:
        """Return what the kernels are taken of, its params, and the outputs [n, k] as a function."""
        # minimise keeps leaves that are no floats to itself, and knows them here.
        complete = getattr(value_fn, "complete", lambda moving: moving)
        if not own:
            return net, params, lambda params: given_apply(params, x)
        moving, constants = eqx.partition(params, eqx.is_inexact_array)

        def outputs_of(moving: Params, rows: Array) -> Array:
            points = rows.reshape(-1, *x.shape[1:])
            outputs = given_apply(complete(eqx.combine(moving, constants)), points)
            return jnp.reshape(outputs, (len(points), -1))

        return outputs_of, moving, lambda moving: outputs_of(moving, rows)

    def check_outputs(outputs: Any) -> None:
        shape = getattr(outputs, "shape", None)
        if shape != y.shape:
            raise ValueError(
                f"y must have the shape of the outputs of net, got {y.shape} and "
                f"{type(outputs).__name__ if shape is None else shape}."
            )

    def init(params: Params) -> NaturalGradientState:
        no = jnp.zeros((), jnp.int32)
        return NaturalGradientState(
            count=no,
            conjugate_gradient_steps=no,
            evaluations=no,
            diagnostics=initial_diagnostics(ridge, y.dtype),
        )

    def update(
        updates: Params,
        state: NaturalGradientState,
        params: Params | None = None,
        *,
        value: Any = None,
        grad: Params | None = None,
        value_fn: Callable[[Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, NaturalGradientState]:
        if params is None:
            raise ValueError("update needs params: the kernel is taken there.")
        if damped and (value is None or value_fn is None):
            raise ValueError(
                "damped=True needs value and value_fn at update, as optax' line searches do; or use damped=False."
            )
        # 1. Outputs, residual, and whether there is anything to do, or another loss is descended.
        kernel_of, moving, outputs_at = network_at(params, value_fn)
        check_outputs(jax.eval_shape(outputs_at, moving))
        outputs, pull = jax.vjp(outputs_at, moving)
        outputs = outputs.astype(y.dtype)
        residual = outputs - y
        eps = float(jnp.finfo(y.dtype).eps)
        # 2. The kernel as an operator, and its mean over outputs, which preconditions.
        operator = ntk.operator(kernel_of, moving, rows)
        mean = ntk.empirical(kernel_of, moving, rows, outputs="mean")
        size = jnp.mean(jnp.diagonal(mean))
        # F is a sum of about ∂F/∂θ ∘ θ, whose terms may cancel (antisymmetric networks).
        weight = tree_norm(moving) / sum(leaf.size for leaf in jax.tree.leaves(moving)) ** 0.5
        terms = _rms(outputs) + _rms(y) + (jnp.sqrt(size) * weight).astype(y.dtype)
        fits = _rms(residual) <= _ROUNDINGS * eps * terms
        noise = 1e3 * eps * jnp.sqrt(len(x) * size) * scaled_norm(residual)
        given = eqx.filter(updates if grad is None else grad, eqx.is_inexact_array)
        foreign = ~fits & _is_foreign(given, pull(residual)[0], noise)

        def solve(level: Array) -> tuple[Array, Array, Array]:
            return _solve(operator, mean, level * size, residual, rtol, max_cg_steps)

        def step_of(dual: Array) -> Params:
            return jax.tree.map(lambda leaf: -leaf, pull(dual)[0])

        # 3. A larger ridge until the loss falls.
        def attempt(carry: tuple) -> tuple:
            count, level, products, *_ = carry
            dual, made, image = solve(level)
            step = step_of(dual)
            if not damped:
                return (
                    count + 1,
                    level,
                    products + made,
                    step,
                    _relative(residual - image, residual),
                    jnp.asarray(True),
                )
            # The loss may be any multiple of ½‖r‖²: the prediction is in units of what it is now.
            assert value_fn is not None
            left = _relative(residual - operator.mv(dual), residual) ** 2
            predicted = jnp.asarray(value, y.dtype) * (1 - left)
            after = jnp.asarray(value_fn(optax.apply_updates(moving, step)), y.dtype)
            ratio = jnp.where(
                predicted > 0, (value - after) / jnp.where(predicted > 0, predicted, 1), -1
            )
            ratio = jnp.where(jnp.isfinite(ratio), ratio, -1)
            least = 4 * jnp.finfo(y.dtype).eps
            lowered = jnp.where(ratio > _GOOD, jnp.maximum(level / 10, least), level)
            level = jnp.where(ratio > _ENOUGH, lowered, 10 * level)
            return (
                count + 1,
                level,
                products + made,
                step,
                _relative(residual - image, residual),
                ratio > _ENOUGH,
            )

        none = jax.tree.map(jnp.zeros_like, moving)
        no = jnp.zeros((), jnp.int32)
        begun = (no, state.damping, no, none, jnp.zeros((), y.dtype), fits | foreign)
        trials, level, products, step, error, taken = lax.while_loop(
            lambda c: (c[0] < _TRIALS) & ~c[-1], attempt, begun
        )
        fine = (
            taken
            & ~foreign
            & jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(step)]).all()
        )
        kind = jnp.where(fits, Step.CONVERGED, jnp.where(fine, Step.GAUSS_NEWTON, Step.REJECTED))
        diagnostics = StepDiagnostics(
            kind=kind.astype(jnp.int32),
            result=jnp.where(foreign, Result.FOREIGN_LOSS, state.result).astype(jnp.int32),
            damping=level,
            negative_curvature=jnp.asarray(False),
            model_error=error,
        )
        new = NaturalGradientState(
            count=state.count + 1,
            conjugate_gradient_steps=state.conjugate_gradient_steps + products,
            evaluations=state.evaluations + (trials if damped else 0),
            diagnostics=diagnostics,
        )
        moved = jax.tree.map(lambda leaf: jnp.where(fine, leaf, 0), step)
        still = jax.tree.map(jnp.zeros_like, eqx.filter(params, eqx.is_array))
        return eqx.combine(moved, still), new

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _rms(v: Array) -> Float[Array, ""]:
    """Return the root mean square, the norm in which lineax' tolerance is relative to a unit right
    side.
    """
    return scaled_norm(v) / v.size**0.5


def _relative(rest: Array, whole: Array) -> Float[Array, ""]:
    size = scaled_norm(whole)
    return jnp.where(size > 0, scaled_norm(rest) / jnp.where(size > 0, size, 1), 0)


def _is_foreign(grad: Params, own: Params, noise: Array) -> Bool[Array, ""]:
    """Return whether a gradient points elsewhere than Jᵀ(F − Y); what drowns in rounding does not."""

    def unit(tree: Params) -> tuple[list, Array]:
        norm = tree_norm(tree)
        scale = jnp.where(norm > 0, norm, 1)
        return [leaf / scale.astype(leaf.dtype) for leaf in jax.tree.leaves(tree)], norm

    ours, size = unit(own)
    theirs, length = unit(grad)
    products = [jnp.sum(a * b.astype(a.dtype)) for a, b in zip(ours, theirs, strict=True)]
    cosine = sum(part.astype(size.dtype) for part in products)
    return (size > noise) & jnp.isfinite(length) & (cosine < _ALIKE)


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
    raised = mean + (ridge + 4 * n * eps * jnp.mean(jnp.diagonal(mean))) * jnp.eye(
        n, dtype=mean.dtype
    )
    factor = jnp.linalg.cholesky(raised)
    inverse = lambda v: jax.scipy.linalg.cho_solve((factor, True), v)
    structure = jax.eval_shape(lambda: right)
    product = lambda v: operator.mv(v) + ridge * v
    system = lx.FunctionLinearOperator(product, structure, lx.positive_semidefinite_tag)
    preconditioner = lx.FunctionLinearOperator(inverse, structure, lx.positive_semidefinite_tag)
    # Of a right side of root mean square one, lineax' absolute tolerance is relative to it.
    size = _rms(right)
    scale = jnp.where(size > 0, size, 1)
    solver = lx.CG(rtol=0.0, atol=rtol, max_steps=max_steps, norm=_rms)
    found = lx.linear_solve(
        system, right / scale, solver, options={"preconditioner": preconditioner}, throw=False
    )
    value = scale * found.value
    return value, jnp.asarray(found.stats["num_steps"], jnp.int32), product(value)

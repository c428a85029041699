r"""The three forms of a regression, in the logits z = Ax: what is small, its gradient, and its
curvature.

With f = u/α, v = u'/α, v' = u''/α and φ = ⟨c, f⟩,

| form | residual | gradient in z | D | U | M |
|---|---|---|---|---|---|
| normalized | c = f − b | v∘s, s = c − φ | v² + v'∘s | [v, v∘(f + s)] | [[f·f, −1], [−1, 0]] |
| rescaled | r = u − αb | u'∘s, s = r − ⟨b, r⟩ | u'² + u''∘s | [u', u'∘b] | [[b·b, −1], [−1, 0]] |
| plain | r = u − b | u'∘r | u'² + u''∘r | 0 | 0 |

The loss is ½‖residual‖², its Hessian in z diag(D) + U M Uᵀ. Proof for the first row: ∂f_i/∂z_j =
v_i δ_ij − f_i v_j, so that ∇½‖c‖² = v∘c − v⟨f, c⟩ = v∘s. Differentiated once more, with ∂v_i/∂z_j =
v'_i δ_ij − v_i v_j and ∂φ/∂z_j = Σ_i (f_i + c_i) ∂f_i/∂z_j = v_j (f_j + s_j − f·f),

    ∂²/∂z_i∂z_j = (v'_i s_i + v_i²) δ_ij − v_i v_j (s_i + f_i) − v_i v_j (f_j + s_j) + f·f v_i v_j.

The other rows are linear in u, so that the product rule is enough. Gauss–Newton, JᵀJ, is what
remains without u'' and, in the first row, without s in U.

Source: MATHEMATICS.md#regression-forms; [S] arXiv 2309.13482, [D] arXiv 2304.10411, [H] arXiv
2305.00660.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from softntk import activations
from softntk._core.validation import check_choice
from softntk._linalg.norms import binary_scale
from softntk.activations import Activation, normaliser_is_resolved

Vector = Float[Array, " n"]


class Curvature(NamedTuple):
    """diag(D) + U M Uᵀ."""

    diagonal: Vector
    factors: Float[Array, "n 2"]
    core: Float[Array, "2 2"]


class Local(NamedTuple):
    """A form at one z. What is not used costs nothing under jit."""

    prediction: Vector
    residual: Vector
    gradient: Vector
    hessian: Curvature
    gauss_newton: Curvature
    kept: Bool[Array, ""]
    """False where the normaliser is lost in rounding."""
    total: Float[Array, ""]
    """The normaliser α up to a positive factor; one where there is none."""


def _core(corner: Float[Array, ""]) -> Float[Array, "2 2"]:
    return jnp.asarray([[0.0, -1.0], [-1.0, 0.0]], corner.dtype).at[0, 0].set(corner)


def _two(first: Vector, second: Vector) -> Float[Array, "n 2"]:
    return jnp.stack([first, second], axis=1)


def as_activation(name: str, activation: Any) -> Activation:
    """Return an activation of the table by name, or the activation that was given."""
    if isinstance(activation, Activation):
        return activation
    return activations.get(check_choice(name, activation, activations.ACTIVATIONS))


def normalized(activation: Activation, z: Vector, b: Vector) -> Local:
    """Compare u/α with b."""
    jet = activation.jet(z, activation.log_scale(z))
    # A power of two leaves the quotients as they are, and lets neither Σu nor its square, in
    # derivatives, leave the range.
    scale = binary_scale(jet[0])
    u, du, d2u = (part / scale for part in jet)
    total = jnp.sum(u)
    kept = normaliser_is_resolved(u, total[None])[0]
    f, v, dv = (part / jnp.where(kept, total, 1) for part in (u, du, d2u))
    c = f - b
    # s = c − ⟨c, f⟩, which loses its digits where f is nearly all on one sample; as Σf = 1, any
    # constant may be taken from c.
    moved = c - c[jnp.argmax(jnp.abs(f))]
    s = moved - jnp.dot(moved, f)
    core = _core(jnp.dot(f, f))
    return Local(
        prediction=f,
        residual=c,
        gradient=v * s,
        hessian=Curvature(v * v + dv * s, _two(v, v * (f + s)), core),
        gauss_newton=Curvature(v * v, _two(v, v * f), core),
        kept=kept,
        total=total,
    )


def rescaled(activation: Activation, z: Vector, b: Vector) -> Local:
    """Compare u with αb."""
    u, du, d2u = activation.jet(z, 0.0)
    total = jnp.sum(u)
    r = u - total * b
    s = r - jnp.dot(b, r)
    factors = _two(du, du * b)
    core = _core(jnp.dot(b, b))
    return Local(
        prediction=u,
        residual=r,
        gradient=du * s,
        hessian=Curvature(du * du + d2u * s, factors, core),
        gauss_newton=Curvature(du * du, factors, core),
        kept=jnp.asarray(True),
        total=total,
    )


def plain(activation: Activation, z: Vector, b: Vector) -> Local:
    """Compare u with b; zero factors, so that all forms have one shape."""
    u, du, d2u = activation.jet(z, 0.0)
    r = u - b
    no_factors = (jnp.zeros((len(z), 2), z.dtype), jnp.zeros((2, 2), z.dtype))
    return Local(
        prediction=u,
        residual=r,
        gradient=du * r,
        hessian=Curvature(du * du + d2u * r, *no_factors),
        gauss_newton=Curvature(du * du, *no_factors),
        kept=jnp.asarray(True),
        total=jnp.ones((), z.dtype),
    )


FORMS: dict[str, Callable[[Activation, Vector, Vector], Local]] = {
    "normalized": normalized,
    "rescaled": rescaled,
    "plain": plain,
}

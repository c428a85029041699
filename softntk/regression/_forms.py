r"""The three forms of a regression in the logits z = Ax: residual, gradient and curvature.

With f = u/α, v = u'/α, v' = u''/α and φ = ⟨c, f⟩,

| form | residual | gradient in z | D | U | M |
|---|---|---|---|---|---|
| normalized | c = f − b | v∘s, s = c − φ | v² + v'∘s | [v, v∘(f + s)] | [[f·f, −1], [−1, 0]] |
| rescaled | r = u − αb | u'∘s, s = r − ⟨b, r⟩ | u'² + u''∘s | [u', u'∘b] | [[b·b, −1], [−1, 0]] |
| plain | r = u − b | u'∘r | u'² + u''∘r | 0 | 0 |

The loss is ½‖residual‖², its Hessian in z diag(D) + U M Uᵀ. Proof for the first row:
∂f_i/∂z_j = v_i δ_ij − f_i v_j, so that ∇½‖c‖² = v∘c − v⟨f, c⟩ = v∘s. Differentiate once more, with
∂v_i/∂z_j = v'_i δ_ij − v_i v_j and ∂φ/∂z_j = Σ_i (f_i + c_i) ∂f_i/∂z_j = v_j (f_j + s_j − f·f):

    ∂²/∂z_i∂z_j = (v'_i s_i + v_i²) δ_ij − v_i v_j (s_i + f_i) − v_i v_j (f_j + s_j) + f·f v_i v_j.

The other rows are linear in u, so that the product rule is enough. Gauss–Newton, JᵀJ, is the
Hessian without the terms in u'' and, in the first row, without s in U.

Source: MATHEMATICS.md#regression-forms; [S] arXiv 2309.13482, [D] arXiv 2304.10411, [H] arXiv
2305.00660.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from softntk import activations
from softntk._core.validation import check_choice
from softntk._linalg.norms import binary_scale
from softntk.activations import Activation, normaliser_is_resolved

Vector = Float[Array, " n"]


class Curvature(NamedTuple):
    """The matrix diag(D) + U M Uᵀ.

    Attributes:
        diagonal: D, [n].
        factors: U, [n, 2].
        core: M, [2, 2].
    """

    diagonal: Vector
    factors: Float[Array, "n 2"]
    core: Float[Array, "2 2"]


class FormValues(NamedTuple):
    """A form at one z. Fields that are not used cost nothing under jit.

    Attributes:
        prediction: u/α or u, [n].
        residual: the residual of the table, [n].
        gradient: the gradient of ½‖residual‖² in z, [n].
        hessian: the Hessian of ½‖residual‖² in z.
        gauss_newton: JᵀJ in z.
        resolved: False where the normaliser is lost in rounding.
        total: the normaliser α up to a positive factor; one for the plain form.
    """

    prediction: Vector
    residual: Vector
    gradient: Vector
    hessian: Curvature
    gauss_newton: Curvature
    resolved: Bool[Array, ""]
    total: Float[Array, ""]


def _make_core(corner: Float[Array, ""]) -> Float[Array, "2 2"]:
    """Return M = [[corner, −1], [−1, 0]]."""
    # Constants of NumPy: an array of JAX would be a program of its own.
    constants = np.asarray([[0.0, -1.0], [-1.0, 0.0]], corner.dtype)
    return jnp.where(np.asarray([[True, False], [False, False]]), corner, constants)


def _as_columns(first: Vector, second: Vector) -> Float[Array, "n 2"]:
    """Return U with the two columns."""
    return jnp.stack([first, second], axis=1)


def as_activation(name: str, activation: str | Activation) -> Activation:
    """Return an activation of the table by name, or the activation itself."""
    if isinstance(activation, Activation):
        return activation
    return activations.get(check_choice(name, activation, activations.ACTIVATIONS))


def normalized(activation: Activation, z: Vector, b: Vector) -> FormValues:
    """Return the form whose residual is u/α − b."""
    # 1. Scale u by a power of two, which changes no quotient. Then neither Σu nor its square, which
    #    derivatives contain, over- or underflows.
    jet = activation.jet(z, activation.log_scale(z))
    scale = binary_scale(jet[0])
    u, du, d2u = (part / scale for part in jet)
    # 2. Normalize.
    total = jnp.sum(u)
    resolved = normaliser_is_resolved(u, total[None])[0]
    f, v, dv = (part / jnp.where(resolved, total, 1) for part in (u, du, d2u))
    # 3. s = c − ⟨c, f⟩ loses its digits where f is nearly all on one sample. As Σf = 1, any
    #    constant may be subtracted from c first: the entry at that sample.
    c = f - b
    shifted_c = c - c[jnp.argmax(jnp.abs(f))]
    s = shifted_c - jnp.dot(shifted_c, f)
    # 4. Both curvatures, by the first row of the table.
    core = _make_core(jnp.dot(f, f))
    return FormValues(
        prediction=f,
        residual=c,
        gradient=v * s,
        hessian=Curvature(v * v + dv * s, _as_columns(v, v * (f + s)), core),
        gauss_newton=Curvature(v * v, _as_columns(v, v * f), core),
        resolved=resolved,
        total=total,
    )


def rescaled(activation: Activation, z: Vector, b: Vector) -> FormValues:
    """Return the form whose residual is u − αb."""
    u, du, d2u = activation.jet(z, 0.0)
    total = jnp.sum(u)
    # Row "rescaled" of the table.
    r = u - total * b
    s = r - jnp.dot(b, r)
    factors = _as_columns(du, du * b)
    core = _make_core(jnp.dot(b, b))
    return FormValues(
        prediction=u,
        residual=r,
        gradient=du * s,
        hessian=Curvature(du * du + d2u * s, factors, core),
        gauss_newton=Curvature(du * du, factors, core),
        resolved=jnp.asarray(True),
        total=total,
    )


def plain(activation: Activation, z: Vector, b: Vector) -> FormValues:
    """Return the form whose residual is u − b.

    Its factors are zeros, so that all forms have one shape.
    """
    u, du, d2u = activation.jet(z, 0.0)
    # Row "plain" of the table.
    r = u - b
    zero_factors = (jnp.zeros((len(z), 2), z.dtype), jnp.zeros((2, 2), z.dtype))
    return FormValues(
        prediction=u,
        residual=r,
        gradient=du * r,
        hessian=Curvature(du * du + d2u * r, *zero_factors),
        gauss_newton=Curvature(du * du, *zero_factors),
        resolved=jnp.asarray(True),
        total=jnp.ones((), z.dtype),
    )


# (activation, z, b) -> the form at z, by name.
FORMS: dict[str, Callable[[Activation, Vector, Vector], FormValues]] = {
    "normalized": normalized,
    "rescaled": rescaled,
    "plain": plain,
}

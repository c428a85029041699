"""Regressions by the name that their paper gives them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.typing import DesignMatrix as Matrix
from softntk._core.validation import as_real_array, check_choice
from softntk.regression._problem import Problem, problem

Target = Float[Array | np.ndarray, " n"]
Weights = float | int | Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " n"]


def softmax(A: Matrix, b: Target, weights: Weights = 0.0) -> Problem:
    """Return softmax regression, ½‖⟨e^{Ax}, 1⟩⁻¹ e^{Ax} − b‖² + ½‖diag(w) A x‖².

    Use it for a target that is one distribution over all rows; for class labels, or a distribution
    in each row, :func:`softntk.regression.cross_entropy`. Arguments and errors are those of
    :func:`softntk.regression.problem` with ``activation="exp"`` and ``form="normalized"``.

    Example:
        >>> import jax.numpy as jnp
        >>> softmax(jnp.eye(2), jnp.array([0.25, 0.75])).predict(jnp.zeros(2)).tolist()
        [0.5, 0.5]

    Source: arXiv 2304.10411 (attention-inspired softmax regression).
    """
    # Class labels are the most frequent mistake here.
    target = as_real_array("b", b)
    if jnp.issubdtype(target.dtype, jnp.integer):
        raise ValueError(
            f"b must be a floating-point array, got dtype {target.dtype}. Convert a distribution, "
            "e.g. b.astype('float32'); for class labels use regression.cross_entropy."
        )
    return problem(A, target, "exp", "normalized", weights)


def resnet_softmax(A: Matrix, b: Target, weights: Weights = 0.0) -> Problem:
    """Return the unified scheme of ResNet and softmax, whose prediction is (e^z + z)/1ᵀ(e^z + z).

    Its loss, with z = Ax, is

        ½‖⟨e^{Ax} + Ax, 1⟩⁻¹ (e^{Ax} + Ax) − b‖² + ½‖diag(w) A x‖².

    Use it for targets that sum to one and may be negative. Arguments and errors are those of
    :func:`softntk.regression.problem` with ``activation="res_exp"`` and ``form="normalized"``.

    Example:
        >>> import jax.numpy as jnp
        >>> resnet_softmax(jnp.eye(2), jnp.array([0.25, 0.75])).predict(jnp.zeros(2)).tolist()
        [0.5, 0.5]

    Source: arXiv 2309.13482, Definition 1.1.
    """
    return problem(A, b, "res_exp", "normalized", weights)


def exponential(A: Matrix, b: Target, weights: Weights = 0.0) -> Problem:
    """Return exponential regression, ½‖e^{Ax} − b‖² + ½‖diag(w) A x‖².

    Use it for positive targets without a constraint on their sum. Arguments and errors are those of
    :func:`softntk.regression.problem` with ``activation="exp"`` and ``form="plain"``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(exponential(jnp.eye(2), jnp.array([2.0, 1.0]))(jnp.zeros(2)))
        0.5

    Source: arXiv 2303.15725 (regularized exp, cosh and sinh regression).
    """
    return problem(A, b, "exp", "plain", weights)


def hyperbolic(
    A: Matrix, b: Target, kind: str = "cosh", form: str = "rescaled", weights: Weights = 0.0
) -> Problem:
    """Return hyperbolic regression, with u = cosh(Ax) or sinh(Ax); by default it is rescaled.

    The rescaled loss is ½‖u − ⟨u, 1⟩b‖² + ½‖diag(w) A x‖². Use it for targets whose ratios count
    and not their scale. Errors are those of :func:`softntk.regression.problem`.

    Args:
        A: [n, d].
        b: the target, [n].
        kind: "cosh" or "sinh".
        form: "rescaled", as above; "plain", ½‖u − b‖², is that of the earlier paper; "normalized",
            ½‖u/⟨u, 1⟩ − b‖².
        weights: w ≥ 0, a scalar or [n].

    Example:
        >>> import jax.numpy as jnp
        >>> float(hyperbolic(jnp.eye(2), jnp.array([0.5, 0.5]))(jnp.zeros(2)))
        0.0

    Source: arXiv 2305.00660 (rescaled), arXiv 2303.15725 (plain).
    """
    return problem(A, b, check_choice("kind", kind, ("cosh", "sinh")), form, weights)

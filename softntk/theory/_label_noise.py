"""Label noise of a known size: Gaussian, sign flips, or the worst direction of a kernel.

Public in :mod:`softntk.theory.feature_learning`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import as_floating, as_rows, check_choice, check_key, check_number
from softntk._core.validation.on_host import Targets, as_kernel_of, check_known, known_number
from softntk._linalg.kernel_eigenbasis import decompose


def corrupt(
    kind: str,
    y: Targets,
    size: float,
    *,
    key: PRNGKeyArray | None = None,
    gram: Float[Array | np.ndarray, "n n"] | None = None,
) -> Float[Array, "n k"]:
    r"""Return labels with noise that is ``gaussian``, sign ``flips``, or ``adversarial``.

    Use it to test how a predictor or a stopping rule reacts to noise of a known size.

    - gaussian: y + size·N(0, 1).
    - flips: −y for a share ``size`` of the points, drawn without replacement and rounded to a whole
      number of points.
    - adversarial: y ± size √n q, with q the eigenvector of the lowest eigenvalue of the kernel. Of
      all noise e of that norm it has the interpolant of largest norm, √(eᵀH⁻¹e). The sign is the
      one for which (y + e)ᵀH⁻¹(y + e) is larger, for each output.

    Args:
        kind: "gaussian", "flips" or "adversarial".
        y: [n, k], or [n] for one output.
        size: ≥ 0, and at most 1 for flips. It may be traced, except for flips.
        key: random key, for gaussian and flips.
        gram: H, for adversarial.

    Returns:
        The labels with noise, [n, k].

    Raises:
        ValueError: kind unknown, size negative or a share above 1, key or gram missing, y integer
            or not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> float(jnp.sum(corrupt("flips", jnp.ones((10, 1)), 0.3, key=jax.random.key(0))))
        4.0

    Source: Zhang et al. (2017), arXiv 1611.03530 (random labels); Arora et al. (2019), arXiv
    1901.08584, section 5 (yᵀH⁻¹y).
    """
    # 1. Check the arguments; each kind needs either a key or a kernel.
    check_choice("kind", kind, ("gaussian", "flips", "adversarial"))
    y = as_floating("y", y)
    y = as_rows("y", y[:, None] if y.ndim == 1 else y)
    samples = len(y)
    size = check_number("size", size, at_least=0, at_most=1 if kind == "flips" else None)
    if gram is not None:
        as_kernel_of(y, "gram", gram)
    key = None if key is None else check_key("key", key)
    # 2. Adversarial noise along the lowest eigenvector.
    if kind == "adversarial":
        if gram is None:
            raise ValueError(
                "gram is needed for adversarial noise, got None. "
                "Pass the kernel on the points of y, [n, n]."
            )
        check_known("y", y)
        lowest_vector = decompose(gram).vectors[:, :1]
        signs = np.where(lowest_vector.T @ np.asarray(y, np.float64) < 0, -1.0, 1.0)
        noise = jnp.asarray(samples**0.5 * lowest_vector * signs, y.dtype)
        return y + jnp.asarray(size, y.dtype) * noise
    # 3. Random noise.
    if key is None:
        raise ValueError(f"key is needed for {kind} noise, got None. Pass e.g. jax.random.key(0).")
    if kind == "gaussian":
        return y + jnp.asarray(size, y.dtype) * jax.random.normal(key, y.shape, y.dtype)
    # The share is rounded to a whole number of points.
    flip_count = round(known_number("size", size) * samples)
    flip_rows = jax.random.permutation(key, samples)[:flip_count]
    is_flipped = jnp.zeros(samples, bool).at[flip_rows].set(True)
    return jnp.where(is_flipped[:, None], -y, y)

"""The spectrum of a kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from softntk.ntk._gram import Gram, as_matrix


def extreme_eigenvalues(gram: Gram) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The smallest and the largest eigenvalue of a symmetric kernel matrix, by a dense eigenvalue decomposition.

    The computed eigenvalues are off by at most a small multiple of ε λ_max, with ε the rounding unit of the precision: a
    smallest eigenvalue below that (it may come out negative) is not known in this precision.

    Args:
        gram: [n, n], or [n, n, k, k] for all outputs at once.

    Returns:
        (λ_min, λ_max), scalars.

    Raises:
        ValueError: not square, empty, integer, not finite or not symmetric.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> smallest, largest = ntk.extreme_eigenvalues(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> round(float(smallest), 5), round(float(largest), 5)
        (1.0, 3.0)

    Source: λ_min of the kernel is the rate of arXiv 2405.03251, Theorem 3.7; λ_max bounds the step size, η < 2/λ_max.
    """
    eigenvalues = jnp.linalg.eigvalsh(as_matrix(gram))
    return eigenvalues[0], eigenvalues[-1]

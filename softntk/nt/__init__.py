"""neural_tangents 0.6.5, repaired for current JAX and without TensorFlow.

``from softntk import nt`` is the real package: ``nt.stax``, ``nt.predict``, ``nt.batch``,
``nt.monte_carlo_kernel_fn``, ``nt.empirical_ntk_fn``, … Afterwards ``import neural_tangents`` gives
the same one.

How it works:

- ``_views``: the last release imports names that have left JAX. Its modules are executed with a
  special ``__import__``, which returns *views* of ``jax`` and ``scipy``: the real modules plus the
  missing names. Other code sees no change.
- ``_repairs``: where a module imports but then behaves differently from the release on the JAX it
  was written for, it is repaired, by one function for each quirk. Each quirk was found by
  comparing with a direct computation.
- ``_structured_derivatives``: repairs of ``STRUCTURED_DERIVATIVES``, which works on JAX's own
  programs, through internals that have changed the most.

All four implementations of the empirical NTK run. ``AUTO`` skips an implementation that cannot run
the network. ``python -m softntk.nt`` prints which parts work on this Python and JAX.

Example:
    >>> import jax
    >>> from softntk import nt
    >>> _, _, kernel_fn = nt.stax.serial(nt.stax.Dense(64), nt.stax.Relu(), nt.stax.Dense(1))
    >>> kernel_fn(jax.numpy.eye(3), None, "ntk").shape
    (3, 3)
"""

from collections.abc import Callable
from typing import Any

from softntk.nt._repairs import (
    fix_batch_flags,
    fix_eval_context,
    fix_pmap_placement,
    fix_size_and_dtype,
)
from softntk.nt._structured_derivatives import repair
from softntk.nt._views import import_neural_tangents

VERSION = "0.6.5"
"""The release that the repairs were written for."""

# Import with the views, then repair the modules that behave differently.
_package: Any = import_neural_tangents()
_source = _package._src
fix_eval_context(_source.predict)
fix_pmap_placement(_source.batching)
fix_batch_flags(_source.batching, _source.utils.utils)
fix_size_and_dtype(_source.empirical)
repair(_source.empirical)


def diagonal_outer_products(kernel: Any, operation: Callable) -> tuple[Any, Any, Any]:
    """Return ``operation`` of the variances of both points, for cov1, nngp and cov2 in turn.

    Use it in a layer that needs the variances beside a covariance: the operation's results
    broadcast against the three.

    Args:
        kernel: a ``Kernel`` of any layout: cov1 of shape [n1] or [n1, n1], with spatial axes once
            or twice.
        operation: a function of two arrays, the variances of the first points and of the second.

    Returns:
        Three results; the last is that of cov1 where there is no cov2.

    Example:
        >>> import jax
        >>> kernel = stax.Dense(1)[2](jax.numpy.eye(2))
        >>> pair = diagonal_outer_products(kernel, lambda first, second: (first, second))[1]
        >>> [variance.shape for variance in pair]
        [(2, 1), (1, 2)]
    """
    outer_products = _source.stax.requirements.get_diagonal_outer_prods
    return outer_products(
        kernel.cov1, kernel.cov2, kernel.diagonal_batch, kernel.diagonal_spatial, operation
    )


def variances(kernel: Any) -> list[Any]:
    """Return the diagonals [n, …] of cov1 and, if there is one, of cov2 of a ``Kernel``.

    Use it in a layer whose domain depends on the variances; the kernel may have any layout.

    Example:
        >>> import jax
        >>> variances(stax.Dense(1)[2](jax.numpy.eye(2)))[0].tolist()
        [0.5, 0.5]
    """
    # cov1 and cov2 may be diagonal over points, over positions, or over neither.
    get_diagonal = _source.stax.requirements.get_diagonal
    return [
        get_diagonal(covariance, kernel.diagonal_batch, kernel.diagonal_spatial)
        for covariance in (kernel.cov1, kernel.cov2)
        if covariance is not None
    ]


# The public names of neural_tangents.
stax = _package.stax
predict = _package.predict
batch = _package.batch
empirical_kernel_fn = _package.empirical_kernel_fn
empirical_nngp_fn = _package.empirical_nngp_fn
empirical_ntk_fn = _package.empirical_ntk_fn
empirical_ntk_vp_fn = _package.empirical_ntk_vp_fn
linearize = _package.linearize
taylor_expand = _package.taylor_expand
monte_carlo_kernel_fn = _package.monte_carlo_kernel_fn
NtkImplementation = _package.NtkImplementation
Kernel = _package.Kernel

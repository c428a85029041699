r"""The spectrum of a kernel: its density, its effective dimension, and its alignment with targets.

A small kernel is decomposed. A large one is an operator that is never formed; its spectrum is
estimated by Lanczos.

Example:
    >>> import jax, softntk as sn
    >>> net = sn.networks.two_layer("softmax", width=2)
    >>> x = jax.random.normal(jax.random.key(1), (300, 8)) / 8**0.5
    >>> op = sn.ntk.kernel_operator(net.kernel_fn, x)
    >>> smallest, largest = sn.ntk.extreme_eigenvalues(op)
    >>> measure = sn.ntk.spectral_density(op)
    >>> bool(smallest < measure.nodes.min() + 1e-3)
    True
    >>> round(float(measure.cumulative(largest + 1)), 5)
    1.0
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import (
    as_floating,
    check_count,
    check_integer,
    check_key,
    check_number,
    check_positive_int,
    is_concrete,
)
from softntk._linalg.extreme_eigenvalues import (
    MAX_DENSE_SIZE,
    check_operator_precision,
    finite_eigenvalues,
    finite_or_infinite,
    key_or_default,
)
from softntk._linalg.extreme_eigenvalues import extreme_eigenvalues as extreme_eigenvalues
from softntk._linalg.gram_arrays import (
    Gram,
    Number,
    as_matrix,
)
from softntk._linalg.lanczos import lanczos
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product
from softntk.ntk._arguments import Targets, as_outputs
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._spectral_measure import SpectralMeasure


def spectral_density(
    op: Gram | GramOperator,
    *,
    steps: int = 64,
    probes: int = 8,
    key: PRNGKeyArray | None = None,
    dense_size: int = MAX_DENSE_SIZE,
) -> SpectralMeasure:
    r"""Return the distribution of the eigenvalues of a kernel, μ = 1/n Σ_i δ(λ − λ_i).

    Use it to choose a ridge or a learning rate, and to see how many directions a kernel resolves.
    It is exact for a matrix or a small operator. For a larger one it is estimated by stochastic
    Lanczos quadrature: each random ±1 probe v gives the Gauss quadrature of ⟨v, f(K)v⟩/n, whose
    expectation is tr f(K)/n.

    Args:
        op: [n, n], [n, n, k, k], or an operator.
        steps: products with an operator for each probe.
        probes: number of random vectors; each step multiplies all of them by K at once.
        key: random key of the probes; ``jax.random.key(0)`` if None.
        dense_size: operators up to this size are formed and decomposed.

    Returns:
        A :class:`SpectralMeasure`: ``mean(f)``, ``standard_error(f)``, ``cumulative(levels)``,
        ``density(levels, bandwidth)``.

    Raises:
        ValueError: as for :func:`extreme_eigenvalues`; steps or probes not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> measure = ntk.spectral_density(jnp.diag(jnp.array([1.0, 2.0, 4.0, 8.0])))
        >>> float(measure.cumulative(3.0)), float(measure.mean(lambda t: t))
        (0.5, 3.75)

    Source: Ubaru, Chen and Saad (2017), SIAM J. Matrix Anal. Appl. 38(4), 1075-1099 (stochastic
    Lanczos quadrature).
    """
    check_positive_int("steps", steps)
    check_count("probes", probes)
    check_integer("dense_size", dense_size, at_least=0)
    key = None if key is None else check_key("key", key)

    # 1. A large operator: Lanczos from random probes.
    if isinstance(op, GramOperator):
        check_operator_precision(op.dtype)
        if op.in_size() > dense_size:
            probe_vectors = jax.random.rademacher(
                key_or_default(key), (probes, *op.shape), op.dtype
            )
            return _compute_measure(op, probe_vectors, min(steps, op.in_size()))

    # 2. A matrix or a small operator: its eigenvalues.
    matrix = op.as_matrix() if isinstance(op, GramOperator) else as_matrix(op, "op")
    nodes = finite_eigenvalues(matrix)[None]
    return SpectralMeasure(
        nodes=nodes, weights=jnp.full_like(nodes, 1 / nodes.size), size=jnp.asarray(len(matrix))
    )


def target_alignment(
    op: Gram | GramOperator, y: Targets, *, steps: int = 64, dense_size: int = MAX_DENSE_SIZE
) -> SpectralMeasure:
    r"""Return how targets are distributed over eigenvalues, Σ_i ⟨q_i, y⟩²/‖y‖² δ(λ − λ_i).

    Use it to see how fast a target can be learnt: components along large eigenvalues are learnt
    first (rate ηλ), those along small ones late or never.

    Args:
        op: [n, n] or an operator on [n], for each column of y by itself; or [n, n, k, k] or an
            operator on [n, k], for y as one vector.
        y: targets, [n, k]; [n] is k = 1. A column of zeros is aligned with nothing and gets weights
            of zero.
        steps: products with an operator, for each row of the result.
        dense_size: operators up to this size are formed and decomposed.

    Returns:
        A :class:`SpectralMeasure` with a row for each column of y, or one row.

    Raises:
        ValueError: as for :func:`extreme_eigenvalues`; y of the wrong shape, integer or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> targets = jnp.array([[3.0], [4.0]])
        >>> alignment = ntk.target_alignment(jnp.diag(jnp.array([1.0, 2.0])), targets)
        >>> [round(float(w), 2) for w in alignment.weights[0]]
        [0.36, 0.64]

    Source: MATHEMATICS.md#training-dynamics; Arora et al. (2019), arXiv 1901.08584, equation (6).
    """
    check_positive_int("steps", steps)
    check_integer("dense_size", dense_size, at_least=0)

    # 1. A matrix: its eigenvectors.
    if not isinstance(op, GramOperator):
        matrix = as_matrix(op, "op")
        targets = _as_unit_targets(y, jnp.shape(op)[:1], jnp.shape(op)[3:])
        return _dense_alignment(matrix, targets)

    # 2. An operator: formed if it is small, else Lanczos from the targets.
    check_operator_precision(op.dtype)
    targets = _as_unit_targets(y, op.shape[:1], op.shape[1:]).astype(op.dtype)
    if op.in_size() > dense_size:
        return _compute_measure(op, targets.reshape(-1, *op.shape), min(steps, op.in_size()))
    return _dense_alignment(op.as_matrix(), targets)


def _as_unit_targets(
    y: Targets, points: tuple[int, ...], outputs: tuple[int, ...]
) -> Float[Array, "c p"]:
    """Return the columns of y, or all of y as one vector, as rows of unit norm."""
    y = as_outputs("y", y, points + outputs)
    return _normalise_rows(y.reshape(1, -1) if outputs else y.T)


@jax.jit
def _normalise_rows(targets: Float[Array, "c p"]) -> Float[Array, "c p"]:
    """Return the rows divided by their norms; zeros stay. No square over- or underflows."""
    row_norms = scaled_norm(targets, axis=1, keepdims=True)
    return jnp.where(row_norms > 0, targets / jnp.where(row_norms > 0, row_norms, 1), 0)


@jax.jit
def _dense_alignment(matrix: Float[Array, "p p"], targets: Float[Array, "c p"]) -> SpectralMeasure:
    """Return the measure of each row of targets, from the eigenvectors."""
    # Decomposed in units of its largest entry, so that no square overflows.
    unit = binary_scale(matrix)
    nodes, vectors = jnp.linalg.eigh(matrix / unit)
    nodes = nodes * unit[0]
    squared_components = product(targets.astype(matrix.dtype), vectors) ** 2
    total_squares = jnp.sum(squared_components, axis=1, keepdims=True)
    # Targets of zero, and kernels that are not finite, have no shares: their weights are zero.
    is_defined = total_squares > 0
    weights = jnp.where(is_defined, squared_components / jnp.where(is_defined, total_squares, 1), 0)
    nodes = jnp.broadcast_to(finite_or_infinite(nodes)[None], weights.shape)
    return SpectralMeasure(nodes=nodes, weights=weights, size=jnp.asarray(len(matrix)))


def effective_dimension(
    op: Gram | GramOperator | SpectralMeasure,
    ridge: Float[Array | np.ndarray, "*r"] | Number | list,
    **options: Any,
) -> Float[Array, "*r"]:
    r"""Return how many directions ridge regression fits, tr K(K + ridge I)⁻¹ = Σ λ_i/(λ_i + ridge).

    Use it to choose a ridge: the number of training points should exceed it clearly.

    Args:
        op: a kernel, or its :func:`spectral_density` (to ask for many ridges at the price of one).
        ridge: ≥ 0, in the units of the eigenvalues; an array for many.
        options: further arguments of :func:`spectral_density`, if op is a kernel.

    Returns:
        One number for each ridge. Where the density is estimated from random probes, so is this;
        its standard error is ``n * measure.standard_error(lambda t: t / (t + ridge))``. Zero
        eigenvalues come out as rounding, about ε λ_max: take a ridge well above that, or float64,
        if they are not to count.

    Raises:
        ValueError: ridge negative; options with a density; as for :func:`spectral_density`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> float(ntk.effective_dimension(jnp.diag(jnp.array([1.0, 1.0, 0.0])), 1.0))
        1.0

    Source: Zhang (2005), Neural Computation 17(9), 2077-2098; Caponnetto and De Vito (2007).
    """
    # 1. The ridges, as one array.
    ridge_values = (
        ridge if isinstance(ridge, list | np.ndarray | jax.Array) else check_number("ridge", ridge)
    )
    ridge_values = as_floating("ridge", ridge_values, empty=True)
    if is_concrete(ridge_values) and np.any(np.asarray(ridge_values) < 0):
        raise ValueError(f"ridge must not be negative, got {np.min(ridge_values)}.")
    if isinstance(op, SpectralMeasure) and options:
        raise ValueError(
            f"options must be given to the spectral_density that op is, got {sorted(options)}."
        )
    # 2. The measure, and the sum over it.
    measure = op if isinstance(op, SpectralMeasure) else spectral_density(op, **options)
    ridge_values = ridge_values.astype(measure.nodes.dtype)
    # λ/(λ + ridge) as 1/(1 + ridge/λ), which does not overflow; a negative λ is rounding.
    is_positive = (measure.nodes > 0)[None]
    ridge_ratio = ridge_values.reshape(-1, 1, 1) / jnp.where(is_positive, measure.nodes[None], 1)
    fitted_shares = jnp.where(is_positive, 1 / (1 + ridge_ratio), 0)
    mean_share = jnp.mean(jnp.sum(measure.weights[None] * fitted_shares, axis=2), axis=1)
    return measure.size.astype(mean_share.dtype) * mean_share.reshape(ridge_values.shape)


def _measure_by_lanczos(
    op: GramOperator, vectors: Float[Array, "p *shape"], steps: int
) -> SpectralMeasure:
    """Return the measure of each vector, by Gauss quadrature in its Krylov space."""

    def measure_vector(vector: Array) -> tuple[Array, Array]:
        krylov_space = lanczos(op, vector, steps)
        # A vector of zeros has no direction: weights of zero.
        return finite_or_infinite(krylov_space.nodes), jnp.where(
            krylov_space.start_norm > 0, krylov_space.weights, 0
        )

    nodes, weights = jax.vmap(measure_vector)(vectors)
    return SpectralMeasure(nodes=nodes, weights=weights, size=jnp.asarray(op.in_size()))


_compute_measure = jax.jit(_measure_by_lanczos, static_argnums=2)

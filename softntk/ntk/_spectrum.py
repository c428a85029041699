r"""The spectrum of a kernel: its ends with error bounds, its density, its effective dimension, what
the targets see of it.

A small kernel is decomposed; a large one, an operator that is never formed, is probed by Lanczos.

Example:
    >>> import jax, softntk as sn
    >>> net = sn.networks.two_layer("softmax", width=2)
    >>> x = jax.random.normal(jax.random.key(1), (300, 8)) / 8**0.5
    >>> op = sn.ntk.kernel_operator(net.kernel_fn, x)
    >>> smallest, largest = sn.ntk.extreme_eigenvalues(op)
    >>> measure = sn.ntk.spectral_density(op)
    >>> bool(smallest < measure.nodes.min() + 1e-3), round(float(measure.cumulative(largest + 1)), 5)
    (True, 1.0)
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
    r"""How the eigenvalues of a kernel are distributed, μ = 1/n Σ_i δ(λ − λ_i).

    Exactly for a matrix or a small operator; for a larger one by stochastic Lanczos quadrature:
    each of the random ±1 probes v gives the Gauss quadrature of ⟨v, f(K)v⟩/n, whose expectation is
    tr f(K)/n.

    Args:
        op: [n, n], [n, n, k, k], or an operator.
        steps: products with an operator for each probe.
        probes: number of random vectors; they are multiplied together, in one product with K a
            step.
        key: of the probes; ``jax.random.key(0)`` if None.
        dense_size: operators up to this size are formed and decomposed.

    Returns:
        A :class:`SpectralMeasure`: ``mean(f)``, ``standard_error(f)``, ``cumulative(levels)``,
        ``density(levels, bandwidth)``.

    Raises:
        ValueError: as :func:`extreme_eigenvalues`; steps or probes not positive.

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
    if isinstance(op, GramOperator):
        check_operator_precision(op.dtype)
        if op.in_size() > dense_size:
            vectors = jax.random.rademacher(key_or_default(key), (probes, *op.shape), op.dtype)
            return _measure(op, vectors, min(steps, op.in_size()))
    matrix = op.as_matrix() if isinstance(op, GramOperator) else as_matrix(op, "op")
    nodes = finite_eigenvalues(matrix)[None]
    return SpectralMeasure(
        nodes=nodes, weights=jnp.full_like(nodes, 1 / nodes.size), size=jnp.asarray(len(matrix))
    )


def target_alignment(
    op: Gram | GramOperator, y: Targets, *, steps: int = 64, dense_size: int = MAX_DENSE_SIZE
) -> SpectralMeasure:
    r"""Which eigenvalues of a kernel the targets see, Σ_i ⟨q_i, y⟩²/‖y‖² δ(λ − λ_i).

    Components along large eigenvalues are learnt first (rate ηλ), those along small ones late or
    never.

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
        ValueError: as :func:`extreme_eigenvalues`; y of the wrong shape, integer or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> seen = ntk.target_alignment(jnp.diag(jnp.array([1.0, 2.0])), jnp.array([[3.0], [4.0]]))
        >>> [round(float(w), 2) for w in seen.weights[0]]
        [0.36, 0.64]

    Source: MATHEMATICS.md#training-dynamics; Arora et al. (2019), arXiv 1901.08584, equation (6).
    """
    check_positive_int("steps", steps)
    check_integer("dense_size", dense_size, at_least=0)
    if not isinstance(op, GramOperator):
        matrix = as_matrix(op, "op")
        targets = _as_directions(y, jnp.shape(op)[:1], jnp.shape(op)[3:])
        return _dense_alignment(matrix, targets)
    check_operator_precision(op.dtype)
    targets = _as_directions(y, op.shape[:1], op.shape[1:]).astype(op.dtype)
    if op.in_size() > dense_size:
        return _measure(op, targets.reshape(-1, *op.shape), min(steps, op.in_size()))
    return _dense_alignment(op.as_matrix(), targets)


def _as_directions(
    y: Targets, points: tuple[int, ...], outputs: tuple[int, ...]
) -> Float[Array, "c p"]:
    """Return the columns of y, or all of it, as rows of unit length."""
    y = as_outputs("y", y, points + outputs)
    return _of_unit_length(y.reshape(1, -1) if outputs else y.T)


@jax.jit
def _of_unit_length(targets: Float[Array, "c p"]) -> Float[Array, "c p"]:
    """Return the rows divided by their norms, so that no square over- or underflows; zeros stay."""
    lengths = scaled_norm(targets, axis=1, keepdims=True)
    return jnp.where(lengths > 0, targets / jnp.where(lengths > 0, lengths, 1), 0)


@jax.jit
def _dense_alignment(matrix: Float[Array, "p p"], targets: Float[Array, "c p"]) -> SpectralMeasure:
    """Return the measure of each row of targets, by the eigenvectors."""
    unit = binary_scale(matrix)
    nodes, vectors = jnp.linalg.eigh(matrix / unit)
    nodes = nodes * unit[0]
    squares = product(targets.astype(matrix.dtype), vectors) ** 2
    total = jnp.sum(squares, axis=1, keepdims=True)
    known = total > 0  # not of targets of zero, nor of a kernel that is not finite
    weights = jnp.where(known, squares / jnp.where(known, total, 1), 0)
    nodes = jnp.broadcast_to(finite_or_infinite(nodes)[None], weights.shape)
    return SpectralMeasure(nodes=nodes, weights=weights, size=jnp.asarray(len(matrix)))


def effective_dimension(
    op: Gram | GramOperator | SpectralMeasure,
    ridge: Float[Array | np.ndarray, "*r"] | Number | list,
    **options: Any,
) -> Float[Array, "*r"]:
    r"""How many directions a ridge regression with this kernel fits, tr K(K + ridge I)⁻¹ = Σ
    λ_i/(λ_i + ridge).

    Args:
        op: a kernel, or its :func:`spectral_density` (to ask for many ridges at the price of one).
        ridge: ≥ 0, in the units of the eigenvalues; an array for many.
        options: those of :func:`spectral_density`.

    Returns:
        As many numbers as ridges. Estimated from random probes where the density is; the standard
        error is ``n * measure.standard_error(lambda t: t / (t + ridge))``. Zero eigenvalues come
        out as rounding, about ε λ_max: a ridge must be well above that (or the precision float64)
        for them not to count.

    Raises:
        ValueError: ridge negative; and as :func:`spectral_density`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> float(ntk.effective_dimension(jnp.diag(jnp.array([1.0, 1.0, 0.0])), 1.0))
        1.0

    Source: Zhang (2005), Neural Computation 17(9), 2077-2098; Caponnetto and De Vito (2007).
    """
    ridges = (
        ridge if isinstance(ridge, list | np.ndarray | jax.Array) else check_number("ridge", ridge)
    )
    ridges = as_floating("ridge", ridges, empty=True)
    if is_concrete(ridges) and np.any(np.asarray(ridges) < 0):
        raise ValueError(f"ridge must not be negative, got {np.min(ridges)}.")
    if isinstance(op, SpectralMeasure) and options:
        raise ValueError(
            f"options must be given to the spectral_density that op is, got {sorted(options)}."
        )
    measure = op if isinstance(op, SpectralMeasure) else spectral_density(op, **options)
    ridges = ridges.astype(measure.nodes.dtype)
    # 1/(1 + ridge/λ), which overflows nowhere; a negative λ is rounding.
    positive = (measure.nodes > 0)[None]
    ratio = ridges.reshape(-1, 1, 1) / jnp.where(positive, measure.nodes[None], 1)
    shares = jnp.where(positive, 1 / (1 + ratio), 0)
    mean = jnp.mean(jnp.sum(measure.weights[None] * shares, axis=2), axis=1)
    return measure.size.astype(mean.dtype) * mean.reshape(ridges.shape)


def _measure_of(op: GramOperator, vectors: Float[Array, "p *shape"], steps: int) -> SpectralMeasure:
    def one(vector: Array) -> tuple[Array, Array]:
        found = lanczos(op, vector, steps)
        return finite_or_infinite(found.nodes), jnp.where(found.start_norm > 0, found.weights, 0)

    nodes, weights = jax.vmap(one)(vectors)
    return SpectralMeasure(nodes=nodes, weights=weights, size=jnp.asarray(op.in_size()))


_measure = jax.jit(_measure_of, static_argnums=2)

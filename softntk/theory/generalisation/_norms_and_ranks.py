"""Norms of interpolants, effective ranks of spectra, and the noise level of targets.

Public in :mod:`softntk.theory.generalisation`.
"""

import math

import numpy as np
from jaxtyping import Float

from softntk._core.records import record
from softntk._core.validation import check_integer
from softntk._core.validation.on_host import Targets, known_number
from softntk._linalg.gram_arrays import Gram
from softntk._linalg.kernel_eigenbasis import (
    as_target_matrix,
    check_positive_part,
    cross_validated_ridge,
    decompose,
    target_unit,
)
from softntk.solution import Result
from softntk.theory.generalisation._early_stopping import (
    Eigenvalues,
    descending_eigenvalues,
)

FREEDOM_INFLATION = 1.4
"""Factor on the degrees of freedom in generalised cross-validation (Kim and Gu 2004)."""


@record
class RkhsNorm:
    """The norm of the interpolant of the targets in the kernel's space, with its error.

    Attributes:
        outputs: √(y_ℓᵀH⁻¹y_ℓ) for each output, [k]; for a kernel of all outputs [1], the total.
        total: the root of the sum of their squares.
        outputs_error: the norms for the exact kernel are this close to ``outputs``, [k].
        total_error: the same for ``total``.
        result: a :class:`~softntk.solution.Result` code.
    """

    outputs: Float[np.ndarray, " k"]
    total: float
    outputs_error: Float[np.ndarray, " k"]
    total_error: float
    result: int

    @property
    def reason(self) -> str:
        """The message of ``result``."""
        return Result(self.result).advice


def rkhs_norm(gram: Gram, y: Targets) -> RkhsNorm:
    r"""Return √(yᵀH⁻¹y), the smallest norm of a function in the kernel's space through the targets.

    Use it as a measure of how well targets suit a kernel, and as the ``norm`` of stopping times and
    risk bounds. The H that is decomposed differs from the exact kernel H + E by the rounding of its
    entries and of LAPACK, ‖E‖ ≤ δ = 2√n ε λ_max, with ε that of the precision. For δ < λ_min/2

        (H + δI)⁻¹ ≼ (H + E)⁻¹ ≼ (H − δI)⁻¹,

    so that with u = H⁻¹y

        −δ‖u‖² ≤ yᵀ(H+E)⁻¹y − yᵀH⁻¹y ≤ 2δ‖u‖².

    With s = yᵀH⁻¹y and e = δ‖u‖², √(s − e) ≥ √s − e/√s and √(s + 2e) ≤ √s + e/√s: the roots differ
    by at most e/√s, which is the error that is returned. Where λ_min ≤ 2δ the norm is not
    determined: it is +inf, with a reason.

    Args:
        gram: H, [n, n] or [n, n, k, k].
        y: [n, k], or [n] for one output.

    Returns:
        :class:`RkhsNorm`. Targets c·y have c times the norm, and a kernel c²·H divides it by c;
        neither unit makes anything over- or underflow.

    Raises:
        ValueError: a gram that is not square, symmetric, floating-point or finite; y of another
            shape, integer or not finite.

    Example:
        >>> import numpy as np
        >>> norm = rkhs_norm(np.diag([1.0, 4.0]), np.array([[3.0], [8.0]]))
        >>> round(norm.total, 6), rkhs_norm(np.ones((2, 2)), np.ones((2, 1))).total
        (5.0, inf)

    Source: Arora et al. (2019), arXiv 1901.08584, Theorem 5.1 (their complexity of the labels).
    """
    # 1. A kernel that may be singular within its error has no norm.
    values, vectors, delta = decompose(gram)
    columns = as_target_matrix(gram, y)
    if not values[0] > 2 * delta:
        infinite = np.full(columns.shape[1], np.inf)
        return RkhsNorm(
            outputs=infinite,
            total=math.inf,
            outputs_error=infinite,
            total_error=math.inf,
            result=int(Result.NOT_DEFINITE),
        )
    # 2. yᵀH⁻¹y and δ‖H⁻¹y‖² in units of the largest target and the largest eigenvalue, so that no
    #    square over- or underflows.
    unit = target_unit(columns)
    largest = values[-1]
    components = (vectors.T @ (columns / unit)) ** 2
    relative_values = values[:, None] / largest
    squares = np.sum(components / relative_values, axis=0)
    errors = delta / largest * np.sum(components / relative_values**2, axis=0)
    unit = unit / math.sqrt(largest)

    # 3. Roots, and their errors δ‖u‖²/√(yᵀH⁻¹y).
    def root_error(square: np.ndarray, error: np.ndarray) -> np.ndarray:
        return error / np.sqrt(np.where(square > 0, square, 1))

    return RkhsNorm(
        outputs=unit * np.sqrt(squares),
        total=unit * float(np.sqrt(squares.sum())),
        outputs_error=unit * root_error(squares, errors),
        total_error=unit * float(root_error(squares.sum(), errors.sum())),
        result=int(Result.SUCCESSFUL),
    )


@record
class EffectiveRanks:
    """Measures of how flat a spectrum is, with λ in descending order.

    Attributes:
        rank: Σλ_i/λ_1, between 1 and the rank.
        tail: r_k = Σ_{i>k} λ_i/λ_{k+1} for k = 0, 1, …, [p]; zero where λ_{k+1} is.
        tail_flatness: R_k = (Σ_{i>k} λ_i)²/Σ_{i>k} λ_i², [p]; r_k ≤ R_k ≤ r_k².
    """

    rank: float
    tail: Float[np.ndarray, " p"]
    tail_flatness: Float[np.ndarray, " p"]

    def critical(self, samples: int, b: float = 1.0) -> int | None:
        """Return k* = min{k: r_k ≥ b·samples}, or None if there is no such k.

        The first k* directions are fitted; the others act as a ridge.

        Args:
            samples: n, the number of samples.
            b: > 0, a constant of the theorem; the paper only proves that there is one.

        Raises:
            ValueError: samples not a positive integer, b not positive.
        """
        # r_k need not be monotone: take the first k.
        samples = check_integer("samples", samples, at_least=1)
        flat_tails = np.flatnonzero(self.tail >= known_number("b", b, above=0) * samples)
        return int(flat_tails[0]) if len(flat_tails) else None

    def variance(self, samples: int, b: float = 1.0) -> float:
        """Return k*/n + n/R_{k*}, the risk of interpolated noise in units of its variance.

        It holds up to a constant. It is +inf where there is no k*. The arguments are those of
        :meth:`critical`.
        """
        k = self.critical(samples, b)
        return math.inf if k is None else k / samples + samples / float(self.tail_flatness[k])


def effective_rank(gram: Gram | None, *, eigenvalues: Eigenvalues | None = None) -> EffectiveRanks:
    r"""Return the effective ranks of a kernel or covariance: tr/λ_max, and r_k and R_k.

    Use it to decide whether overfitting is benign: interpolating noise is harmless where k*/n +
    n/R_{k*} is small, that is, with few directions far above a long flat tail. The tail must be
    that of the population. So do not give the eigenvalues of the kernel on the n samples, but those
    of the covariance of the features, or those of a kernel on many more points divided by their
    number. The number of directions that a ridge fits is a different quantity:
    :func:`softntk.ntk.effective_dimension`.

    Args:
        gram: [n, n] or [n, n, k, k], or None with eigenvalues.
        eigenvalues: [p], in any order, instead of a gram.

    Returns:
        :class:`EffectiveRanks`.

    Raises:
        ValueError: both or neither given; gram as for :func:`rkhs_norm`; eigenvalues negative
            beyond rounding, not finite, empty or all zero.

    Example:
        >>> import numpy as np
        >>> ranks = effective_rank(np.diag([4.0, 1.0, 1.0, 1.0, 1.0]))
        >>> ranks.rank, float(ranks.tail[1]), ranks.critical(3)
        (2.0, 4.0, 1)

    Source: Bartlett, Long, Lugosi and Tsigler (2020), arXiv 1906.11300, Definition 3 and Theorem 4.
    """
    # Ranks have no unit; dividing by λ_1 keeps the squares in range.
    values = descending_eigenvalues(gram, eigenvalues)
    values = values / values[0]
    tail_sums = np.cumsum(values[::-1])[::-1]
    tail_squares = np.cumsum(values[::-1] ** 2)[::-1]
    is_positive = values > 0
    tail = np.where(is_positive, tail_sums / np.where(is_positive, values, 1), 0)
    # Squares may underflow before the eigenvalues do: then R_k is replaced by its lower bound r_k.
    has_squares = tail_squares > 0
    safe_squares = np.where(has_squares, tail_squares, 1)
    flatness = np.where(has_squares, tail_sums**2 / safe_squares, np.where(is_positive, tail, 0))
    return EffectiveRanks(rank=float(tail[0]), tail=tail, tail_flatness=flatness)


def noise_level(gram: Gram, y: Targets) -> Float[np.ndarray, " l"]:
    r"""Return the standard deviation of the noise in the targets, by generalised cross-validation.

    Use it as the ``noise`` of :func:`early_stopping_time` and :func:`least_risk_time`. With
    A = H(H + ρ)⁻¹ at the ρ that minimises n‖(I−A)y‖²/tr(I − 1.4 A)²,

        σ̂² = ‖(I−A)y‖²/tr(I−A).

    The factor 1.4 prevents the noise of few points from being fitted as signal.

    Args:
        gram: H, [n, n] or [n, n, k, k].
        y: [n, k], or [n] for one output.

    Returns:
        [k], or [1] for a kernel of all outputs. It is unreliable where the kernel cannot separate
        noise from signal: for a multiple of the identity, and for targets far outside of the
        kernel's space, where it contains the part of the signal that is not fitted.

    Raises:
        ValueError: as for :func:`rkhs_norm`; a gram without positive eigenvalues.

    Example:
        >>> import numpy as np
        >>> t, rng = np.linspace(-1, 1, 300), np.random.default_rng(0)
        >>> gram = np.exp(-5 * (t[:, None] - t[None]) ** 2)
        >>> targets = np.sin(3 * t) + 0.2 * rng.normal(size=300)
        >>> round(float(noise_level(gram, targets[:, None])[0]), 1)
        0.2

    Source: Golub, Heath and Wahba (1979), Technometrics 21(2), 215-223; Wahba (1983), JRSS B 45(1),
    133-150, for σ̂; Kim and Gu (2004), JRSS B 66(2), 337-356, for the factor 1.4.
    """
    # Each output in its own unit and with its own ridge, eigenvalues relative to λ_max.
    values, vectors, delta = decompose(gram)
    columns = as_target_matrix(gram, y)
    check_positive_part("gram", values)
    units = np.array([target_unit(column) for column in columns.T])
    components = vectors.T @ (columns / units)
    relative_values = np.maximum(values / values[-1], 0)
    smallest_ridge = delta / values[-1]
    variances = [
        cross_validated_ridge(relative_values, part[:, None], smallest_ridge, FREEDOM_INFLATION)[1]
        for part in components.T
    ]
    return units * np.sqrt(np.array(variances))

r"""What a kernel promises on data that it has not seen: norms, effective ranks, the noise, and when
to stop.

Everything is computed in float64 on the host, from one symmetric eigenvalue decomposition of the
kernel, O(n³); no function here is for jit. Kernels are [n, n], the same for every output, unless
said otherwise.

Example:
    >>> import jax, softntk as sn
    >>> from softntk.theory import generalisation
    >>> net = sn.networks.two_layer("softmax", width=2)
    >>> x = jax.random.normal(jax.random.key(0), (200, 3))
    >>> x = x / jax.numpy.linalg.norm(x, axis=1, keepdims=True)
    >>> y = x[:, :1] + 0.1 * jax.random.normal(jax.random.key(1), (200, 1))
    >>> gram = net.kernel_fn(x, None, "ntk")
    >>> noise = generalisation.noise_level(gram, y)
    >>> stop = generalisation.early_stopping_time(gram, float(noise[0]))
    >>> round(float(noise[0]), 1), stop.time > 0
    (0.1, True)
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

_INFLATION = 1.4  # of the degrees of freedom, in generalised cross-validation


@record
class RkhsNorm:
    """The norm of the interpolant of the targets.

    Attributes:
        outputs: √(y_ℓᵀH⁻¹y_ℓ) for each output, [k]; for a kernel of all outputs one number, the
            total.
        total: the root of the sum of their squares.
        outputs_error: the norms for the exact kernel are within this of ``outputs``, [k].
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
        """What ``result`` says."""
        return Result(self.result).advice


def rkhs_norm(gram: Gram, y: Targets) -> RkhsNorm:
    r"""Return √(yᵀH⁻¹y), the least norm of a function of the kernel's space that takes the values
    y.

    The kernel that is decomposed differs from the exact one by at most δ = 2√n ε λ_max (rounding of
    its entries, ε of its precision, and of LAPACK). For ‖E‖ ≤ δ < λ_min/2 (H + δI)⁻¹ ≼ (H + E)⁻¹ ≼
    (H − δI)⁻¹, so that with u = H⁻¹y

        −δ‖u‖² ≤ yᵀ(H+E)⁻¹y − yᵀH⁻¹y ≤ 2δ‖u‖²,

    and the root of it is within δ‖u‖²/√(yᵀH⁻¹y) of the norm, which is the error stated: √(s − e) ≥
    √s − e/√s and √(s + 2e) ≤ √s + e/√s. Where λ_min ≤ 2δ the norm is not known: it is refused,
    +inf, with a reason.

    Args:
        gram: H, [n, n] or [n, n, k, k].
        y: [n, k], or [n] for one output.

    Returns:
        :class:`RkhsNorm`; c·y has c times the norm, and c²·H the c-th part, in any unit.

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
    # In units of the largest target and the largest eigenvalue, whose squares neither over- nor
    # underflow.
    unit = target_unit(columns)
    largest = values[-1]
    components = (vectors.T @ (columns / unit)) ** 2
    shares = values[:, None] / largest
    squares = np.sum(components / shares, axis=0)
    errors = delta / largest * np.sum(components / shares**2, axis=0)
    unit = unit / math.sqrt(largest)

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
    """How flat a spectrum is; λ in descending order.

    Attributes:
        rank: Σλ_i/λ_1, between 1 and the rank.
        tail: r_k = Σ_{i>k} λ_i/λ_{k+1} for k = 0, 1, …, [p]; zero where nothing is left.
        tail_flatness: R_k = (Σ_{i>k} λ_i)²/Σ_{i>k} λ_i², [p]; r_k ≤ R_k ≤ r_k².
    """

    rank: float
    tail: Float[np.ndarray, " p"]
    tail_flatness: Float[np.ndarray, " p"]

    def critical(self, samples: int, b: float = 1.0) -> int | None:
        """Return k* = min{k: r_k ≥ b·samples}, the directions that are fitted; the others act as a
        ridge. None without one.
        """
        samples = check_integer("samples", samples, at_least=1)
        flat = np.flatnonzero(self.tail >= known_number("b", b, above=0) * samples)
        return int(flat[0]) if len(flat) else None

    def variance(self, samples: int, b: float = 1.0) -> float:
        """Return k*/n + n/R_{k*}: interpolated noise costs this, times its variance and a constant.

        +inf without k*.
        """
        k = self.critical(samples, b)
        return math.inf if k is None else k / samples + samples / float(self.tail_flatness[k])


def effective_rank(gram: Gram | None, *, eigenvalues: Eigenvalues | None = None) -> EffectiveRanks:
    r"""Return the effective ranks of a kernel or covariance: tr/λ_max, and r_k and R_k: is
    overfitting benign?

    Interpolating noise is harmless where k*/n + n/R_{k*} is small: few directions far above a long
    flat tail. For n samples the tail must be that of the population, so give the eigenvalues of the
    covariance (of features, or of a kernel on many more points, divided by their number), not those
    of n points. The number of directions that a ridge fits is another one:
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
    values = descending_eigenvalues(gram, eigenvalues)
    values = values / values[0]  # ranks have no unit, squares one
    sums = np.cumsum(values[::-1])[::-1]
    squares = np.cumsum(values[::-1] ** 2)[::-1]
    safe = np.where(values > 0, values, 1)
    tail = np.where(values > 0, sums / safe, 0)
    flatness = np.where(
        squares > 0, sums**2 / np.where(squares > 0, squares, 1), np.where(values > 0, tail, 0)
    )
    return EffectiveRanks(rank=float(tail[0]), tail=tail, tail_flatness=flatness)


def noise_level(gram: Gram, y: Targets) -> Float[np.ndarray, " l"]:
    r"""Return the standard deviation of the noise in the targets, from the residual of generalised
    cross-validation.

    With A = H(H + ρ)⁻¹ at the ρ that minimises n‖(I−A)y‖²/tr(I − 1.4 A)²,   σ̂² =
    ‖(I−A)y‖²/tr(I−A).

    The 1.4 keeps it from taking the noise of few points for signal.

    Args:
        gram: H, [n, n] or [n, n, k, k].
        y: [n, k], or [n] for one output.

    Returns:
        [k], or [1] for a kernel of all outputs. Not to be trusted where the kernel cannot tell
        noise from signal: a multiple of the identity, or targets far outside of its space (then it
        is the noise and what is not fitted).

    Raises:
        ValueError: as :func:`rkhs_norm`; a gram without positive eigenvalues.

    Example:
        >>> import numpy as np
        >>> t, rng = np.linspace(-1, 1, 300), np.random.default_rng(0)
        >>> gram = np.exp(-5 * (t[:, None] - t[None]) ** 2)
        >>> round(float(noise_level(gram, (np.sin(3 * t) + 0.2 * rng.normal(size=300))[:, None])[0]), 1)
        0.2

    Source: Golub, Heath and Wahba (1979), Technometrics 21(2), 215-223; Wahba (1983), JRSS B 45(1),
    133-150, for σ̂; Kim and Gu (2004), JRSS B 66(2), 337-356, for the factor 1.4.
    """
    values, vectors, delta = decompose(gram)
    columns = as_target_matrix(gram, y)
    check_positive_part("gram", values)
    units = np.array([target_unit(column) for column in columns.T])
    components = vectors.T @ (columns / units)
    shares = np.maximum(values / values[-1], 0)
    smallest = delta / values[-1]
    variances = [
        cross_validated_ridge(shares, part[:, None], smallest, _INFLATION)[1]
        for part in components.T
    ]
    return units * np.sqrt(np.array(variances))

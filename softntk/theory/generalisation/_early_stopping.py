"""Stopping times of gradient descent on noisy targets, with bounds on the error they leave.

Public in :mod:`softntk.theory.generalisation`.
"""

import math

import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._core.validation.on_host import as_double, known_number
from softntk._linalg.gram_arrays import Gram
from softntk._linalg.kernel_eigenbasis import check_positive_part, decompose

Eigenvalues = Float[Array | np.ndarray, " p"]

MIN_POSITIVE = 1e-290
"""Smallest positive number that quotients and logarithms of eigenvalues are clipped to."""

MIN_COMPLEXITY_ROOT = 1e-300
"""Smallest square root of a complexity, so that quotients by it stay finite."""

MAX_COMPLEXITY_ROOT = 1e300
"""Largest square root of a complexity, so that products with it stay finite."""

RISK_GRID_SIZE = 400
"""Points of the logarithmic grid on which the risk is first minimised."""

NEGATIVE_TOLERANCE = 1e-3
"""Eigenvalues below minus this part of the largest are refused; others count as rounding."""


@record
class EarlyStopping:
    """A stopping time with a bound on the error of the stopped predictor.

    Attributes:
        time: t, learning rate × steps; +inf where it is beyond the largest float.
        steps: the number of steps to make, if a learning rate was given; otherwise None.
        critical_radius: ε̂ = 1/√(nt).
        error: upper bound of E ‖F_t − F*‖²/n, for each output, on the training points; after
            ``steps`` steps if there are any, otherwise at ``time``.
    """

    time: float
    steps: int | None
    critical_radius: float
    error: float


def early_stopping_time(
    gram: Gram | None,
    noise: float,
    *,
    norm: float = 1.0,
    learning_rate: float | None = None,
    eigenvalues: Eigenvalues | None = None,
    constant: float = 1 / (2 * math.e),
) -> EarlyStopping:
    r"""Return the time at which the local Rademacher complexity of descent reaches the noise.

    Use it to stop gradient descent on noisy targets without a validation set, given the norm of the
    noiseless function. :func:`least_risk_time` stops later, with a smaller bound.

    **The rule.** Raskutti, Wainwright and Yu take the loss 1/(2n)Σ(F − Y)² and targets F* of norm
    at most 1. With λ̂_i the eigenvalues of H/n and η the sum of the step sizes, they stop before the
    first step at which

        R̂(1/√η) > c/(ση),    R̂(ε) = √(1/n Σ min(λ̂_i, ε²)),    c = 1/(2e).

    Our loss is ½ΣΣ(F − Y)², n times theirs, so η = nt. Targets of norm at most B are B times those
    of norm 1, with noise σ/B. Then n cancels, and with λ_i = nλ̂_i the rule is

        t Σ min(tλ_i, 1) > (cB/σ)².

    The left side increases from zero, so t is unique. It is the root of a quadratic between two
    values 1/λ_i: no search is needed.

    **The error it leaves** (here in expectation; theirs is 12 B²ε̂² with high probability). Let the
    noise have variance σ², and F_0 = 0. Gradient flow, and descent with ηλ_max ≤ 1, leave at most
    the share e^{−λt} of the signal as bias, and let in at most the share min(λt, 1) of the noise:

        E‖F_t − F*‖² ≤ Σ e^{−2λ_i t}⟨q_i, F*⟩² + σ² Σ min(tλ_i, 1)²
                     ≤ B² min(λ_max, 1/(2et)) + σ² Σ min(tλ_i, 1)²,

    as λe^{−2λt} ≤ 1/(2et) and Σ⟨q_i, F*⟩²/λ_i ≤ B². At the t of the rule the last term is at most
    c²B²/t, and both together at most (1/(2e) + c²)B²/t: the squared error per point is at most
    0.218 B²ε̂². At c = 1, ε̂ (for B = 1) is the fixed point of the local Rademacher complexity
    itself, σR̂(ε̂) = ε̂²; t is larger, and the factor is 1.184, of a smaller ε̂². Their smaller c is
    what makes the bound hold with high probability.

    Args:
        gram: H, [n, n], or [n, n, k, k] (then n·k stands for n), or None with eigenvalues.
        noise: σ > 0, the standard deviation of the noise, the same for every output;
            :func:`noise_level` estimates it.
        norm: B > 0, an upper bound of √(F*ᵀH⁻¹F*), the norm of the noiseless function, which
            :func:`rkhs_norm` computes from noiseless targets.
        learning_rate: η of steps on ½ΣΣ(F−Y)², at most 1/λ_max; None for the time alone.
        eigenvalues: λ, [p], all of them, in any order, instead of the gram.
        constant: c > 0; a larger one stops later.

    Returns:
        :class:`EarlyStopping`.

    Raises:
        ValueError: noise, norm, learning_rate or constant not positive, ηλ_max > 1; gram and
            eigenvalues as for :func:`effective_rank`.

    Example:
        >>> import numpy as np
        >>> stop = early_stopping_time(np.eye(4), 1 / (2 * np.e))  # 4 t min(t, 1) = 1
        >>> discrete = early_stopping_time(np.eye(4), 1 / (2 * np.e), learning_rate=0.2)
        >>> round(stop.time, 6), discrete.steps
        (0.5, 2)

    Source: Raskutti, Wainwright and Yu (2014), JMLR 15, 335-366, Theorem 1 (rule and constants as
    remembered).
    """
    # 1. Eigenvalues in units of λ_max; times are multiples of 1/λ_max from here on.
    noise = known_number("noise", noise, above=0)
    norm = known_number("norm", norm, above=0)
    constant = known_number("constant", constant, above=0)
    values = descending_eigenvalues(gram, eigenvalues)
    n = len(values)
    largest = float(values[0])
    values = values[values > 0] / largest
    # 2. The complexity t Σ min(tλ_i, 1) reaches (cB/σ)² = root² at the stopping time.
    root = constant * (norm / noise) * math.sqrt(largest)
    root = min(max(root, MIN_COMPLEXITY_ROOT), MAX_COMPLEXITY_ROOT)
    complexity = root * root
    # 3. With the first k eigenvalues above 1/t and S the sum of the others, t k + t² S = root²:
    #    find k from the complexities at the times 1/λ_i, then the positive root of the quadratic.
    tail_sums = np.append(np.cumsum(values[::-1])[::-1], 0.0)
    with np.errstate(over="ignore"):
        break_complexities = (np.arange(len(values)) + tail_sums[:-1] / values) / values
    k = int(np.searchsorted(break_complexities, complexity, side="right"))
    # 2 root²/(k + √(k² + 4 S root²)) loses no digits, and forms no square that may overflow.
    discriminant_root = math.hypot(k, 2 * math.sqrt(tail_sums[k]) * root)
    time = 2 * root * (root / (k + discriminant_root))
    # 4. Whole steps, if there is a learning rate.
    stopping_time = time
    steps = None
    if learning_rate is not None:
        rate = _scaled_rate(learning_rate, largest, time)
        steps = _last_step(values, complexity, time, rate)
        stopping_time = rate * float(steps)
    # 5. The bound of the error at that time.
    bias = min(1.0, 1 / (2 * math.e * stopping_time)) if stopping_time > 0 else 1.0
    noise_shares = np.minimum(stopping_time * values, 1)
    error = _squared_norm(norm * math.sqrt(largest * bias), noise * noise_shares) / n
    return EarlyStopping(
        time=_quotient(time, largest),
        steps=steps,
        critical_radius=_critical_radius(n, time, largest),
        error=error,
    )


def _scaled_rate(learning_rate: float, largest: float, time: float) -> float:
    """Return ηλ_max; refuse rates above 1/λ_max, or so small that the steps cannot be counted."""
    rate = known_number("learning_rate", learning_rate, above=0)
    if rate * largest > 1 + 1e-6:
        raise ValueError(
            f"learning_rate must be at most 1/λ_max = {1 / largest:.6g}, as the rule assumes, "
            f"got {learning_rate!r}."
        )
    # From here on in units of 1/λ_max, as the time is.
    rate = rate * largest
    if not (rate > 0 and math.isfinite(time / rate)):
        raise ValueError(
            "learning_rate must be so large that the number of steps is a number, "
            f"got {learning_rate!r} for a time of {time / largest:.3g}. "
            "Leave it out for the time alone."
        )
    return rate


def _last_step(values: np.ndarray, complexity: float, time: float, rate: float) -> int:
    """Return the last step before the complexity exceeds its limit."""

    def exceeds(steps: int) -> bool:
        elapsed = rate * float(steps)
        return elapsed * float(np.sum(np.minimum(elapsed * values, 1))) > complexity

    # The quotient may be off by one step through rounding: the rule itself decides.
    steps = math.floor(time / rate)
    if not exceeds(steps + 1):
        return steps + 1
    return steps - 1 if exceeds(steps) else steps


def _squared_norm(bias: float, deviations: np.ndarray) -> float:
    """Return bias² plus the sum of the squared deviations, +inf beyond the largest float."""
    with np.errstate(over="ignore"):
        return float(np.sum(np.append(deviations, bias) ** 2))


def _quotient(dividend: float, divisor: float) -> float:
    """Return dividend/divisor, +inf beyond the largest float."""
    with np.errstate(over="ignore"):
        return float(np.float64(dividend) / divisor)


def _critical_radius(n: int, time: float, largest: float) -> float:
    """Return 1/√(nt) for a time in units of 1/λ_max."""
    return _quotient(math.sqrt(largest), math.sqrt(n) * math.sqrt(time))


def least_risk_time(
    gram: Gram | None, noise: float, *, norm: float = 1.0, eigenvalues: Eigenvalues | None = None
) -> EarlyStopping:
    r"""Return the time at which the worst-case risk of gradient flow is smallest.

    Use it to stop on noisy targets when only the norm of the noiseless function is known. With
    F_0 = 0, noise of variance σ² and ‖F*‖ ≤ B in the kernel's space, the risk at the training
    points satisfies

        E‖F_t − F*‖² ≤ B² max_i λ_i e^{−2λ_i t} + σ² Σ (1 − e^{−λ_i t})²,

    with equality for F* = B √λ_i q_i at the i of the maximum. This function minimises the right
    side. The rule of :func:`early_stopping_time` compares bounds of its two terms; with the
    constant of its proof, 1/(2e), it stops ten to seventy times earlier in score estimation.

    Args:
        gram: H, as for :func:`early_stopping_time`.
        noise: σ > 0, the standard deviation of the noise.
        norm: B > 0, the norm of the noiseless function.
        eigenvalues: λ, [p], instead of the gram.

    Returns:
        :class:`EarlyStopping`, with ``steps`` None; ``error`` is the worst risk per point.

    Raises:
        ValueError: as for :func:`early_stopping_time`.

    Example:
        >>> import numpy as np
        >>> stop = least_risk_time(np.eye(4), 1.0)  # minimises e^{−2t} + 4 (1 − e^{−t})²
        >>> round(float(np.exp(-stop.time)), 6), round(stop.error, 6)
        (0.8, 0.2)

    Source: the bias–variance decomposition of linear filters, e.g. Yao, Rosasco and Caponnetto
    (2007), Constr. Approx. 26.
    """
    # 1. Eigenvalues in units of λ_max; times are multiples of 1/λ_max from here on.
    noise = known_number("noise", noise, above=0)
    norm = known_number("norm", norm, above=0)
    values = descending_eigenvalues(gram, eigenvalues)
    n = len(values)
    largest = float(values[0])
    values = np.maximum(values[values > 0] / largest, MIN_POSITIVE)
    # 2. The risk with both terms in units of the larger one, so that neither overflows.
    noise_ratio = noise / norm / math.sqrt(largest)
    signal_weight = 1.0 if noise_ratio <= 1 else 1 / noise_ratio / noise_ratio
    noise_weight = noise_ratio * noise_ratio if noise_ratio <= 1 else 1.0

    def bias_and_variance(log_time: float) -> tuple[float, float]:
        t = math.exp(log_time) * values
        return float(np.max(values * np.exp(-2 * t))), float(np.sum(np.expm1(-t) ** 2))

    def risk(log_time: float) -> float:
        bias, variance = bias_and_variance(log_time)
        return signal_weight * bias + noise_weight * variance

    # 3. The direction of the maximum changes with t, so there may be several minima: a grid first.
    #    Where noise outweighs the signal the risk is about S (1 − 2t) + N Σλ² t², with S the signal
    #    weight and N the noise weight. Its minimum t = S/(N Σλ²) must lie within the grid.
    balance = signal_weight / max(noise_weight, MIN_POSITIVE) / float(np.sum(values**2))
    earliest = max(min(1e-6, 0.1 * balance), MIN_POSITIVE)
    log_latest = math.log(1e3) - math.log(values[-1])
    log_times = np.linspace(math.log(earliest), log_latest, RISK_GRID_SIZE)
    best = int(np.argmin([risk(log_time) for log_time in log_times]))
    # 4. Refine between the neighbours of the best grid point.
    lower_end = log_times[max(best - 1, 0)]
    upper_end = log_times[min(best + 1, len(log_times) - 1)]
    minimum = scipy.optimize.fminbound(risk, lower_end, upper_end, xtol=1e-9)
    refined = float(minimum)  # pyright: ignore[reportArgumentType]
    log_time = min(refined, float(log_times[best]), key=risk)
    time = math.exp(log_time)
    bias, variance = bias_and_variance(log_time)
    noise_norm = noise * np.atleast_1d(math.sqrt(variance))
    return EarlyStopping(
        time=_quotient(time, largest),
        steps=None,
        critical_radius=_critical_radius(n, time, largest),
        error=_squared_norm(norm * math.sqrt(largest * bias), noise_norm) / n,
    )


def descending_eigenvalues(gram: Gram | None, eigenvalues: Eigenvalues | None) -> np.ndarray:
    """Return all eigenvalues in descending order, rounding below zero removed.

    Exactly one of gram and eigenvalues must be passed, and the largest must be positive.
    """
    if gram is not None and eigenvalues is not None:
        raise ValueError("give either gram or eigenvalues, got both.")
    if gram is None and eigenvalues is None:
        raise ValueError("give gram or eigenvalues.")
    # Negative eigenvalues within the tolerance are rounding, and become zero.
    if gram is not None:
        values = decompose(gram).values
        check_positive_part("gram", values)
    else:
        values = np.sort(as_double("eigenvalues", eigenvalues, ("p",), integers=True))
        if values[0] < -NEGATIVE_TOLERANCE * values[-1]:
            raise ValueError(
                "eigenvalues must be finite, not negative and at least one, "
                f"got {np.asarray(eigenvalues)}."
            )
        check_positive_part("eigenvalues", values)
    return np.maximum(values[::-1], 0)

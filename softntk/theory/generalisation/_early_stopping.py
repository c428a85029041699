"""When gradient descent on noisy targets should stop.

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


@record
class EarlyStopping:
    """When to stop, and what that is worth.

    Attributes:
        time: t, learning rate × steps; +inf where it is beyond the largest float.
        steps: with a learning rate: the last step that is to be made; otherwise None.
        critical_radius: ε̂ = 1/√(nt).
        error: E ‖F_t − F*‖²/n on the training points is at most this; with steps, for these.
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
    r"""Return when gradient descent on noisy targets should stop: where the local Rademacher
    complexity reaches the noise.

    The paper: loss 1/(2n)Σ, λ̂_i the eigenvalues of H/n, η the sum of the step sizes, targets F* of
    norm at most 1. It stops before the first step at which

        R̂(1/√η) > c/(ση),    R̂(ε) = √(1/n Σ min(λ̂_i, ε²)),    c = 1/(2e).

    Ours is ½ΣΣ, n times that loss, so η = nt; targets of norm at most B are those of norm 1, with
    noise σ/B, times B. Then n cancels, and with λ_i = nλ̂_i the rule is

        t Σ min(tλ_i, 1) > (cB/σ)².

    The left side increases from zero, so t is unique, and a root of a quadratic between two 1/λ_i:
    no search is needed.

    **What it is worth** (proof in expectation; the paper has 12 B²ε̂² with high probability). Noise
    of variance σ², F_0 = 0, flow, or steps with ηλ_max ≤ 1, leave the bias e^{−λt} at most and let
    in 1 − e^{−λt} ≤ min(λt, 1) at most:

        E‖F_t − F*‖² ≤ Σ e^{−2λ_i t}⟨q_i, F*⟩² + σ² Σ min(tλ_i, 1)² ≤ B² min(λ_max, 1/(2et)) + σ² Σ min(tλ_i, 1)²,

    as λe^{−2λt} ≤ 1/(2et) and Σ⟨q_i, F*⟩²/λ_i ≤ B². At the t of the rule the last sum is at most
    c²B²/t, and the whole at most (1/(2e) + c²)B²/t: so the squared error a point is at most 0.218
    B²ε̂². At c = 1, ε̂ (for B = 1) is the fixed point of the local Rademacher complexity itself,
    σR̂(ε̂) = ε̂²; t is larger, and the factor is 1.184, of a smaller ε̂². The paper's c leaves room
    for its high probability.

    Args:
        gram: H, [n, n], or [n, n, k, k] (then n·k stands for n), or None with eigenvalues.
        noise: σ > 0, the standard deviation of the noise, of every output; :func:`noise_level`
            estimates it.
        norm: B > 0, of the function without the noise, √(F*ᵀH⁻¹F*); the paper assumes 1.
        learning_rate: η of steps on ½ΣΣ(F−Y)², at most 1/λ_max.
        eigenvalues: λ, [p], all of them, in any order, instead of the gram.
        constant: c.

    Returns:
        :class:`EarlyStopping`.

    Raises:
        ValueError: noise, norm, learning_rate or constant not positive, ηλ_max > 1; gram and
            eigenvalues as for :func:`effective_rank`.

    Example:
        >>> import numpy as np
        >>> stop = early_stopping_time(np.eye(4), 1 / (2 * np.e))  # 4 t min(t, 1) = 1
        >>> round(stop.time, 6), early_stopping_time(np.eye(4), 1 / (2 * np.e), learning_rate=0.2).steps
        (0.5, 2)

    Source: Raskutti, Wainwright and Yu (2014), JMLR 15, 335-366, Theorem 1 (rule and constants as
    remembered).
    """
    noise = known_number("noise", noise, above=0)
    norm = known_number("norm", norm, above=0)
    constant = known_number("constant", constant, above=0)
    values = descending_eigenvalues(gram, eigenvalues)
    n = len(values)
    largest = float(values[0])
    values = values[values > 0] / largest  # and times are multiples of 1/λ_max
    root = min(max(constant * (norm / noise) * math.sqrt(largest), 1e-300), 1e300)
    level = root * root
    # With the first k eigenvalues above 1/t and S the sum of the others, t k + t² S = level.
    tails = np.append(np.cumsum(values[::-1])[::-1], 0.0)
    with np.errstate(over="ignore"):
        at_breaks = (np.arange(len(values)) + tails[:-1] / values) / values
    k = int(np.searchsorted(at_breaks, level, side="right"))
    time = 2 * root * (root / (k + math.hypot(k, 2 * math.sqrt(tails[k]) * root)))
    stopped = time
    steps = None
    if learning_rate is not None:
        rate = known_number("learning_rate", learning_rate, above=0)
        if rate * largest > 1 + 1e-6:
            raise ValueError(
                f"learning_rate must be at most 1/λ_max = {1 / largest:.6g}, as the rule assumes, got {learning_rate!r}."
            )
        rate = rate * largest
        if not (rate > 0 and math.isfinite(time / rate)):
            raise ValueError(
                f"learning_rate must be so large that the number of steps is a number, got {learning_rate!r} for a time of "
                f"{time / largest:.3g}. Leave it out for the time alone."
            )
        steps = _last_step(values, level, time, rate)
        stopped = rate * float(steps)
    bias = min(1.0, 1 / (2 * math.e * stopped)) if stopped > 0 else 1.0
    error = (
        _squared_norm(norm * math.sqrt(largest * bias), noise * np.minimum(stopped * values, 1)) / n
    )
    return EarlyStopping(
        time=_quotient(time, largest),
        steps=steps,
        critical_radius=_critical_radius(n, time, largest),
        error=error,
    )


def _last_step(values: np.ndarray, level: float, time: float, rate: float) -> int:
    """Return the number of steps after which the complexity first exceeds its level, by the rule
    and not by its rounding.
    """

    def exceeds(steps: int) -> bool:
        elapsed = rate * float(steps)
        return elapsed * float(np.sum(np.minimum(elapsed * values, 1))) > level

    steps = math.floor(time / rate)
    steps += not exceeds(steps + 1)
    return steps - exceeds(steps)


def _squared_norm(bias: float, deviations: np.ndarray) -> float:
    """Return the sum of the squares, +inf beyond the largest float."""
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
    r"""Return when gradient flow should stop if only the norm of the targets is known: at the least
    of the worst risks.

    With F_0 = 0, noise of variance σ² and ‖F*‖ ≤ B in the kernel's space, the risk at the training
    points is, exactly, at most

        E‖F_t − F*‖² ≤ B² max_i λ_i e^{−2λ_i t} + σ² Σ (1 − e^{−λ_i t})²,

    with equality for F* = B √λ_i q_i at the i of the maximum. The rule of
    :func:`early_stopping_time` compares bounds of the two terms, and with the constant of its
    proof, 1/(2e), stops ten to seventy times earlier in score estimation; this one minimises the
    sum itself.

    Args:
        gram: H, as for :func:`early_stopping_time`.
        noise: σ > 0.
        norm: B > 0.
        eigenvalues: λ, [p], instead of the gram.

    Returns:
        :class:`EarlyStopping`, ``steps`` None; ``error`` is the worst risk a point.

    Raises:
        ValueError: as :func:`early_stopping_time`.

    Example:
        >>> import numpy as np
        >>> stop = least_risk_time(np.eye(4), 1.0)  # e^{−2t} + 4 (1 − e^{−t})² is least at e^{−t} = 4/5
        >>> round(float(np.exp(-stop.time)), 6), round(stop.error, 6)
        (0.8, 0.2)

    Source: the bias–variance decomposition of linear filters, e.g. Yao, Rosasco and Caponnetto
    (2007), Constr. Approx. 26.
    """
    noise = known_number("noise", noise, above=0)
    norm = known_number("norm", norm, above=0)
    values = descending_eigenvalues(gram, eigenvalues)
    n = len(values)
    largest = float(values[0])
    values = np.maximum(values[values > 0] / largest, 1e-290)  # and times are multiples of 1/λ_max
    ratio = noise / norm / math.sqrt(largest)
    # Both terms in units of the larger one.
    signal_weight = 1.0 if ratio <= 1 else 1 / ratio / ratio
    noise_weight = ratio * ratio if ratio <= 1 else 1.0

    def parts(log_time: float) -> tuple[float, float]:
        t = math.exp(log_time) * values
        return float(np.max(values * np.exp(-2 * t))), float(np.sum(np.expm1(-t) ** 2))

    def risk(log_time: float) -> float:
        bias, variance = parts(log_time)
        return signal_weight * bias + noise_weight * variance

    # Several directions may take turns in the maximum, so there may be several minima: a grid
    # first. Where noise outweighs the signal the risk is about S (1 − 2t) + N Σλ² t², least at t =
    # S/(N Σλ²).
    balance = signal_weight / max(noise_weight, 1e-290) / float(np.sum(values**2))
    earliest = max(min(1e-6, 0.1 * balance), 1e-290)
    grid = np.linspace(math.log(earliest), math.log(1e3) - math.log(values[-1]), 400)
    best = int(np.argmin([risk(log_time) for log_time in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    refined = float(scipy.optimize.fminbound(risk, *ends, xtol=1e-9))  # pyright: ignore[reportArgumentType]
    log_time = min(refined, float(grid[best]), key=risk)
    time = math.exp(log_time)
    bias, variance = parts(log_time)
    return EarlyStopping(
        time=_quotient(time, largest),
        steps=None,
        critical_radius=_critical_radius(n, time, largest),
        error=_squared_norm(
            norm * math.sqrt(largest * bias), noise * np.atleast_1d(math.sqrt(variance))
        )
        / n,
    )


def descending_eigenvalues(gram: Gram | None, eigenvalues: Eigenvalues | None) -> np.ndarray:
    """Return the eigenvalues, descending, at least zero, the first one positive."""
    if (gram is None) == (eigenvalues is None):
        raise ValueError(
            "give either gram or eigenvalues, got both."
            if gram is not None
            else "give gram or eigenvalues."
        )
    if gram is not None:
        values = decompose(gram).values
        check_positive_part("gram", values)
    else:
        values = np.sort(as_double("eigenvalues", eigenvalues, ("p",), integers=True))
        if values[0] < -1e-3 * values[-1]:
            raise ValueError(
                f"eigenvalues must be finite, not negative and at least one, got {np.asarray(eigenvalues)}."
            )
        check_positive_part("eigenvalues", values)
    return np.maximum(values[::-1], 0)

"""The path of the proof of convergence: boxes of logits while the mass grows until ‖r‖ is zero.

Steps (i) to (iii) of the proof in ``convergence.py``, one segment of the mass τ after the other:
δ(τ) encloses the logits, s(τ) bounds σ_min(J) from below, and ‖r₀‖ − (1 − θ)∫s² bounds ‖r‖.
"""

from typing import NamedTuple

import numpy as np

from softntk._linalg.rigorous import slack
from softntk.theory._certificates.jacobian_bounds import (
    ProofData,
    bound_jacobian_change,
    bound_logit_speed,
)
from softntk.theory._certificates.logit_box import Matrix, SlopeBounds

SEGMENT_COUNT = 40
"""Number of segments of the mass ‖r₀‖/s², the mass that would do if s did not shrink."""

CURVATURE_SHARE = 0.05
"""θ, the share of the decrease of ‖r‖ that the curvature of F may consume."""

MAX_ENCLOSURE_ATTEMPTS = 12
"""Attempts at finding a box that encloses the logits over a segment."""

INITIAL_SPEED_GROWTH = 0.02
"""Relative growth of the speed of the logits that is expected over the first segment."""


class _PathSegment(NamedTuple):
    """The end of a segment of the mass.

    Attributes:
        delta: half-widths of the box of logits at the end, [n, m].
        slopes: bounds of the slopes on that box.
        speed_growth: relative growth of the speed of the logits over the segment.
    """

    delta: Matrix
    slopes: SlopeBounds
    speed_growth: float


class ProofProgress(NamedTuple):
    """The state of the proof where it ended.

    Attributes:
        delta: half-widths of the box of logits, [n, m].
        mass: τ, the sum of η‖r_t‖.
        smallest: s(τ), below σ_min(J).
        largest: β(τ), above ‖J‖.
        remaining_residual: the part of ‖r₀‖ that is not yet proved to vanish; at most zero at the
            end of a complete proof.
        reason: why the proof stopped early; empty if it is complete.
    """

    delta: Matrix
    mass: float
    smallest: float
    largest: float
    remaining_residual: float
    reason: str


def _enclose_segment(
    data: ProofData, delta: Matrix, slopes: SlopeBounds, mass_step: float, speed_growth: float
) -> _PathSegment | None:
    """Return an enclosure of the logits over the next segment of the mass, None if none is found.

    A candidate box is verified as in Picard's theorem: if the speed on all of the candidate carries
    δ no further than the candidate, the solution stays in it over the whole segment.
    """
    # The first guess follows the speed at the start, with the growth seen on the last segment.
    initial_speed = bound_logit_speed(data, slopes)
    candidate = delta + (1 + 1.2 * speed_growth) * mass_step * initial_speed
    for _ in range(MAX_ENCLOSURE_ATTEMPTS):
        candidate_slopes = data.box.slopes(candidate)
        if candidate_slopes is None:
            return None
        largest_speed = bound_logit_speed(data, candidate_slopes)
        reached = delta + mass_step * largest_speed
        if (reached <= candidate).all():
            # Verified: ``reached`` encloses the end, and is narrower than the candidate.
            final_slopes = data.box.slopes(reached)
            speed_ratio = np.divide(
                largest_speed,
                initial_speed,
                out=np.ones_like(largest_speed),
                where=initial_speed > 0,
            )
            if final_slopes is None:
                return None
            return _PathSegment(reached, final_slopes, float(speed_ratio.max()) - 1)
        # Try again with a larger box.
        candidate = delta + 1.1 * (reached - delta)
    return None


def integrate_bounds(data: ProofData, smallest: float, largest: float) -> ProofProgress:
    """Increase the mass until the bound on ‖r‖ reaches zero, or until the proof fails.

    Args:
        data: the network.
        smallest: s = σ_min(J(W₀)), from below.
        largest: ‖J(W₀)‖, from above.
    """
    # 1. Start with the box that covers the rounding of the logits.
    slopes = data.box.slopes(data.box.start)
    assert slopes is not None
    segment = _PathSegment(data.box.start, slopes, INITIAL_SPEED_GROWTH)
    remaining = data.residual_norm
    mass = 0.0
    s = smallest
    change = 0.0
    mass_step = data.residual_norm / smallest**2 / SEGMENT_COUNT
    while remaining > 0:
        # 2. Enclose the logits over the next segment.
        following = _enclose_segment(
            data, segment.delta, segment.slopes, mass_step, segment.speed_growth
        )
        if following is None:
            reason = "the enclosure of the logits explodes"
            return ProofProgress(segment.delta, mass, s, largest + change, remaining, reason)
        segment = following
        # 3. σ_min(J) at its end, which must stay positive.
        change = bound_jacobian_change(data, segment.slopes)
        if not change < smallest:
            reason = "the smallest singular value is used up"
            return ProofProgress(segment.delta, mass, 0.0, largest + change, remaining, reason)
        s = smallest - change
        mass = mass + mass_step
        # 4. ‖r‖ falls by at least (1 − θ) s² per unit of mass.
        remaining -= (1 - CURVATURE_SHARE) * mass_step * s**2 * (1 - slack(1))
    if not remaining <= 0:  # NaN
        return ProofProgress(
            segment.delta, mass, 0.0, largest + change, data.residual_norm, "numbers overflow"
        )
    return ProofProgress(segment.delta, mass, s, largest + change, 0.0, "")

"""Normal draws cut to an interval, near its centre and far out in a tail: against SciPy's
truncnorm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from softntk import diffusion
from softntk.diffusion._denoisers import noisy_samples
from softntk.diffusion._denoisers.coordinates import fit_coordinates
from softntk.diffusion._truncated_normal import truncated_normal_quantile

SDE = diffusion.vp_sde()
QUANTILE = jax.jit(truncated_normal_quantile)

# lower, upper, centre, deviation; and by how much of the width of the law float32 and float64 may
# be off
INTERVALS = {
    "around the centre": (-10.0, 9.0, 1.0, 2.4, 2e-6, 1e-13),
    "symmetric": (-5.0, 5.0, 0.0, 1.0, 2e-6, 1e-13),
    "all in one small piece": (3.0, 3.001, 0.0, 1.0, 1e-3, 1e-11),
    "six deviations above": (-10.0, 9.0, 24.0, 2.4, 3e-5, 1e-12),
    "fifteen deviations below": (-10.0, 9.0, -46.0, 2.4, 3e-5, 1e-12),
    "a hundred deviations above": (-10.0, 9.0, 300.0, 2.4, 1e-3, 1e-3),
    "ten thousand deviations below": (-10.0, 9.0, -12.0, 2e-4, 2e-2, 1e-4),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_quantiles_are_those_of_scipy(name, dtype):
    lower, upper, centre, deviation, *tolerances = INTERVALS[name]
    uniform = np.linspace(0.0005, 0.9995, 101)
    desired = scipy.stats.truncnorm(
        (lower - centre) / deviation, (upper - centre) / deviation, centre, deviation
    ).ppf(uniform)
    actual = np.asarray(
        QUANTILE(jnp.asarray(uniform, dtype), lower, upper, centre, deviation), np.float64
    )
    assert (np.diff(actual) >= 0).all()
    spread = desired.max() - desired.min()
    rounding = float(jnp.finfo(dtype).eps) * max(abs(lower), abs(upper))
    assert np.abs(actual - desired).max() < spread * tolerances[dtype == "float64"] + 2 * rounding


def test_the_ends_of_the_interval_are_kept():
    for centre in (0.0, 1e3, -1e3, 1e6, -1e6, 1e30, -1e30):
        ends = np.asarray(QUANTILE(jnp.asarray([0.0, 0.5, 1 - 1e-7]), -10.0, 9.0, centre, 2.4))
        assert (ends >= -10).all()
        assert (ends <= 9).all()
        assert ends[0] == pytest.approx(-10, abs=1e-3)
        if centre:
            assert ends[1] == pytest.approx(9 if centre > 0 else -10, abs=1e-2)
    assert float(QUANTILE(jnp.asarray([0.3]), 2.0, 2.0, 0.0, 1.0)[0]) == 2


@pytest.mark.parametrize("centre", [5.0, 24.0, 1e3, -26.0, -1e3])
def test_times_lie_at_the_end_next_to_the_centre(centre):
    low, high = float(SDE.log_snr(1.0)), float(SDE.log_snr(1e-3))
    t = SDE.sample_times(jax.random.key(0), 4000, 1e-3, centre=centre)
    law = scipy.stats.truncnorm((low - centre) / 2.4, (high - centre) / 2.4, centre, 2.4)
    log_snr = np.asarray(SDE.log_snr(t), np.float64)
    assert abs(log_snr.mean() - law.mean()) < 5 * law.std() / np.sqrt(4000) + 1e-4


@pytest.mark.parametrize("unit", [1.0, 1e-8, 1e3])
def test_times_of_a_fit_follow_the_log_snr_of_the_data(unit):
    x0 = unit * jax.random.normal(jax.random.key(0), (200, 2))
    frame = fit_coordinates(SDE, x0, 4, 1e-3)
    if unit == 1e-8:  # drowned at every time: a single level is all there is
        assert len(frame.noise_levels) == 1
        assert float(
            noisy_samples.draw_times(jax.random.key(1), SDE, frame, 5, (1.0, 2.4))
        ) == pytest.approx(1e-3, rel=1e-3)
        return
    levels = (1.0, 2.4)
    t = noisy_samples.draw_times(jax.random.key(1), SDE, frame, 4000, levels)
    low, high = float(frame.noise_levels[0]), float(frame.noise_levels[-1])
    covariance = np.cov(np.asarray(x0, np.float64).T, bias=True)
    centre = 1.0 - np.log(np.trace(covariance @ covariance) / np.trace(covariance))
    law = scipy.stats.truncnorm((low - centre) / 2.4, (high - centre) / 2.4, centre, 2.4)
    assert scipy.stats.kstest(np.asarray(SDE.log_snr(t), np.float64), law.cdf).pvalue > 1e-3
    strata = np.asarray(
        SDE.log_snr(
            noisy_samples.draw_times(jax.random.key(2), SDE, frame, 8, levels, stratified=True)
        )
    )
    shares = law.cdf(strata.astype(np.float64)) * 8
    assert (np.floor(np.clip(shares, 0, 7.999)) == np.arange(8)).all()

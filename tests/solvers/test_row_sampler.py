"""The sample of rows behind a step: its measured distortion, and how it grows."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import slow_except
from small_regressions import after, regression

import softntk as sn
from softntk.curvature import sketch

scale_by = sn.solvers.scale_by_approx_newton


@pytest.mark.slow
@pytest.mark.parametrize(("d", "cg_steps"), [(3, None), (8, None), (8, 3), (8, 8)])
def test_the_measured_distortion_is_a_lower_bound(d, cg_steps, x64):
    """Ritz values lie inside of the spectrum; where the Krylov space is all of ℝ^d they are the
    spectrum.
    """
    p, x = regression(n=200, d=d, weights=1.0), jnp.ones(d) / d
    plain, tx = (
        scale_by(p.hessian, sketch_size=40, cg_steps=k, max_distortion=1e9)
        for k in (None, cg_steps)
    )

    @jax.jit
    def run(state):
        # of the sample, which is drawn by the state
        inverse = jax.vmap(lambda g: plain.update(g, state, x)[0])(jnp.eye(d))
        return p.hessian(x).as_matrix(), inverse, after(tx, p, state, x)[1]

    state = tx.init(x)
    for _ in range(4):
        H, inverse, state = run(state)
        true, measured = (
            float(sketch.distortion(H, jnp.linalg.inv(inverse))),
            float(state.distortion),
        )
        assert 0.3 * true < measured <= true * (1 + 1e-8)
        assert d > 3 or measured > true * (1 - 1e-6)
        assert int(state.sample_size) == 40


@pytest.mark.slow
@pytest.mark.parametrize("cg_steps", slow_except([None, 2], None))
def test_the_sample_grows_where_it_has_to(cg_steps, x64):
    p = regression(n=100, weights=1.0)
    tx, x, sizes = (
        scale_by(p.hessian, sketch_size=10, cg_steps=cg_steps, max_distortion=1e-6),
        jnp.zeros(3),
        [],
    )
    state: Any = tx.init(x)
    run = jax.jit(lambda state: after(tx, p, state, x)[1])
    for _ in range(5):
        state = run(state)
        sizes.append(int(state.sample_size))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (10, 100)
    assert float(state.distortion) < 1e-6

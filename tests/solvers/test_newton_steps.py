"""Steps of the second-order models: trust regions, Levenberg and Marquardt, Krylov spaces, against
dense NumPy and SciPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import assert_close

from softntk._linalg import scaled_cholesky
from softntk.solvers._newton import dense_steps, krylov_steps
from softntk.solvers._newton.globalisation import DAMPINGS
from softntk.solvers._newton.model import LossAlongStep

REGIONS = {
    "inside": ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]),
    "at the boundary": ([1.0, 2.0, 3.0], [5.0, -4.0, 3.0]),
    "indefinite": ([-1.0, 2.0, 3.0], [1.0, -4.0, 3.0]),
    "hard": ([-1.0, 2.0, 3.0], [0.0, 0.5, 0.3]),
    "hard, twice": ([-1.0, -1.0, 3.0], [0.0, 0.0, 0.3]),
    "nearly hard": ([-1.0, 2.0, 3.0], [1e-6, 0.5, 0.3]),
    "hard, but the rest is long": ([-1.0, 2.0, 3.0], [0.0, 50.0, 3.0]),
    "singular": ([0.0, 2.0, 3.0], [0.0, 0.5, 0.3]),
    "singular, with slope": ([0.0, 2.0, 3.0], [0.5, 0.5, 0.3]),
    "nothing but curvature": ([-1.0, 2.0, 3.0], [0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("turned", [False, True])
def test_the_trust_region_is_solved_exactly(turned, x64):
    """By its optimality conditions, which are sufficient, and against a search by SLSQP from many
    starts.
    """
    rng, radius = np.random.default_rng(0), 0.7
    Q = np.linalg.qr(rng.normal(size=(3, 3)))[0] if turned else np.eye(3)
    C = np.linalg.cholesky(np.eye(3) + 0.3 * np.ones((3, 3))) if turned else np.eye(3)
    M, back = C @ C.T, Q.T @ C.T  # sᵀMs = ‖back s‖², and H is diagonal in back s

    @jax.jit
    def region(H, g):
        model = dense_steps.diagonalise(H, jnp.asarray(M), g)
        return model.step(DAMPINGS["trust_region"].solve(model, jnp.asarray(radius), jnp.zeros(())))

    for name, (values, slope) in REGIONS.items():
        H, g = back.T @ np.diag(values) @ back, back.T @ np.array(slope)
        s = np.asarray(region(H, g))
        length = np.sqrt(s @ M @ s)
        multiplier = max(-(s @ g + s @ H @ s) / length**2, 0) if length > 0 else 0
        assert length <= radius * (1 + 1e-7), name
        assert multiplier < 1e-7 or length > radius * (1 - 1e-4), name
        assert np.linalg.norm((H + multiplier * M) @ s + g) < 1e-5 * (1 + np.linalg.norm(g)), name
        assert (
            np.linalg.eigvalsh(np.linalg.solve(C, np.linalg.solve(C, H).T))[0] + multiplier > -1e-5
        ), name
        model = lambda s, H=H, g=g: s @ g + 0.5 * s @ H @ s
        inside = {"type": "ineq", "fun": lambda s: radius**2 - s @ M @ s}
        found = [
            scipy.optimize.minimize(model, start, constraints=inside)
            for start in rng.normal(size=(6, 3))
        ]
        least = min(
            run.fun for run in found if run.success and run.x @ M @ run.x <= radius**2 * (1 + 1e-6)
        )
        assert model(s) <= least + 1e-5 * abs(least), name


def test_levenberg_and_marquardt_solve_their_system(x64):
    rng = np.random.default_rng(0)
    H, M = (part @ part.T for part in rng.normal(size=(2, 3, 5)))
    g = rng.normal(size=3)

    @jax.jit
    def solve(H, mu):
        model = dense_steps.diagonalise(H, jnp.asarray(M), jnp.asarray(g))
        return model.step(DAMPINGS["levenberg_marquardt"].solve(model, mu, jnp.ones(())))

    for mu in (1e-3, 1.0, 100.0):
        assert_close(solve(H, mu), -np.linalg.solve(H + mu * M, g), rtol=1e-9)
    down = np.asarray(solve(-H, 0.1))
    assert np.isfinite(down).all()
    assert down @ g < 0


def test_krylov_of_full_length_is_dense(x64):
    rng = np.random.default_rng(0)
    (H, P), g = (part @ part.T for part in rng.normal(size=(2, 5, 8))), rng.normal(size=5)
    trial = LossAlongStep(
        jnp.zeros(()), lambda s: s @ g + 0.5 * s @ H @ s, lambda s: (g + H @ s) @ s
    )

    @jax.jit
    def run(preconditioner):
        factor = None if preconditioner is None else scaled_cholesky.factorise(preconditioner)
        space = krylov_steps.krylov_model(
            lambda v: jnp.asarray(H) @ v, factor, jnp.asarray(g), jnp.ones(()), 0.0, 5
        )
        damped = krylov_steps.damped_step(space, DAMPINGS["trust_region"], trial, jnp.zeros(()))
        return space, krylov_steps.undamped_step(space).step, damped.step

    for preconditioner in (None, P):
        space, *steps = run(preconditioner)
        for step in steps:
            assert_close(step, -np.linalg.solve(H, g), rtol=1e-8)
        assert int(space.products) == 5
        values = np.linalg.eigvals(np.linalg.solve(np.eye(5) if preconditioner is None else P, H))
        assert_close(space.distortion, np.max(np.abs(values - 1)), rtol=1e-8)
    # Of the curvature itself nothing is distorted, though most places stay unused.
    assert float(run(H)[0].distortion) < 1e-9

"""An activation of one's own has all that those of the table have: by one record, and one entry."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softntk as sn
from softntk import activations, stax
from softntk.activations import ACTIVATIONS, Enclosure, HostJet


def logistic_host_jet(z, shift):
    """σ(z) and three derivatives, products of σ(z), σ(−z) and tanh(z/2), with a sum in the last."""
    unit = np.exp(-np.asarray(shift, z.dtype))
    share, rest = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    du = unit * share * rest
    values = (unit * share, du, -np.tanh(z / 2) * du, (1 - 6 * share * rest) * du)
    u, _, d2u, _ = values
    return HostJet(values, (u, du, np.abs(d2u), (1 + 6 * share * rest) * du))


# σ'' = 0 at zero, σ''' where σ = (1 ± 1/√3)/2, σ'''' where it is ½ or (1 ± √(2/3))/2.
_SECOND = float(np.log(2 + np.sqrt(3)))
_THIRD = float(np.log((1 + np.sqrt(2 / 3)) / (1 - np.sqrt(2 / 3))))
LOGISTIC = activations.from_function(
    jax.nn.sigmoid,
    "logistic",
    enclosure=Enclosure(
        logistic_host_jet,
        turning_points=((), (0.0,), (-_SECOND, _SECOND), (-_THIRD, 0.0, _THIRD)),
    ),
)
A = np.random.default_rng(0).normal(size=(9, 2))
B = np.random.default_rng(1).dirichlet(np.ones(9))


def test_its_enclosure_is_right():
    z = np.linspace(-4, 4, 40001)
    derivatives = logistic_host_jet(z, 0.0).values
    enclosure = LOGISTIC.enclosure
    assert enclosure is not None
    for lower, upper in ((-4.0, 4.0), (-1.0, 0.2), (1.0, 3.0)):
        inside = (lower - 1e-9 <= z) & (z <= upper + 1e-9)
        for found, values in zip(
            enclosure.bounds(np.array([lower]), np.array([upper])),
            derivatives,
            strict=True,
        ):
            assert found.lower[0] == pytest.approx(values[inside].min(), abs=1e-7)
            assert found.upper[0] == pytest.approx(values[inside].max(), abs=1e-7)


@pytest.mark.parametrize("form", ["plain", "rescaled", "normalized"])
def test_regressions_have_bounds_and_certified_minima(form, x64):
    p = sn.regression.problem(A, B, LOGISTIC, form, weights=1.0)
    solution = sn.solvers.minimise(p, np.zeros(2), rtol=1e-12).value
    ball = sn.theory.certify_minimum(p, solution)
    assert ball.holds, ball.reason
    curvature = np.linalg.norm(jax.hessian(p)(solution), 2)
    assert curvature <= sn.regression.lipschitz(p, 0.1, solution).gradient.ours < np.inf
    u = np.asarray(LOGISTIC.u(A @ solution)).sum()
    assert 0.5 * u < sn.regression.normaliser(p, 0.1, solution).ours <= u


@pytest.mark.parametrize("normalize", [False, True])
def test_networks_have_certificates_and_perturbation_bounds(normalize, x64):
    net = sn.networks.two_layer(activation=LOGISTIC, normalize=normalize, width=4000, sigma=0.5)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x, y = np.eye(3), np.full((3, 1), 0.002)
    certificate = sn.theory.certify_convergence(net, params, x, y)
    assert certificate.holds, certificate.reason
    found = sn.theory.perturbation(net, params, x, [0.01], key=jax.random.key(1), trials=1)
    assert np.all(found.frobenius <= found.ours_frobenius)
    assert np.all(found.ours_frobenius < np.inf)
    kernel, empirical = net.kernel_fn(x, None, "ntk"), sn.ntk.empirical(net, params, x)
    np.testing.assert_allclose(empirical[..., 0, 0], kernel, rtol=0.1, atol=1e-3)


@pytest.mark.slow
def test_an_entry_is_a_layer_a_family_and_a_denoiser(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "logistic", LOGISTIC)
    monkeypatch.setitem(sn.networks.FAMILIES, "logistic", ("logistic", False))
    _, _, kernel_fn = stax.serial(stax.Dense(8), stax.PlainActivation("logistic"), stax.Dense(1))
    kernel: Any = kernel_fn(jnp.eye(3), None, "ntk")
    assert np.isfinite(kernel).all()
    sde = sn.diffusion.vp_sde()
    x0 = jnp.sign(jax.random.normal(jax.random.key(0), (64, 1)))
    options = {"family": "logistic", "times": [0.1]}
    points = jnp.array([[-0.9], [0.9]])
    for f in (
        sn.diffusion.kernel_denoiser(jax.random.key(1), sde, x0, landmarks=16, draws=1, **options),
        sn.diffusion.fit_denoiser(jax.random.key(1), sde, x0, width=16, steps=20, **options),
    ):
        assert float(jnp.max(jnp.abs(f(0.1, points) - jnp.sign(points)))) < 0.9


def test_without_an_enclosure_a_message_names_what_is_missing():
    bare = activations.from_function(jax.nn.sigmoid, "logistic")
    with pytest.raises(ValueError, match="none for 'logistic': give it a .*Enclosure"):
        sn.regression.lipschitz(sn.regression.problem(A, B, bare, "plain"), 1.0)

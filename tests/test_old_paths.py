"""Import paths of version 0.1: those of public names work, those of private modules fail plainly."""

import subprocess
import sys

import pytest

import softntk as sn

PUBLIC = {
    "diffusion.sde": "vp_sde constant_sde cosine_sde VPSDE",
    "diffusion.mixture": "GaussianMixture EmpiricalDistribution",
    "diffusion.denoiser": "Denoiser score",
    "diffusion.training": "fit_denoiser",
    "diffusion.sampling": "sample",
    "diffusion.likelihood": "log_likelihood",
    "ntk.spectrum": "extreme_eigenvalues spectral_density target_alignment effective_dimension",
    "ntk.dynamics": "predict_gd predict_flow gd_coefficients",
    "ntk.inference": "kernel_regression gp_posterior",
    "ntk.depth": "propagate fixed_point",
    "ntk.gram_operators": "GramOperator",
    "regression.problem": "Problem problem",
    "regression.members": "softmax resnet_softmax exponential hyperbolic",
    "regression.attention": "Attention attention",
    "regression.two_layer": "two_layer",
    "regression.leverage": "leverage",
    "regression.bounds": "lipschitz convexity_weight normaliser",
    "solvers.transforms": "gradient_descent",
    "solvers.natural_gradient": "natural_gradient NaturalGradientState",
    "solvers.training": "train",
    "solvers.newton": "approx_newton scale_by_approx_newton NewtonState",
    "theory.convergence": "certify_convergence ConvergenceCertificate",
    "theory.minimum": "certify_minimum MinimumCertificate",
    "theory.risk": "risk_bound",
    "theory.bounds": "required_width required_steps",
    "diffusion.metrics": "mmd memorisation",
}


@pytest.mark.parametrize("path", PUBLIC)
def test_old_paths_of_public_names(path):
    """In a process of its own: that the module is imported first must not matter, nor hide a
    function of its name.
    """
    package, module = path.split(".")
    names = PUBLIC[path].split()
    namespace: dict = {}
    exec(f"from softntk.{path} import {', '.join(names)}\nimport softntk.{path}", namespace)
    for name in names:
        public = getattr(sn, package)
        assert namespace[name] is getattr(
            public, name, getattr(getattr(public, module), name, None)
        )
    assert callable(sn.regression.problem)
    assert callable(sn.regression.leverage)
    assert callable(sn.solvers.natural_gradient)


def test_an_old_path_can_be_the_first_import():
    code = "from softntk.regression.problem import Problem\nimport softntk as sn\nassert sn.regression.Problem is Problem\nsn.regression.problem"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "path", ["solvers._run", "ntk._empirical_kernel", "_validation", "curvature._matrices"]
)
def test_private_modules_are_gone(path):
    with pytest.raises(ModuleNotFoundError, match=path.split(".")[-1]):
        __import__(f"softntk.{path}")

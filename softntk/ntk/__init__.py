"""Neural tangent kernels: empirical ones in closed form, their spectra, and the dynamics of training that they predict."""

from softntk._linalg.extreme_eigenvalues import extreme_eigenvalues as extreme_eigenvalues
from softntk.ntk._empirical import empirical as empirical
from softntk.ntk._operator import kernel_operator as kernel_operator
from softntk.ntk._operator import operator as operator
from softntk.ntk._solve import solve as solve
from softntk.ntk.depth import fixed_point as fixed_point
from softntk.ntk.depth import propagate as propagate
from softntk.ntk.dynamics import gd_coefficients as gd_coefficients
from softntk.ntk.dynamics import predict_flow as predict_flow
from softntk.ntk.dynamics import predict_gd as predict_gd
from softntk.ntk.inference import gp_posterior as gp_posterior
from softntk.ntk.inference import kernel_regression as kernel_regression
from softntk.ntk.spectrum import effective_dimension as effective_dimension
from softntk.ntk.spectrum import spectral_density as spectral_density
from softntk.ntk.spectrum import target_alignment as target_alignment

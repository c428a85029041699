"""Neural tangent kernels: empirical ones in closed form, their spectra, and the dynamics of training that they predict."""

from softntk.ntk._empirical import empirical as empirical
from softntk.ntk._operator import kernel_operator as kernel_operator
from softntk.ntk._operator import operator as operator
from softntk.ntk._solve import solve as solve
from softntk.ntk.dynamics import predict_gd as predict_gd
from softntk.ntk.spectrum import extreme_eigenvalues as extreme_eigenvalues

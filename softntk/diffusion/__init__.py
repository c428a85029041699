"""Score estimation: denoisers by networks, by their kernels and by the dynamics between them; sampling; how good it is."""

from softntk.diffusion.mixture import EmpiricalDistribution as EmpiricalDistribution
from softntk.diffusion.mixture import GaussianMixture as GaussianMixture
from softntk.diffusion.sde import VPSDE as VPSDE
from softntk.diffusion.sde import constant_sde as constant_sde
from softntk.diffusion.sde import cosine_sde as cosine_sde
from softntk.diffusion.sde import vp_sde as vp_sde

"""Score estimation: denoisers by networks, by their kernels and by the dynamics between them; sampling; how good it is."""

from softntk.diffusion import metrics as metrics
from softntk.diffusion._kernel_denoiser import kernel_denoiser as kernel_denoiser
from softntk.diffusion._linearised_denoiser import linearised_denoiser as linearised_denoiser
from softntk.diffusion.denoiser import Denoiser as Denoiser
from softntk.diffusion.denoiser import score as score
from softntk.diffusion.likelihood import log_likelihood as log_likelihood
from softntk.diffusion.metrics import energy_distance as energy_distance
from softntk.diffusion.metrics import memorisation as memorisation
from softntk.diffusion.metrics import mmd as mmd
from softntk.diffusion.metrics import nearest_training_point as nearest_training_point
from softntk.diffusion.metrics import score_error as score_error
from softntk.diffusion.metrics import sliced_wasserstein as sliced_wasserstein
from softntk.diffusion.mixture import EmpiricalDistribution as EmpiricalDistribution
from softntk.diffusion.mixture import GaussianMixture as GaussianMixture
from softntk.diffusion.sampling import sample as sample
from softntk.diffusion.sde import VPSDE as VPSDE
from softntk.diffusion.sde import constant_sde as constant_sde
from softntk.diffusion.sde import cosine_sde as cosine_sde
from softntk.diffusion.sde import vp_sde as vp_sde
from softntk.diffusion.training import fit_denoiser as fit_denoiser

"""Score estimation: denoisers by networks, linearised networks and kernels; sampling; metrics."""

from softntk._core.old_paths import keep_old_paths
from softntk.diffusion import metrics as metrics
from softntk.diffusion._denoisers.base import Denoiser as Denoiser
from softntk.diffusion._denoisers.base import score as score
from softntk.diffusion._denoisers.kernel import kernel_denoiser as kernel_denoiser
from softntk.diffusion._denoisers.linearised import linearised_denoiser as linearised_denoiser
from softntk.diffusion._denoisers.network import fit_denoiser as fit_denoiser
from softntk.diffusion._distributions import EmpiricalDistribution as EmpiricalDistribution
from softntk.diffusion._distributions import GaussianMixture as GaussianMixture
from softntk.diffusion._sampling.likelihood import log_likelihood as log_likelihood
from softntk.diffusion._sampling.sample import sample as sample
from softntk.diffusion._sde import VPSDE as VPSDE
from softntk.diffusion._sde import constant_sde as constant_sde
from softntk.diffusion._sde import cosine_sde as cosine_sde
from softntk.diffusion._sde import vp_sde as vp_sde
from softntk.diffusion.metrics import energy_distance as energy_distance
from softntk.diffusion.metrics import memorisation as memorisation
from softntk.diffusion.metrics import mmd as mmd
from softntk.diffusion.metrics import nearest_training_point as nearest_training_point
from softntk.diffusion.metrics import score_error as score_error
from softntk.diffusion.metrics import sliced_wasserstein as sliced_wasserstein

keep_old_paths(
    __name__,
    {
        "sde": "_sde",
        "mixture": "_distributions",
        "denoiser": "_denoisers.base",
        "training": "_denoisers.network",
        "sampling": "_sampling.sample",
        "likelihood": "_sampling.likelihood",
    },
)

"""Generalisation of kernel predictors: norms, effective ranks, noise levels and stopping times.

Everything is computed in float64 on the host, from one symmetric eigenvalue decomposition of the
kernel, O(n³); no function here is for jit. Kernels are [n, n], the same for every output, unless
said otherwise.

Example:
    >>> import jax, softntk as sn
    >>> from softntk.theory import generalisation
    >>> net = sn.networks.two_layer("softmax", width=2)
    >>> x = jax.random.normal(jax.random.key(0), (200, 3))
    >>> x = x / jax.numpy.linalg.norm(x, axis=1, keepdims=True)
    >>> y = x[:, :1] + 0.1 * jax.random.normal(jax.random.key(1), (200, 1))
    >>> gram = net.kernel_fn(x, None, "ntk")
    >>> noise = generalisation.noise_level(gram, y)
    >>> stop = generalisation.early_stopping_time(gram, float(noise[0]))
    >>> round(float(noise[0]), 1), stop.time > 0
    (0.1, True)
"""

from softntk.theory.generalisation._early_stopping import EarlyStopping as EarlyStopping
from softntk.theory.generalisation._early_stopping import early_stopping_time as early_stopping_time
from softntk.theory.generalisation._early_stopping import least_risk_time as least_risk_time
from softntk.theory.generalisation._norms_and_ranks import EffectiveRanks as EffectiveRanks
from softntk.theory.generalisation._norms_and_ranks import RkhsNorm as RkhsNorm
from softntk.theory.generalisation._norms_and_ranks import effective_rank as effective_rank
from softntk.theory.generalisation._norms_and_ranks import noise_level as noise_level
from softntk.theory.generalisation._norms_and_ranks import rkhs_norm as rkhs_norm

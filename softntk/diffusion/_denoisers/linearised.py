r"""The network's training with its first-order expansion in place of the network, in closed form.

F_lin(θ; z) = F(θ_0; z) + ∂F(θ_0; z)(θ − θ_0) is what the theory trains: gradient descent on it has
a constant kernel, that of the network at its first weights. It stands between the network, whose
features move, and the kernel of infinite width, which has none of its randomness, and splits their
distance in two.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import ntk
from softntk._core.records import function_record, static
from softntk._core.validation import (
    as_rows,
    check_count,
    check_key,
    check_number,
)
from softntk.diffusion._arguments import check_known
from softntk.diffusion._denoisers import noisy_samples
from softntk.diffusion._denoisers.base import Denoiser, frame_of
from softntk.diffusion._denoisers.network import at_time, full_batch, starting_network
from softntk.diffusion._distributions import Points
from softntk.diffusion._sde import VPSDE
from softntk.networks import Network, Parameters
from softntk.solution import NumericalError, Result

_DENSE = 4096  # most N·d for which the kernel is decomposed


@function_record
class LinearisedPredictor:
    """F(θ_0; ·) + ∂F(θ_0; ·) Δθ, by one forward derivative.

    Attributes:
        params: θ_0.
        move: Δθ.
        net: the network.
    """

    params: Parameters
    move: Parameters
    net: Network = static()

    def __call__(
        self, place: Float[Array, " r"], lifted: Float[Array, "n p"]
    ) -> Float[Array, "n k"]:
        """Return F: at a single time the weights of its knots are added up first, as the network
        does.
        """
        knots = len(self.params.hidden) // lifted.shape[1]
        if len(place) > 1:
            params, move, inputs = (
                self.params,
                self.move,
                noisy_samples.embedded(place, lifted, knots),
            )
        else:
            params, move, inputs = (
                at_time(self.params, place, knots),
                at_time(self.move, place, knots),
                lifted,
            )
        value, change = jax.jvp(lambda p: self.net.apply_fn(p, inputs), (params,), (move,))
        return value + change


def linearised_denoiser(
    key: PRNGKeyArray,
    sde: VPSDE,
    x0: Points,
    *,
    family: str = "softmax",
    width: int = 512,
    sigma: float | None = None,
    train_readout: bool = False,
    times: int | Sequence[float] = 8,
    min_time: float = 1e-3,
    draws: int = 1,
    steps: int = 1000,
    learning_rate: float | None = None,
) -> Denoiser:
    r"""Fit E[X_0 | X_t] by the linearised network after ``steps`` of full-batch gradient descent,
    in closed form.

    On the N = n·draws noisy samples and from the first weights that
    :func:`softntk.diffusion.fit_denoiser` takes for the same key with ``batch_size=None``, the
    weights move by Δθ = Jᵀc, c = H⁻¹(I − (I − ηH/N)^steps)(Y − F(0)); H by its eigenvectors up to
    N·d = 4096, then by Lanczos' method. With one time, :func:`softntk.diffusion.kernel_denoiser` is
    given the same samples too: with ``stopping=η·steps`` it is the limit of infinite width (of
    gradient flow).

    Args:
        key: of weights and noise.
        sde: the noising process.
        x0: data, [n, d].
        family: of :func:`softntk.networks.two_layer`.
        width: m, even.
        sigma: σ; None as for :func:`softntk.diffusion.fit_denoiser`.
        train_readout: linearise in the readout too.
        times: as there.
        min_time: as there.
        draws: noisy samples of each data point.
        steps: of gradient descent.
        learning_rate: η, on the mean loss ½ mean ‖F − y‖². None: 1/λ_max(H/N).

    Returns:
        A :class:`~softntk.diffusion.Denoiser`. ``stats``: "learning_rate", "steps".

    Raises:
        ValueError: as :func:`softntk.diffusion.fit_denoiser`.
        NumericalError: too many steps for Lanczos' method in this precision; a learning rate with
            which descent diverges beyond the range of the precision.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> x0 = jnp.sign(jax.random.normal(jax.random.key(0), (64, 1)))
        >>> f = linearised_denoiser(jax.random.key(1), vp_sde(), x0, width=64, times=[0.1], sigma=1.0)
        >>> f.stats["steps"]
        1000

    Source: arXiv 2405.03251, the section on diffusion (the coupling of network, linearisation and
    kernel regression).
    """
    key = check_known("key", check_key("key", key))
    draws = check_count("draws", draws)
    steps = check_count("steps", steps)
    if learning_rate is not None:
        learning_rate = check_known(
            "learning_rate", check_number("learning_rate", learning_rate, above=0)
        )
    frame = frame_of(sde, x0, times, min_time)
    x0 = as_rows("x0", x0)
    net, params = starting_network(key, frame, family, width, sigma, train_readout)
    batch = full_batch(key, sde, frame, x0, draws)
    operator = ntk.operator(net, params, batch.inputs)
    if learning_rate is None:
        learning_rate = len(batch.targets) / float(ntk.extreme_eigenvalues(operator)[1])
    dense = batch.targets.size <= _DENSE
    gram = ntk.empirical(net, params, batch.inputs, outputs="full") if dense else operator
    start, pull = jax.vjp(lambda p: net.apply_fn(p, batch.inputs), params)
    step = learning_rate / len(batch.targets)
    coefficients = ntk.gd_coefficients(gram, batch.targets, step, jnp.asarray([steps]), start)[0]
    if not bool(jnp.isfinite(coefficients).all()):
        raise NumericalError(f"{Result.DIVERGED.name}: {Result.DIVERGED.advice}")
    (move,) = pull(coefficients)
    predictor = LinearisedPredictor(params, move, net)
    stats = {"learning_rate": learning_rate, "steps": steps}
    return Denoiser(sde, frame, predictor, jnp.int32(Result.SUCCESSFUL), stats)

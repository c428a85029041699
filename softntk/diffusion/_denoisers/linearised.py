r"""The training of a network's first-order expansion, in closed form.

The theory replaces a network by F_lin(θ; z) = F(θ_0; z) + ∂F(θ_0; z)(θ − θ_0). Gradient descent on
F_lin has a constant kernel, that of the network at its first weights. F_lin lies between the
network, whose features change, and the kernel of infinite width, which has none of the network's
randomness. So it splits the difference between these two into two parts.
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
from softntk.diffusion._denoisers.base import Denoiser
from softntk.diffusion._denoisers.coordinates import fit_coordinates
from softntk.diffusion._denoisers.network import at_time, full_batch, starting_network
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._types import Points
from softntk.networks import Network, Parameters
from softntk.solution import NumericalError, Result

MAX_DENSE_SIZE = 4096
"""Largest N·d for which the kernel is formed and decomposed; above it Lanczos' method is used."""


@function_record
class LinearisedPredictor:
    """The function F(θ_0; ·) + ∂F(θ_0; ·) Δθ, by one forward derivative.

    Attributes:
        params: θ_0.
        move: Δθ.
        net: the network.
    """

    params: Parameters
    move: Parameters
    net: Network = static()

    def __call__(
        self, noise_coordinate: Float[Array, " r"], network_input: Float[Array, "n p"]
    ) -> Float[Array, "n k"]:
        """Return F, [n, k].

        At a single time the weights of the noise levels are added up first, as the network does.
        """
        level_count = len(self.params.hidden) // network_input.shape[1]
        if len(noise_coordinate) > 1:
            params = self.params
            move = self.move
            inputs = noisy_samples.embed(noise_coordinate, network_input, level_count)
        else:
            # Merging weights is linear, so that it applies to Δθ too.
            params = at_time(self.params, noise_coordinate, level_count)
            move = at_time(self.move, noise_coordinate, level_count)
            inputs = network_input
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
    r"""Fit E[X_0 | X_t] by gradient descent on the linearised network, in closed form.

    Use it to tell how much of a network's error comes from the change of its features. Samples and
    first weights are those of :func:`softntk.diffusion.fit_denoiser` for the same key with
    ``batch_size=None``. After ``steps`` of full-batch descent on the N = n·draws noisy samples the
    weights have changed by

        Δθ = Jᵀc,    c = H⁻¹(I − (I − ηH/N)^steps)(Y − F(0)),

    with H by its eigenvectors up to N·d = 4096, and by Lanczos' method above. With one time,
    :func:`softntk.diffusion.kernel_denoiser` uses the same samples too: with ``stopping=η·steps``
    it is the limit of infinite width (of gradient flow).

    Args:
        key: randomness of weights and noise.
        sde: the noising process.
        x0: data, [n, d].
        family: of the network, as for :func:`softntk.networks.two_layer`.
        width: m, even.
        sigma: σ; None as for :func:`softntk.diffusion.fit_denoiser`.
        train_readout: linearise in the readout too.
        times: as for :func:`softntk.diffusion.fit_denoiser`.
        min_time: as for :func:`softntk.diffusion.fit_denoiser`.
        draws: noisy samples of each data point.
        steps: number of steps of gradient descent.
        learning_rate: η, on the mean loss ½ mean ‖F − y‖². None: 1/λ_max(H/N).

    Returns:
        A :class:`~softntk.diffusion.Denoiser`. ``stats``: "learning_rate", "steps".

    Raises:
        ValueError: as for :func:`softntk.diffusion.fit_denoiser`.
        NumericalError: too many steps for Lanczos' method in this precision; a learning rate with
            which descent diverges beyond the range of the precision.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> x0 = jnp.sign(jax.random.normal(jax.random.key(0), (64, 1)))
        >>> options = {"width": 64, "times": [0.1], "sigma": 1.0}
        >>> f = linearised_denoiser(jax.random.key(1), vp_sde(), x0, **options)
        >>> f.stats["steps"]
        1000

    Source: arXiv 2405.03251, the section on diffusion (the coupling of network, linearisation and
    kernel regression).
    """
    # 1. Check the arguments.
    key = check_known("key", check_key("key", key))
    draws = check_count("draws", draws)
    steps = check_count("steps", steps)
    if learning_rate is not None:
        learning_rate = check_known(
            "learning_rate", check_number("learning_rate", learning_rate, above=0)
        )
    # 2. Draw the samples and the first weights of full-batch training.
    coordinates = fit_coordinates(sde, x0, times, min_time)
    x0 = as_rows("x0", x0)
    net, params = starting_network(key, coordinates, family, width, sigma, train_readout)
    batch = full_batch(key, sde, coordinates, x0, draws)
    # 3. Represent the kernel H = JJᵀ: dense if it is small, as an operator otherwise.
    operator = ntk.operator(net, params, batch.inputs)
    if learning_rate is None:
        # The largest step that does not overshoot: η λ_max(H/N) = 1.
        learning_rate = len(batch.targets) / float(ntk.extreme_eigenvalues(operator)[1])
    is_dense = batch.targets.size <= MAX_DENSE_SIZE
    gram = ntk.empirical(net, params, batch.inputs, outputs="full") if is_dense else operator
    # 4. Solve for the coefficients c, and map them to weights by the transposed Jacobian.
    start, transposed_jacobian = jax.vjp(lambda p: net.apply_fn(p, batch.inputs), params)
    # gd_coefficients takes a step of the sum of squares, not of their mean.
    step_size = learning_rate / len(batch.targets)
    step_counts = jnp.asarray([steps])
    coefficients = ntk.gd_coefficients(gram, batch.targets, step_size, step_counts, start)[0]
    if not bool(jnp.isfinite(coefficients).all()):
        raise NumericalError(f"{Result.DIVERGED.name}: {Result.DIVERGED.advice}")
    (move,) = transposed_jacobian(coefficients)
    predictor = LinearisedPredictor(params, move, net)
    stats = {"learning_rate": learning_rate, "steps": steps}
    return Denoiser(sde, coordinates, predictor, jnp.int32(Result.SUCCESSFUL), stats)

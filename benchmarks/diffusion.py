"""Training a denoiser against the same network in flax and optax; sampling against a plain Euler
loop.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import alternate

from softntk import diffusion
from softntk.diffusion._denoisers import noisy_samples
from softntk.diffusion._denoisers.coordinates import fit_coordinates

SDE = diffusion.vp_sde()
BATCH, KNOTS = 512, 8


def ring(d: int) -> diffusion.GaussianMixture:
    """Eight modes of deviation 0.15 on a circle of radius 2 in the first two of d dimensions."""
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.zeros((8, d), np.float32)
    means[:, :2] = 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return diffusion.GaussianMixture(
        jnp.full(8, 1 / 8), jnp.asarray(means), jnp.tile(0.15**2 * jnp.eye(d), (8, 1, 1))
    )


class TwoLayer(nn.Module):
    """The two-layer softmax network as one writes it in flax."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, J(d + 1)] -> [N, d]."""
        hidden = nn.softmax(
            nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.normal(1.0))(x)
        )
        signs = lambda key, shape, dtype: jax.random.rademacher(key, shape).astype(dtype)
        readout = nn.Dense(self.outputs, use_bias=False, kernel_init=signs)
        return jnp.sqrt(self.width) * readout(hidden)


def plain(x0: jax.Array, width: int, steps: int, scanned: bool) -> Callable[[], object]:
    """Training as one writes it: each sample at a time of its own, the embedding as an input, a
    step at a time or scanned.
    """
    coordinates, net = fit_coordinates(SDE, x0, KNOTS, 1e-3), TwoLayer(width, x0.shape[1])
    tx = optax.adam(1e-2)

    def loss(params: dict, key: jax.Array) -> jax.Array:
        of_rows, of_times, of_noise = jax.random.split(key, 3)
        t = noisy_samples.draw_times(of_times, SDE, coordinates, BATCH, (1.0, 2.4))
        data = noisy_samples.draw_samples(
            of_noise, SDE, coordinates, x0[jax.random.randint(of_rows, (BATCH,), 0, len(x0))], t
        )
        outputs = cast(
            jax.Array,
            net.apply(
                params, noisy_samples.embed(data.noise_coordinate, data.network_input, KNOTS)
            ),
        )
        errors = outputs - data.targets
        return 0.5 * jnp.mean(jnp.sum(errors**2, axis=1))

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params, key)
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = net.init(jax.random.key(0), jnp.ones((1, KNOTS * (x0.shape[1] + 1))))
    start, keys = (params, tx.init(params)), jax.random.split(jax.random.key(1), steps)
    if scanned:
        return partial(jax.jit(lambda start: jax.lax.scan(step, start, keys)), start)
    compiled, keys = jax.jit(step), list(keys)

    def run() -> object:
        carry = start
        for key in keys:
            carry, _ = compiled(carry, key)
        return carry

    return run


def training(steps: int, repeats: int) -> None:
    """Samples a second, steps after the first hundred only: ours compiles in every call, which
    varies by a second.

    So the steps of the small case, which takes a quarter of a second for 500, are sixteen times as
    many.
    """
    print(f"training, softmax, {BATCH} samples a step, {KNOTS} knots; median of {repeats}")
    for d, width, many in ((2, 512, 16 * steps), (64, 1024, 2 * steps)):
        x0 = ring(d).sample(jax.random.key(0), 4096)
        fit = lambda some, x0=x0, width=width: (
            diffusion.fit_denoiser(
                jax.random.key(1), SDE, x0, width=width, times=KNOTS, steps=some
            ).predictor.params
        )
        contenders = {
            "long": lambda fit=fit, many=many: fit(100 + many),
            "short": lambda fit=fit: fit(100),
            "flax + optax, a step at a time": plain(x0, width, many, scanned=False),
            "flax + optax, scanned": plain(x0, width, many, scanned=True),
        }
        seconds = alternate(contenders, repeats)
        ours = seconds.pop("long") - seconds.pop("short")
        print(f"  d {d}, width {width}: fit_denoiser {BATCH * many / ours:,.0f} samples/s", end="")
        for name, theirs in seconds.items():
            print(f"; {name} {theirs / ours:.2f} times as long", end="")
        print(flush=True)


def euler(mixture: diffusion.GaussianMixture, n: int, steps: int) -> Callable[[], jax.Array]:
    """Euler and Maruyama's method in t, a compiled step at a time."""
    times = jnp.linspace(SDE.horizon, 1e-3, steps + 1)
    d = mixture.means.shape[1]

    @jax.jit
    def step(x: jax.Array, t: jax.Array, after: jax.Array, key: jax.Array) -> jax.Array:
        rate, width = SDE.rate(t), t - after
        drift = 0.5 * rate * x + rate * mixture.score(SDE, t, x)
        return x + width * drift + jnp.sqrt(rate * width) * jax.random.normal(key, x.shape)

    pairs = list(
        zip(times[:-1], times[1:], jax.random.split(jax.random.key(1), steps), strict=True)
    )

    def run() -> jax.Array:
        x = jax.random.normal(jax.random.key(0), (n, d))
        for t, after, key in pairs:
            x = step(x, t, after, key)
        return x

    return run


def within(mixture: diffusion.GaussianMixture, x: jax.Array) -> float:
    """Error of the standard deviation about the nearest mode at t = 1e-3, relative."""
    alpha, h = SDE.alpha(1e-3), SDE.variance(1e-3)
    offsets = x[:, None] - alpha * mixture.means[None]
    least = jnp.min(jnp.sum(offsets**2, axis=2), axis=1)
    return float(jnp.sqrt(jnp.mean(least) / x.shape[1] / (alpha**2 * 0.15**2 + h)) - 1)


def sampling(n: int, repeats: int) -> None:
    """The exact score of the ring in R⁸."""
    mixture = ring(8)
    score = lambda t, x: mixture.score(SDE, t, x)
    print(
        f"sampling, the exact score of the ring in 8 dimensions, {n} samples; median of {repeats}"
    )
    for steps in (50, 100, 200, 400):
        ours = lambda steps=steps: diffusion.sample(
            jax.random.key(2), SDE, score, (n, 8), steps=steps
        )
        loop = euler(mixture, n, steps)
        seconds = alternate({"ours": ours, "loop": loop}, repeats)
        errors = [100 * within(mixture, run()) for run in (ours, loop)]
        print(
            f"  {steps} evaluations: ours {seconds['ours']:.2f} s, deviation within modes {errors[0]:+.1f} %; "
            f"Euler loop {seconds['loop'] / seconds['ours']:.2f} times as long, {errors[1]:+.1f} %",
            flush=True,
        )


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    training(options.steps, options.repeats)
    sampling(options.samples, options.repeats)


if __name__ == "__main__":
    main()

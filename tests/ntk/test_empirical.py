"""The closed-form kernel against dense Jacobians, and its approach to the infinite width."""

import itertools
from types import SimpleNamespace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, cache_size, cast, dense_kernels, points, slow_except

import softntk as sn
from softntk import nt
from softntk.networks import FAMILIES, two_layer
from softntk.ntk._empirical import contractions
from softntk.ntk._empirical.tiles import rows_per_strip

# A reader's run takes some corners; the whole product is minutes of compilation.
CORNERS = [("softmax", "paper", True, True, 3)]
EVERY = slow_except(
    itertools.product(sorted(FAMILIES), ["ntk", "paper"], [False, True], [False, True], [1, 3]),
    *CORNERS,
)


@pytest.mark.parametrize(("family", "parameterization", "train_readout", "bias", "k"), EVERY)
def test_equals_dense_jacobians(family, parameterization, train_readout, bias, k, x64):
    net = two_layer(
        family,
        width=24,
        out_dim=k,
        sigma=0.8,
        antisymmetric=False,
        parameterization=parameterization,
        train_readout=train_readout,
        bias=bias,
    )
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    params = cast(cast(params, "float32"), "float64")  # numbers that both precisions hold exactly
    x = points(1, 8, 4, "float32").astype("float64")
    every = dense_kernels(net.apply_fn, params, x)
    forms: tuple[Literal["full", "diagonal", "mean"], ...] = ("full", "diagonal", "mean")
    assert set(forms) == set(every)
    for dtype, outputs in itertools.product(("float64", "float32"), forms):
        desired, p, (x1, x2) = (
            np.asarray(every[outputs]),
            cast(params, dtype),
            (x[:5].astype(dtype), x[5:].astype(dtype)),
        )
        for other, block in ((None, desired[:5, :5]), (x2, desired[:5, 5:])):
            ours = sn.ntk.empirical(net, p, x1, other, outputs)
            assert ours.dtype == dtype
            assert_close(ours, block, dtype)


@pytest.mark.parametrize(
    ("activation", "normalize"),
    list(itertools.product(["cosh", "sinh", "erf", "identity"], [False, True])),
)
def test_any_activation(activation, normalize, x64):
    net = two_layer(
        activation=activation, normalize=normalize, width=24, out_dim=2, antisymmetric=False
    )
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x = points(1, 5, 4)
    assert_close(sn.ntk.empirical(net, params, x), dense_kernels(net.apply_fn, params, x)["full"])


@pytest.mark.parametrize("outputs", slow_except(["full", "mean", "diagonal"], "mean"))
@pytest.mark.slow
def test_equals_neural_tangents_and_serves_any_function(outputs, x64):
    net = two_layer("softmax", width=24, out_dim=3, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x1, x2 = points(1, 5, 4), points(2, 3, 4)
    for other in (None, x2):
        ours = sn.ntk.empirical(net, params, x1, other, outputs)
        for vmap_axes in (None, 0):
            assert_close(
                sn.ntk.empirical(net.apply_fn, params, x1, other, outputs, vmap_axes=vmap_axes),
                ours,
            )
        assert_close(sn.ntk.empirical(tuple(net), params, x1, other, outputs), ours)
    if outputs == "mean":
        assert_close(nt.empirical_ntk_fn(net.apply_fn)(x1, x2, params), ours)


def test_a_readout_that_is_not_signs(x64):
    """Weights that have been trained: nothing may lean on a = ±1."""
    net = two_layer("res_softmax", width=24, out_dim=3, train_readout=True)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    params = params.replace(readout=jnp.asarray(np.random.default_rng(0).normal(size=(24, 3))))
    x = points(1, 5, 4)
    assert_close(sn.ntk.empirical(net, params, x), dense_kernels(net.apply_fn, params, x)["full"])


def test_transformations():
    net = two_layer("softmax", width=24, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x = points(1, 5, 4, "float32")
    kernel = sn.ntk.empirical(net, params, x)
    assert_close(jax.jit(lambda p, x: sn.ntk.empirical(net, p, x))(params, x), kernel, "float32")
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    assert_close(jax.vmap(lambda p: sn.ntk.empirical(net, p, x))(stacked)[0], kernel, "float32")
    gradient = jax.grad(lambda p: sn.ntk.empirical(net, p, x).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "size"), [("full", 1.0), ("full", 40.0), ("mean", 1.0)])
def test_tiles_make_the_whole_and_its_derivatives(outputs, size, x64):
    """Lines of one row, lines that overlap and one line; also where the terms would cancel (logits
    of ±100).
    """
    net = two_layer("softmax", width=24, out_dim=2, antisymmetric=False, train_readout=True)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x, others = size * points(1, 11, 3), size * points(2, 6, 3)
    for other in (None, others):
        desired = np.asarray(dense_kernels(net.apply_fn, params, x, other)[outputs])
        for block_size in (1, 4, None):
            ours = sn.ntk.empirical(net, params, x, other, outputs, block_size=block_size)
            assert_close(ours, desired, rtol=1e-9 if size == 1 else 1e-6)
    kernel = lambda p, x: jnp.sum(
        jnp.sin(sn.ntk.empirical(net, p, x, outputs=outputs, block_size=4))
    )
    dense = lambda p, x: jnp.sum(jnp.sin(dense_kernels(net.apply_fn, p, x)[outputs]))
    x = x[:6]
    actual, wanted = (jax.grad(f, (0, 1))(params, x) for f in (kernel, dense))
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert_close(one, other, rtol=1e-8 if size == 1 else 1e-5)
    along = jax.jvp(lambda p: kernel(p, x), (params,), (params,))[1]
    assert_close(
        along,
        sum(
            jnp.sum(g * p) for g, p in zip(*map(jax.tree.leaves, (wanted[0], params)), strict=True)
        ),
        rtol=1e-5,
    )


@pytest.mark.parametrize("outputs", slow_except(["full", "mean"], "mean"))
@pytest.mark.slow
def test_digits_are_kept_where_every_row_concentrates(outputs):
    """At logits of ±50 on sixteen units the four terms alone are off by 1e-2; the other form is
    taken, inside jit too.
    """
    net = two_layer("softmax", width=16, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x = 30 * points(1, 4, 3, "float32")
    with jax.enable_x64(True):
        desired = dense_kernels(net.apply_fn, cast(params, "float64"), x.astype("float64"))[outputs]
        logits = float(jnp.max(jnp.abs(x @ params.hidden)))
        desired = np.asarray(desired)
    kernel = lambda p: sn.ntk.empirical(net, p, x, outputs=outputs)
    assert_close(kernel(params), desired, rtol=1e-6 * (1 + logits))
    assert_close(jax.jit(kernel)(params), desired, rtol=1e-6 * (1 + logits))
    assert_close(jax.jvp(kernel, (params,), (params,))[0], desired, rtol=1e-6 * (1 + logits))


@pytest.mark.parametrize(("numbers", "rows"), [(2**10, 128), (2**15, 64), (2**16, 32), (2**20, 16)])
def test_lines_of_tiles_stay_in_the_caches_of_a_cpu(numbers, rows):
    """2^21 numbers, 16 MB of float64, but for rows that are too long; 128 rows are enough."""
    assert rows_per_strip(5000, numbers, None) == rows


def test_second_call_does_not_compile_again():
    from softntk.ntk._empirical import assembly

    chex.clear_trace_counter()
    net = two_layer("softmax", width=26, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    jax.clear_caches()  # the programs of all functions share one table, and a full one forgets
    before = cache_size(assembly._two_layer_kernel)
    for seed in (1, 2, 3):
        sn.ntk.empirical(net, params, points(seed, 6, 4, "float32"))
    assert cache_size(assembly._two_layer_kernel) == before + 1


def test_outputs_are_checked(untyped):
    net = two_layer("softmax", width=8)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    with pytest.raises(ValueError, match="outputs must be one of.*got 'trace'"):
        sn.ntk.empirical(net, params, np.ones((2, 4), np.float32), outputs="trace")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_distance_to_infinite_width_falls_like_its_root(family, x64):
    """σ = ½, ten seeds, widths 2⁸ … 2¹⁴: the slope of the relative Frobenius distance lies between
    −0.6 and −0.4.
    """
    x, widths = points(0, 12, 8), 2 ** np.arange(8, 15)
    distances = []
    for width in widths.tolist():
        net = two_layer(family, width=width, sigma=0.5)
        limit = net.kernel_fn(x, None, "ntk")
        gap = lambda key, net=net, limit=limit: jnp.linalg.norm(
            sn.ntk.empirical(net, net.init_fn(key, (-1, 8))[1], x, outputs="mean") - limit
        )
        gaps = jax.lax.map(gap, jax.random.split(jax.random.key(1), 10))
        distances.append(float(jnp.mean(gaps) / jnp.linalg.norm(limit)))
    slope = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    assert -0.6 < slope < -0.4


@pytest.mark.parametrize(("mean", "keeps"), [(0.4, True), (1.0, False)])
def test_four_terms_are_taken_where_none_is_much_larger_than_their_sum(mean, keeps, untyped):
    """Σ (a − μ)² = Σ a² − 2μ Σ a + 2μ² of a = (2, 0): moduli of 5.92 beside 2.72, of 10 beside 2."""
    rows: Any = SimpleNamespace(slopes=jnp.ones((1, 2)), means=jnp.full((1, 1), mean))
    a = jnp.asarray([[2.0], [0.0]])
    assert bool(contractions.keeps_digits(rows, a, jnp.ones(1))) == keeps

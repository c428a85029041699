"""Empirical kernels, expansions and structured derivatives through softntk.nt: against dense
Jacobians.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, dense_kernels, points, slow_except

from softntk import nt

stax = nt.stax
pytestmark = pytest.mark.usefixtures("their_rank_promotion")


# --- empirical kernels
# ----------------------------------------------------------------------------


def two_outputs():
    init_fn, apply_fn, _ = stax.serial(stax.Dense(16, b_std=0.1), stax.Erf(), stax.Dense(2))
    return apply_fn, init_fn(jax.random.key(0), (-1, 4))[1]


AXES = {
    "full": {"trace_axes": ()},
    "mean": {"trace_axes": (-1,)},
    "diagonal": {"trace_axes": (), "diagonal_axes": (-1,)},
}
BY_HAND = [1, 2, 3]
"""Every implementation but AUTO, which compiles them all to choose one."""


@pytest.mark.parametrize(
    ("outputs", "implementation", "vmap_axes"),
    slow_except(
        itertools.product(AXES, BY_HAND, [None, 0]),
        ("full", 1, 0),
        ("mean", 2, 0),
        ("diagonal", 3, 0),
        ("full", 3, None),
    ),
)
def test_empirical_kernels_are_products_of_jacobians(outputs, implementation, vmap_axes, x64):
    apply_fn, params = two_outputs()
    x1, x2 = points(1, 4, 4), points(2, 3, 4)
    options = {"vmap_axes": vmap_axes, "implementation": implementation, **AXES[outputs]}
    dense = jax.jit(lambda other: dense_kernels(apply_fn, params, x1, other)[outputs])
    assert_close(jax.jit(nt.empirical_ntk_fn(apply_fn, **options))(x1, None, params), dense(None))
    both = jax.jit(lambda *args: nt.empirical_kernel_fn(apply_fn, **options)(*args, None, params))(
        x1, x2
    )
    assert_close(both.ntk, dense(x2))
    nngp = {"full": "il,jm->ijlm", "mean": "il,jl->ij", "diagonal": "il,jl->ijl"}[outputs]
    f1, f2 = apply_fn(params, x1), apply_fn(params, x2)
    assert_close(both.nngp, jnp.einsum(nngp, f1, f2) / (2 if outputs == "mean" else 1))


@pytest.mark.parametrize("implementation", BY_HAND)
def test_empirical_kernel_outside_jit(implementation, x64):
    """There JAX deprecates ``jnp.dtype`` of an array and ``jnp.size`` of a shape, and a warning is
    an error here.
    """
    x = points(1, 3, 4)
    ntk_fn = nt.empirical_ntk_fn(lambda p, x: x @ p, (), implementation=implementation)
    assert_close(ntk_fn(x, None, jnp.ones((4, 2))), jnp.einsum("ij,lm->ijlm", x @ x.T, jnp.eye(2)))


def test_defaults_and_names_of_implementations(x64):
    apply_fn, params = two_outputs()
    x = points(1, 4, 4)
    desired = dense_kernels(apply_fn, params, x)["mean"]
    for options in (
        {},
        *({"implementation": i} for i in (nt.NtkImplementation.NTK_VECTOR_PRODUCTS, 0)),
    ):
        assert_close(
            jax.jit(nt.empirical_ntk_fn(apply_fn, vmap_axes=0, **options))(x, None, params), desired
        )


# --- structured derivatives
# ---------------------------------------------------------------------------------------


def convolutional():
    layers = (
        stax.Conv(3, (2, 2), b_std=0.1, padding="SAME"),
        stax.Gelu(),
        stax.AvgPool((2, 2)),
        stax.Conv(2, (2, 2), b_std=0.1),
    )
    init_fn, apply_fn, _ = stax.serial(*layers)
    return apply_fn, init_fn(jax.random.key(1), (1, 4, 4, 2))[1], (4, 4, 2)


def by_hand(network):
    keys = jax.random.split(jax.random.key(2), 3)
    params = {
        "w": jax.random.normal(keys[0], (4, 6)),
        "b": jnp.ones(6),
        "v": jax.random.normal(keys[1], (6, 3)),
    }
    return network, params, (4,)


def attention(params, x):
    """Softmax over hidden units: custom_jvp, reductions, a bias, and layer normalisation with a
    scale that is a product.
    """
    h = jax.nn.relu(x @ params["w"] + params["b"])
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 0.1) * params["b"]
    return jax.nn.softmax(h) @ params["v"]


def gated(params, x):
    """``jnp.split``, one primitive of two outputs that neural_tangents would refuse."""
    value, gate = jnp.split(x @ params["w"], 2, axis=-1)
    return value * jax.nn.sigmoid(gate) + params["b"][:3] * params["b"][3:]


def half_used(params, x):
    """A split whose other half no output needs, and a parameter that is itself an output's part."""
    return jnp.split(x @ params["w"], 2, axis=-1)[0] + params["v"][:1]


STRUCTURED = {
    "convolutional": convolutional,
    "attention": lambda: by_hand(attention),
    "checkpoint": lambda: by_hand(
        jax.checkpoint(lambda p, x: jnp.sin(x @ p["w"] + p["b"]) @ p["v"])
    ),
    "gated": lambda: by_hand(jax.jit(gated)),
    "half used": lambda: by_hand(half_used),
}


@pytest.mark.filterwarnings("ignore:No Jacobian rule found for slice")
@pytest.mark.parametrize("name", slow_except(sorted(STRUCTURED), "checkpoint", "gated"))
def test_structured_derivatives_are_products_of_jacobians(name, x64):
    apply_fn, params, shape = STRUCTURED[name]()
    x1, x2 = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(n, *shape)))
        for seed, n in ((0, 3), (1, 2))
    )
    out = apply_fn(params, x1).shape[1:]
    d, axes = len(out), tuple(range(1, 1 + len(out)))
    flat = lambda p, x: apply_fn(p, x).reshape(x.shape[0], -1)
    for other, vmap_axes, options in ((None, None, {}), (x2, 0, {"diagonal_axes": axes})):
        desired = jax.jit(lambda *args: dense_kernels(flat, *args))(params, x1, other)
        shape = desired["mean"].shape
        # nt's order: both copies of an axis together
        pairs = (0, 1, *(axis for i in range(d) for axis in (2 + i, 2 + d + i)))
        full, diagonal = (
            desired["full"].reshape(*shape, *out, *out),
            desired["diagonal"].reshape(*shape, *out),
        )
        ntk_fn = nt.empirical_ntk_fn(apply_fn, (), vmap_axes=vmap_axes, implementation=3, **options)
        assert_close(
            jax.jit(ntk_fn)(x1, other, params), diagonal if options else full.transpose(pairs)
        )


def largest_array(f, *args):
    """Elements of the largest array in the program of f."""
    sizes = lambda jaxpr: (
        [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
        + [
            n
            for eqn in jaxpr.eqns
            for p in eqn.params.values()
            if hasattr(p, "eqns") or hasattr(p, "jaxpr")
            for n in sizes(getattr(p, "jaxpr", p))
        ]
    )
    return max(sizes(jax.make_jaxpr(f)(*args).jaxpr))


def test_structured_derivatives_use_the_structure(x64):
    """The Jacobian of n outputs of size k in a weight matrix is never formed: not even one tenth of
    it.
    """
    width, n, k = 32, 4, 16
    init_fn, apply_fn, _ = stax.serial(
        stax.Dense(width), stax.Relu(), stax.Dense(width), stax.Relu(), stax.Dense(k)
    )
    x, params = points(0, n, 8), init_fn(jax.random.key(0), (-1, 8))[1]
    programs = {i: nt.empirical_ntk_fn(apply_fn, (), vmap_axes=0, implementation=i) for i in (1, 3)}
    assert largest_array(programs[1], x, None, params) >= n * k * width**2
    assert largest_array(programs[3], x, None, params) < n * k * width**2 / 10
    costs: dict[int, Any] = {
        i: jax.jit(f).lower(x, None, params).compile().cost_analysis() for i, f in programs.items()
    }
    assert costs[3]["flops"] < costs[1]["flops"] / 3


@pytest.mark.filterwarnings("ignore:No Jacobian rule found")
@pytest.mark.parametrize("forward", slow_except([None, True, False], None))
def test_structured_derivatives_without_rules_for_jacobians(forward, x64):
    """Each equation is then differentiated forwards or transposed, which has no table of JAX's own
    behind it any more.
    """
    apply_fn, params, _ = by_hand(attention)
    x = points(1, 3, 4)
    for rules in (True, False):
        ntk_fn = nt.empirical_ntk_fn(
            apply_fn, (), implementation=3, _s_rules=rules, _j_rules=False, _fwd=forward
        )
        assert_close(
            jax.jit(ntk_fn)(x, None, params),
            jax.jit(lambda x: dense_kernels(apply_fn, params, x)["full"])(x),
        )


def test_auto_chooses_among_those_that_can_run(x64):
    """STRUCTURED_DERIVATIVES has no rule for a parameter that is convolved with something."""
    apply_fn = lambda p, x: jax.lax.conv(p, x, (1,), "SAME")
    params, x = jnp.ones((2, 1, 5)), jnp.ones((2, 1, 3))
    with pytest.raises(NotImplementedError):
        nt.empirical_ntk_fn(apply_fn, implementation=3)(x, None, params)
    desired = nt.empirical_ntk_fn(apply_fn, implementation=1)(x, None, params)
    assert_close(nt.empirical_ntk_fn(apply_fn, implementation=0)(x, None, params), desired)


# --- vector products, expansions
# ---------------------------------------------------------------------


def test_vector_products_linearization_and_taylor_expansion(x64):
    apply_fn, params = two_outputs()
    x1, x2 = points(1, 4, 4), points(2, 3, 4)
    v = points(3, 3, 2)
    full = jax.jit(lambda x1, x2: dense_kernels(apply_fn, params, x1, x2)["full"])(x1, x2)
    assert_close(
        jax.jit(nt.empirical_ntk_vp_fn(apply_fn, x1, x2, params))(v),
        jnp.einsum("ijlm,jm->il", full, v),
    )
    near = jax.tree.map(lambda leaf: leaf + 1e-4 * jnp.cos(leaf), params)
    exact = apply_fn(near, x1) - apply_fn(params, x1)
    gaps = [
        jnp.abs(jax.jit(nt.taylor_expand(apply_fn, params, k))(near, x1) - apply_fn(near, x1)).max()
        for k in (0, 1, 2)
    ]
    assert gaps[2] < 1e-3 * gaps[1] < 1e-6 * gaps[0]
    assert_close(nt.linearize(apply_fn, params)(near, x1) - apply_fn(params, x1), exact, rtol=1e-3)

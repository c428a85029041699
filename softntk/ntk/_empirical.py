"""The empirical neural tangent kernel of a network at its present weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Shaped

from softntk import activations
from softntk._validation import check_pair, check_positive_int, is_concrete
from softntk.networks import Architecture, Network, Parameters, Points1, Points2, RowFactors, row_factors
from softntk.ntk._contractions import (
    Block,
    Contraction,
    Direct,
    Features,
    FourTerms,
    Readout,
    TwoProducts,
    keeps_digits,
    product,
)
from softntk.ntk._sign_patterns import Plan, gather, plan, sign_patterns
from softntk.ntk._tiles import rectangular, rows_of_a_line, symmetric

OUTPUTS = ("full", "mean", "diagonal")

Kernel = Block
Factors = tuple[Readout, RowFactors, RowFactors]


def empirical(
    net: Network | tuple[Callable, ...] | Callable,
    params: Any,
    x1: Points1,
    x2: Points2 | None = None,
    outputs: str = "full",
    *,
    block_size: int | None = None,
    vmap_axes: int | None = None,
) -> Kernel:
    r"""The empirical NTK, H[i, j, ℓ, ℓ'] = ⟨∂F_ℓ(x1_i)/∂θ, ∂F_ℓ'(x2_j)/∂θ⟩.

    For the networks of softntk it is exact and needs no differentiation. With the row factors g of
    :func:`softntk.networks.row_factors`,

        H[i, j, ℓ, ℓ'] = ⟨x_i, x_j⟩ ⟨g_{iℓ}, g_{jℓ'}⟩  (+ δ_ℓℓ' ⟨φ_i, φ_j⟩ when the readout is trained),

    where 1 is added to ⟨x_i, x_j⟩ for a network with biases. On one set of points that takes (k² + k + 2)/4 products of n²m
    multiplications for all outputs of a ±1 readout, ½ for k = 1 and 3/2 for the mean, instead of k², 1 and k: see
    ``softntk/ntk/_contractions.py`` for the algebra, and for the slower form chosen where the quick one would lose digits.
    For several outputs of a wide network ``softntk/ntk/_sign_patterns.py`` needs fewer still: about one product up to k = 4.
    Any other ``apply_fn(params, x)``, and any triple that holds one, goes through ``neural_tangents.empirical_ntk_fn``.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an ``apply_fn``.
        params: its weights.
        x1: [n1, d].
        x2: [n2, d]; None means x1 again.
        outputs: "full" for [n1, n2, k, k], "mean" for the mean over outputs [n1, n2] (neural_tangents' trace),
            "diagonal" for [n1, n2, k].
        block_size: rows computed at a time, for softntk networks; what is held of them is in proportion to their number.
            None (default): so many that it fits into the caches, and at most a quarter, so that symmetry saves.
        vmap_axes: for functions that are not softntk networks: 0 if the rows do not interact (no batch normalisation),
            which is very much faster; None (default) assumes nothing.

    Returns:
        The kernel. Entries of rows that are outside the network's domain, known only at run time, are +inf, never NaN.

    Raises:
        ValueError: outputs unknown, block_size not positive, or points of wrong rank, feature count or dtype, empty or
            not finite.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=256, out_dim=3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 8))
        >>> x = jax.random.normal(jax.random.key(1), (5, 8))
        >>> sn.ntk.empirical(net, params, x).shape, sn.ntk.empirical(net, params, x, outputs="mean").shape
        ((5, 5, 3, 3), (5, 5))

    Source: arXiv 2405.03251, Definition 3.6 (kernel of the softmax network) for one output; MATH.md section 2 for the rest.
    """
    check_pair(x1, x2)
    if block_size is not None:
        check_positive_int("block_size", block_size)
    if outputs not in OUTPUTS:
        raise ValueError(activations.unknown("outputs", outputs, dict.fromkeys(OUTPUTS)))
    if isinstance(net, Network):
        d = params.hidden.shape[0]
        if x1.shape[1] != d:
            raise ValueError(f"x1 must have the {d} features that params.hidden has, got shape {x1.shape}.")
        return two_layer_kernel(net.architecture, params, x1, x2, outputs, block_size)
    return _any_kernel(net[1] if isinstance(net, tuple) else net, params, x1, x2, outputs, vmap_axes)


def two_layer_kernel(
    architecture: Architecture, params: Parameters, x1: Points1, x2: Points2 | None, outputs: str, block_size: int | None
) -> Kernel:
    """The kernel of a softntk network, without checks of the points."""
    a, units, planned = params.readout, None, None
    known = is_concrete(a)
    # Signs save products. Inside jit they are not known, but to be expected of a readout that nothing trains: that they are
    # signs is then tested at run time.
    signs = bool(np.all(np.abs(np.asarray(a)) == 1)) if known else not architecture.train_readout
    if signs and outputs == "full" and a.shape[1] > 1:
        planned = plan(*a.shape, architecture.normalized)
        if planned is not None and known:
            units, found = gather(planned, np.asarray(a), np)
            planned, units = (planned, units) if found else (None, None)
    case = _Case(architecture, outputs, signs and known, planned, block_size)
    return _two_layer_kernel(case, params, jnp.asarray(x1), None if x2 is None else jnp.asarray(x2), units)


class _Case(NamedTuple):
    architecture: Architecture
    outputs: str
    signs: bool  # whether the readout is known to be ±1
    plan: Plan | None  # by sign patterns, if it is, or is expected to be
    block_size: int | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kernel(case: _Case, params: Parameters, x1: Array, x2: Array | None, units: Array | None) -> Kernel:
    return _assembled(case, _unless, params, x1, x2, units)


_two_layer_kernel = jax.jit(_kernel, static_argnums=0)


@_kernel.defjvp
def _kernel_jvp(case: _Case, primals: tuple, tangents: tuple) -> tuple[Kernel, Kernel]:
    # The loop in _unless cannot be differentiated in reverse; a conditional can.
    choose = lambda fine, quick, slow, factors: lax.cond(fine, quick, slow, factors)
    return jax.jvp(partial(_assembled, case, choose), primals, tangents)


def _unless(fine: Bool[Array, ""], quick: Callable[[Any], Kernel], slow: Callable[[Any], Kernel], factors: Any) -> Kernel:
    """``quick(factors)`` if it is fine, else ``slow(factors)``.

    A loop of at most one round leaves the result where it is; a conditional would copy it.
    """

    def once(state: tuple[Kernel, Array]) -> tuple[Kernel, Array]:
        # What does not depend on the state would be computed before the loop, that is always.
        return slow(lax.optimization_barrier((factors, state[1]))[0]), jnp.array(True)

    return lax.while_loop(lambda state: ~state[1], once, (quick(factors), fine))[0]


def _assembled(case: _Case, choose: Callable, params: Parameters, x1: Array, x2: Array | None, units: Array | None) -> Kernel:
    architecture, outputs, signs, plan, block_size = case
    if not architecture.train_readout:
        params = replace(params, readout=lax.stop_gradient(params.readout))
    a, k, normalized = params.readout, params.readout.shape[1], architecture.normalized
    one = row_factors(architecture, params, x1)
    two = one if x2 is None else row_factors(architecture, params, x2)
    constant = 0.0 if params.bias is None else 1.0
    z1 = jnp.where(one.valid[:, None], x1, 0)
    z2 = z1 if x2 is None else jnp.where(two.valid[:, None], x2, 0)
    trailing = {"full": 2, "mean": 0, "diagonal": 1}[outputs]

    def expand(v: Shaped[Array, "n1 n2"]) -> Array:
        return jnp.expand_dims(v, tuple(range(2, 2 + trailing)))

    def contract(form: Contraction, factors: Factors) -> Kernel:
        a, one, two = factors
        size = rows_of_a_line(len(z1), form.count(k) * a.shape[0], block_size)
        if x2 is None:
            whole = symmetric(form, size, a, form.prepare(one, a))
        else:
            whole = rectangular(form, size, a, form.prepare(one, a), form.prepare(two, a))
        return form.expand(whole, one, two, a)

    def assemble(contracted: Callable[[Factors], Kernel], factors: Factors) -> Kernel:
        kernel = expand(product(z1, z2.T) + constant) * contracted(factors)
        if architecture.train_readout:
            gram = expand(contract(Features(), factors))
            kernel = kernel + (gram * jnp.eye(k, dtype=gram.dtype)[None, None] if outputs == "full" else gram)
        # A plain exponential may saturate: the entry stays the largest number; infinity means "outside the domain".
        largest = jnp.finfo(kernel.dtype).max
        return jnp.where(expand(one.valid[:, None] & two.valid[None, :]), jnp.clip(kernel, -largest, largest), jnp.inf)

    by = lambda form: partial(assemble, partial(contract, form))
    direct, factors = by(Direct(outputs)), (a, one, two)
    if k == 1 or outputs == "diagonal":
        return direct(factors)
    quick = by(FourTerms(normalized, signs) if outputs == "full" else TwoProducts(normalized))
    fine = True
    if normalized:  # else there is one term, and nothing cancels
        scales = [jnp.sum(z * z, axis=1) + constant for z in (z1, z2)]
        fine = keeps_digits(one, a, scales[0]) & keeps_digits(two, a, scales[1])
    if plan is None:
        return choose(fine, quick, direct, factors) if normalized else quick(factors)
    by_patterns = lambda units: partial(assemble, lambda factors: sign_patterns(plan, units, *factors[1:], block_size))
    if units is not None:
        return choose(fine, by_patterns(units), direct, factors) if normalized else by_patterns(units)(factors)
    units, found = gather(plan, a, jnp)
    expected = fine & found & jnp.all(jnp.abs(a) == 1)
    otherwise = (lambda factors: lax.cond(fine, quick, direct, factors)) if normalized else quick
    return choose(expected, by_patterns(units), otherwise, factors)


def _any_kernel(
    apply_fn: Callable, params: Any, x1: Points1, x2: Points2 | None, outputs: str, vmap_axes: int | None
) -> Kernel:
    from softntk import nt

    axes: dict[str, dict[str, tuple[int, ...]]] = {
        "full": {"trace_axes": (), "diagonal_axes": ()},
        "mean": {"trace_axes": (-1,), "diagonal_axes": ()},
        "diagonal": {"trace_axes": (), "diagonal_axes": (-1,)},
    }
    kernel_fn = nt.empirical_ntk_fn(apply_fn, vmap_axes=vmap_axes, **axes[outputs])
    x2 = None if x2 is None or x2 is x1 else jnp.asarray(x2)
    return kernel_fn(jnp.asarray(x1), x2, params)

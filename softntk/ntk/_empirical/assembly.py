"""The kernel of a softntk network from the factors of its rows: which form, and its parts put
together.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from softntk._core.meshes import call_without_explicit_axes
from softntk._core.validation import is_concrete
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product
from softntk.networks import Architecture, Parameters, RowFactors, row_factors
from softntk.ntk._empirical.contractions import (
    Block,
    Contraction,
    Direct,
    Features,
    FourTerms,
    Readout,
    TwoProducts,
    keeps_digits,
)
from softntk.ntk._empirical.sign_patterns import (
    Plan,
    gather,
    plan,
    sign_patterns,
)
from softntk.ntk._empirical.tiles import rectangular, rows_of_a_line, symmetric
from softntk.ntk._row_scales import ScaledRows, saturate, scale_rows

Kernel = Block
Factors = tuple[Readout, RowFactors, RowFactors]
Form = Callable[[Factors], Kernel]


def two_layer_kernel(
    architecture: Architecture,
    params: Parameters,
    x1: Array,
    x2: Array | None,
    outputs: str,
    block_size: int | None,
) -> Kernel:
    """Return the kernel of a softntk network, without checks of the points."""
    a, units, planned = params.readout, None, None
    known = is_concrete(a)
    # Signs save products. Inside jit they are not known, but to be expected of a readout that
    # nothing trains: that they are signs is then tested at run time.
    signs = bool(np.all(np.abs(np.asarray(a)) == 1)) if known else not architecture.train_readout
    if signs and outputs == "full" and a.shape[1] > 1:
        planned = plan(*a.shape, architecture.normalized)
        if planned is not None and known:
            units, found = gather(planned, np.asarray(a), np)
            planned, units = (planned, units) if found else (None, None)
    case = Case(architecture, outputs, signs and known, planned, block_size)
    units = None if units is None else jnp.asarray(units)
    return call_without_explicit_axes(partial(_two_layer_kernel, case), x1, params, x1, x2, units)


class Case(NamedTuple):
    architecture: Architecture
    outputs: str
    signs: bool  # whether the readout is known to be ±1
    plan: Plan | None  # by sign patterns, if it is, or is expected to be
    block_size: int | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kernel(
    case: Case, params: Parameters, x1: Array, x2: Array | None, units: Array | None
) -> Kernel:
    return _assembled(case, _unless, params, x1, x2, units)


_two_layer_kernel = jax.jit(_kernel, static_argnums=0)


@_kernel.defjvp
def _kernel_jvp(case: Case, primals: tuple, tangents: tuple) -> tuple[Kernel, Kernel]:
    # The loop in _unless cannot be differentiated in reverse; a conditional can.
    return jax.jvp(partial(_assembled, case, lax.cond), primals, tangents)


def _unless(
    fine: Bool[Array, ""],
    quick: Callable[[Any], Kernel],
    slow: Callable[[Any], Kernel],
    factors: Any,
) -> Kernel:
    """``quick(factors)`` if it is fine, else ``slow(factors)``.

    A loop of at most one round leaves the result where it is; a conditional would copy it.
    """

    def once(state: tuple[Kernel, Array]) -> tuple[Kernel, Array]:
        # What does not depend on the state would be computed before the loop, that is always.
        return slow(lax.optimization_barrier((factors, state[1]))[0]), state[1] | True

    return lax.while_loop(lambda state: ~state[1], once, (quick(factors), fine))[0]


class _Side(NamedTuple):
    """One of the two sets of points.

    Attributes:
        rows: factors of their Jacobian.
        inputs: what the inner products ⟨x_i, x_j⟩ are taken of, [n, e].
        scaled: the same as rows of order one and their powers of two.
    """

    rows: RowFactors
    inputs: Float[Array, "n e"]
    scaled: ScaledRows


def _as_side(architecture: Architecture, params: Parameters, x: Array) -> _Side:
    """Return what the kernel needs of a set of points."""
    rows = row_factors(architecture, params, x)
    inputs = network_inputs(params, x, rows)
    return _Side(rows, inputs, scale_rows(inputs))


def _assembled(
    case: Case,
    choose: Callable,
    params: Parameters,
    x1: Array,
    x2: Array | None,
    units: Array | None,
) -> Kernel:
    """Return the kernel; ``choose`` decides at run time between a quick form and one that keeps its
    digits.
    """
    if not case.architecture.train_readout:
        params = replace(params, readout=lax.stop_gradient(params.readout))
    side1 = _as_side(case.architecture, params, x1)
    side2 = side1 if x2 is None else _as_side(case.architecture, params, x2)
    return _Assembly(case, params.readout, side1, side2, x2 is None).evaluate(choose, units)


class _Assembly(NamedTuple):
    """The kernel from its parts.

    Attributes:
        case: what is asked for.
        readout: a, [m, k].
        side1: the points of the rows of the kernel.
        side2: the points of its columns.
        same: whether they are the same points.
    """

    case: Case
    readout: Readout
    side1: _Side
    side2: _Side
    same: bool

    def evaluate(self, choose: Callable, units: Array | None) -> Kernel:
        """Return the kernel, by the form that needs the fewest products and keeps the digits."""
        # 1. One output, or the diagonal: nothing is saved by another form.
        outputs = self.case.outputs
        normalized = self.case.architecture.normalized
        direct = self._by(Direct(outputs))
        if self.readout.shape[1] == 1 or outputs == "diagonal":
            return direct(self._factors())

        # 2. Several outputs: sums of products, if these do not cancel.
        form = (
            FourTerms(normalized, self.case.signs) if outputs == "full" else TwoProducts(normalized)
        )
        quick = self._by(form)
        is_fine = self._keeps_digits() if normalized else True  # else there is one term
        plan = self.case.plan
        if plan is None:
            return self._quick_or_direct(choose, is_fine, quick, direct)

        # 3. By patterns of signs, which are known or else expected.
        if units is not None:
            return self._quick_or_direct(choose, is_fine, self._by_patterns(plan, units), direct)
        expected_units, has_room = gather(plan, self.readout, jnp)
        expected = is_fine & has_room & jnp.all(jnp.abs(self.readout) == 1)

        def otherwise(factors: Factors) -> Kernel:
            return lax.cond(is_fine, quick, direct, factors) if normalized else quick(factors)

        by_patterns = self._by_patterns(plan, expected_units)
        return choose(expected, by_patterns, otherwise, self._factors())

    def _factors(self) -> Factors:
        return self.readout, self.side1.rows, self.side2.rows

    def _quick_or_direct(
        self, choose: Callable, is_fine: Bool[Array, ""] | bool, quick: Form, direct: Form
    ) -> Kernel:
        """Return the quick form, where a network is normalized only if it is fine."""
        if not self.case.architecture.normalized:
            return quick(self._factors())
        return choose(is_fine, quick, direct, self._factors())

    def _by(self, form: Contraction) -> Form:
        return lambda factors: self._assemble(self._contract(form, factors), factors)

    def _by_patterns(self, plan: Plan, units: Array) -> Form:
        def form(factors: Factors) -> Kernel:
            inner = sign_patterns(plan, units, *factors[1:], self.case.block_size)
            return self._assemble(inner, factors)

        return form

    def _expand(self, values: Shaped[Array, "n1 n2"]) -> Array:
        """Return an array of the points with the axes of the outputs."""
        trailing = {"full": 2, "mean": 0, "diagonal": 1}[self.case.outputs]
        return jnp.expand_dims(values, tuple(range(2, 2 + trailing)))

    def _contract(self, form: Contraction, factors: Factors) -> Kernel:
        """Return the inner products of the row factors, from their tiles."""
        a, one, two = factors
        count = form.count(a.shape[1])
        size = rows_of_a_line(len(one.valid), count * a.shape[0], self.case.block_size)
        if self.same:
            tiles = symmetric(form, size, a, form.prepare(one, a))
        else:
            tiles = rectangular(form, size, a, form.prepare(one, a), form.prepare(two, a))
        return form.expand(tiles, one, two, a)

    def _assemble(self, inner: Kernel, factors: Factors) -> Kernel:
        """Return the kernel from the inner products of the row factors."""
        _, one, two = factors
        scaled1 = self.side1.scaled
        scaled2 = self.side2.scaled
        roots = self._expand(scaled1.roots[:, None] * scaled2.roots[None, :])
        points = self._expand(product(scaled1.values, scaled2.values.T))
        kernel = points * inner * roots * roots
        if self.case.architecture.train_readout:
            gram = saturate(self._expand(self._contract(Features(), factors)))
            kernel = saturate(kernel) + self._same_output(gram)
        # What leaves the precision stays its largest number; infinity means "outside the domain".
        is_valid = self._expand(one.valid[:, None] & two.valid[None, :])
        return jnp.where(is_valid, saturate(kernel), jnp.inf)

    def _same_output(self, gram: Array) -> Array:
        """Return what a trained readout adds: nothing between different outputs."""
        if self.case.outputs != "full":
            return gram
        return gram * jnp.eye(self.readout.shape[1], dtype=gram.dtype)[None, None]

    def _keeps_digits(self) -> Bool[Array, ""]:
        """Return whether the terms of the quick forms do not cancel at either set of points."""
        fine1, fine2 = (
            keeps_digits(side.rows, self.readout, _relative_squares(side.inputs))
            for side in (self.side1, self.side2)
        )
        return fine1 & fine2


def network_inputs(
    params: Parameters, x: Float[Array, "n d"], rows: RowFactors
) -> Float[Array, "n e"]:
    """Return what the inner products ⟨x_i, x_j⟩ are taken of: 1 is appended for biases."""
    x = jnp.where(rows.valid[:, None], x, 0)
    return x if params.bias is None else jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def _relative_squares(inputs: Float[Array, "n e"]) -> Float[Array, " n"]:
    """Return the |x_i|², with a common factor that makes the largest about one."""
    norms = scaled_norm(inputs, axis=1)
    return (norms / binary_scale(norms)) ** 2

"""The kernel of a softntk network, assembled from the factors of its Jacobian's rows.

:func:`softntk.ntk.empirical` calls :func:`two_layer_kernel`. This module chooses how the inner
products of the row factors are computed (:mod:`softntk.ntk._empirical.contractions`, or
:mod:`softntk.ntk._empirical.sign_patterns`), and multiplies them with those of the points.
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
    cheapest_plan,
    gather_units,
    multiply_by_patterns,
)
from softntk.ntk._empirical.tiles import rectangular, rows_per_strip, symmetric
from softntk.ntk._row_scales import ScaledRows, saturate, scale_rows

Kernel = Block
# The readout, and the factors of the kernel's rows and of its columns.
Factors = tuple[Readout, RowFactors, RowFactors]
# One way to compute the kernel.
Form = Callable[[Factors], Kernel]
# (is_accurate, fast, fallback, factors) ↦ kernel
Choose = Callable[[Any, Form, Form, Factors], Kernel]


def two_layer_kernel(
    architecture: Architecture,
    params: Parameters,
    x1: Array,
    x2: Array | None,
    outputs: str,
    block_size: int | None,
) -> Kernel:
    """Return the kernel of a softntk network, without checks of the points.

    Arguments as for :func:`softntk.ntk.empirical`, which has checked them.
    """
    readout = params.readout
    readout_is_known = is_concrete(readout)

    # 1. Signs save products. Inside jit the readout is unknown, but one that nothing trains can be
    # expected to have signs; whether it has is then tested at run time.
    if readout_is_known:
        expects_signs = bool(np.all(np.abs(np.asarray(readout)) == 1))
    else:
        expects_signs = not architecture.train_readout

    # 2. With several outputs, patterns of signs may be cheaper still.
    plan = units = None
    if expects_signs and outputs == "full" and readout.shape[1] > 1:
        plan = cheapest_plan(*readout.shape, architecture.normalized)
        if plan is not None and readout_is_known:
            units, within_capacity = gather_units(plan, np.asarray(readout), np)
            plan, units = (plan, units) if within_capacity else (None, None)

    # 3. Compile once for each static case.
    case = KernelCase(architecture, outputs, expects_signs and readout_is_known, plan, block_size)
    units = None if units is None else jnp.asarray(units)
    return call_without_explicit_axes(partial(_two_layer_kernel, case), x1, params, x1, x2, units)


class KernelCase(NamedTuple):
    """What a compiled kernel depends on; static and hashable.

    Attributes:
        architecture: the network.
        outputs: "full", "mean" or "diagonal".
        signs: whether the readout is known to be ±1.
        plan: sets of sign patterns, if the readout is ±1 or expected to be, and if they are
            cheaper; otherwise None.
        block_size: rows per strip; None for the default.
    """

    architecture: Architecture
    outputs: str
    signs: bool
    plan: Plan | None
    block_size: int | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kernel(
    case: KernelCase, params: Parameters, x1: Array, x2: Array | None, units: Array | None
) -> Kernel:
    """Return the kernel of one static case, choosing the form without copying it."""
    return _assemble_kernel(case, _fast_or_fallback, params, x1, x2, units)


_two_layer_kernel = jax.jit(_kernel, static_argnums=0)


@_kernel.defjvp
def _kernel_jvp(case: KernelCase, primals: tuple, tangents: tuple) -> tuple[Kernel, Kernel]:
    """Return value and tangent, with ``lax.cond`` in place of the loop.

    The loop in :func:`_fast_or_fallback` cannot be differentiated in reverse mode.
    """
    return jax.jvp(partial(_assemble_kernel, case, lax.cond), primals, tangents)


def _fast_or_fallback(
    is_accurate: Bool[Array, ""], fast: Form, fallback: Form, factors: Factors
) -> Kernel:
    """Return ``fast(factors)`` if it is accurate, else ``fallback(factors)``.

    This is a conditional written as a loop of at most one round. The loop leaves the fast result in
    its memory, where ``lax.cond`` would copy it.
    """

    def fall_back(state: tuple[Kernel, Array]) -> tuple[Kernel, Array]:
        # Without the barrier, XLA would move what does not depend on the state out of the loop, and
        # so compute the fallback always.
        return fallback(lax.optimization_barrier((factors, state[1]))[0]), state[1] | True

    return lax.while_loop(lambda state: ~state[1], fall_back, (fast(factors), is_accurate))[0]


class _PointFactors(NamedTuple):
    """What the kernel needs of one of the two sets of points.

    Attributes:
        rows: factors of the rows of the Jacobian.
        inputs: the vectors of the inner products ⟨x_i, x_j⟩, [n, e].
        scaled: ``inputs`` as rows of order one and their powers of two.
    """

    rows: RowFactors
    inputs: Float[Array, "n e"]
    scaled: ScaledRows


def _factor_points(architecture: Architecture, params: Parameters, x: Array) -> _PointFactors:
    """Return what the kernel needs of a set of points."""
    rows = row_factors(architecture, params, x)
    inputs = network_inputs(params, x, rows)
    return _PointFactors(rows, inputs, scale_rows(inputs))


def _assemble_kernel(
    case: KernelCase,
    choose: Choose,
    params: Parameters,
    x1: Array,
    x2: Array | None,
    units: Array | None,
) -> Kernel:
    """Return the kernel; ``choose`` selects at run time between a fast form and an accurate one.

    ``choose`` has the signature of :func:`_fast_or_fallback` and of ``lax.cond``.
    """
    if not case.architecture.train_readout:
        params = replace(params, readout=lax.stop_gradient(params.readout))
    points1 = _factor_points(case.architecture, params, x1)
    points2 = points1 if x2 is None else _factor_points(case.architecture, params, x2)
    assembly = _Assembly(case, params.readout, points1, points2, x2 is None)
    return assembly.evaluate(choose, units)


class _Assembly(NamedTuple):
    """The parts of a kernel, and how they are put together.

    Attributes:
        case: what is computed.
        readout: a, [m, k].
        points1: the points of the rows of the kernel.
        points2: the points of its columns.
        is_symmetric: whether they are the same points.
    """

    case: KernelCase
    readout: Readout
    points1: _PointFactors
    points2: _PointFactors
    is_symmetric: bool

    def evaluate(self, choose: Choose, units: Array | None) -> Kernel:
        """Return the kernel, by the form with the fewest products among those that keep digits."""
        # 1. One output, or the diagonal: no other form is cheaper than the direct one.
        outputs = self.case.outputs
        normalized = self.case.architecture.normalized
        direct = self._by_contraction(Direct(outputs))
        if self.readout.shape[1] == 1 or outputs == "diagonal":
            return direct(self._factors())

        # 2. Several outputs: sums of products, unless these cancel. Without a normaliser there is
        # only one term, so nothing can cancel.
        form = (
            FourTerms(normalized, self.case.signs) if outputs == "full" else TwoProducts(normalized)
        )
        fast = self._by_contraction(form)
        is_accurate = self._keeps_digits() if normalized else True
        plan = self.case.plan
        if plan is None:
            return self._fast_or_direct(choose, is_accurate, fast, direct)

        # 3. Patterns of signs that are known.
        if units is not None:
            by_patterns = self._by_patterns(plan, units)
            return self._fast_or_direct(choose, is_accurate, by_patterns, direct)

        # 4. Patterns of signs that are expected: test at run time that they are signs, and that no
        # pattern has more units than the plan allows.
        expected_units, within_capacity = gather_units(plan, self.readout, jnp)
        patterns_apply = is_accurate & within_capacity & jnp.all(jnp.abs(self.readout) == 1)

        def without_patterns(factors: Factors) -> Kernel:
            return lax.cond(is_accurate, fast, direct, factors) if normalized else fast(factors)

        by_patterns = self._by_patterns(plan, expected_units)
        return choose(patterns_apply, by_patterns, without_patterns, self._factors())

    def _factors(self) -> Factors:
        """Return what every form is a function of."""
        return self.readout, self.points1.rows, self.points2.rows

    def _fast_or_direct(
        self, choose: Choose, is_accurate: Bool[Array, ""] | bool, fast: Form, direct: Form
    ) -> Kernel:
        """Return the fast form; for normalized networks the direct one where terms cancel."""
        if not self.case.architecture.normalized:
            return fast(self._factors())
        return choose(is_accurate, fast, direct, self._factors())

    def _by_contraction(self, form: Contraction) -> Form:
        """Return the function that computes the kernel by this contraction."""
        return lambda factors: self._to_kernel(self._contract(form, factors), factors)

    def _by_patterns(self, plan: Plan, units: Array) -> Form:
        """Return the function that computes the kernel by sign patterns."""

        def form(factors: Factors) -> Kernel:
            inner = multiply_by_patterns(plan, units, *factors[1:], self.case.block_size)
            return self._to_kernel(inner, factors)

        return form

    def _add_output_axes(self, values: Shaped[Array, "n1 n2"]) -> Array:
        """Return an array over pairs of points with axes for the outputs appended."""
        axis_count = {"full": 2, "mean": 0, "diagonal": 1}[self.case.outputs]
        return jnp.expand_dims(values, tuple(range(2, 2 + axis_count)))

    def _contract(self, form: Contraction, factors: Factors) -> Kernel:
        """Return the inner products of the row factors, computed in tiles."""
        a, rows1, rows2 = factors
        numbers_per_row = form.matrix_count(a.shape[1]) * a.shape[0]
        size = rows_per_strip(len(rows1.valid), numbers_per_row, self.case.block_size)
        if self.is_symmetric:
            matrices = symmetric(form, size, a, form.prepare_rows(rows1, a))
        else:
            prepared1 = form.prepare_rows(rows1, a)
            matrices = rectangular(form, size, a, prepared1, form.prepare_rows(rows2, a))
        return form.to_kernel(matrices, rows1, rows2, a)

    def _to_kernel(self, inner: Kernel, factors: Factors) -> Kernel:
        """Return the kernel from the inner products of the row factors."""
        # 1. The hidden weights: ⟨x_i, x_j⟩ ⟨g_{iℓ}, g_{jℓ'}⟩. The powers of two come last, in two
        # halves, so that no intermediate result overflows.
        _, rows1, rows2 = factors
        scaled1 = self.points1.scaled
        scaled2 = self.points2.scaled
        roots = self._add_output_axes(scaled1.roots[:, None] * scaled2.roots[None, :])
        point_products = self._add_output_axes(product(scaled1.values, scaled2.values.T))
        kernel = point_products * inner * roots * roots

        # 2. A trained readout: ⟨φ_i, φ_j⟩ between equal outputs.
        if self.case.architecture.train_readout:
            gram = saturate(self._add_output_axes(self._contract(Features(), factors)))
            kernel = saturate(kernel) + self._mask_outputs(gram)

        # 3. What overflows becomes the largest number; infinity means "outside the domain".
        is_valid = self._add_output_axes(rows1.valid[:, None] & rows2.valid[None, :])
        return jnp.where(is_valid, saturate(kernel), jnp.inf)

    def _mask_outputs(self, gram: Array) -> Array:
        """Return the Gram matrix of the features with zeros between different outputs."""
        if self.case.outputs != "full":
            return gram
        return gram * jnp.eye(self.readout.shape[1], dtype=gram.dtype)[None, None]

    def _keeps_digits(self) -> Bool[Array, ""]:
        """Return whether the terms of the fast forms do not cancel at either set of points."""
        is_accurate1, is_accurate2 = (
            keeps_digits(points.rows, self.readout, _relative_squares(points.inputs))
            for points in (self.points1, self.points2)
        )
        return is_accurate1 & is_accurate2


def network_inputs(
    params: Parameters, x: Float[Array, "n d"], rows: RowFactors
) -> Float[Array, "n e"]:
    """Return the vectors of the inner products ⟨x_i, x_j⟩: x, with 1 appended for biases.

    Rows outside the domain are zero.
    """
    x = jnp.where(rows.valid[:, None], x, 0)
    return x if params.bias is None else jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def _relative_squares(inputs: Float[Array, "n e"]) -> Float[Array, " n"]:
    """Return the |x_i|² divided by a common factor that makes the largest about one."""
    # A common factor cancels in keeps_digits; without it |x_i|² might overflow.
    norms = scaled_norm(inputs, axis=1)
    return (norms / binary_scale(norms)) ** 2

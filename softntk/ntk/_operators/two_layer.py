"""The empirical kernel of a softntk network as an operator, by its row factors."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk._core.meshes import run_without_explicit_axes, vary_like
from softntk._linalg.blocks import join_blocks, map_row_blocks, split_into_blocks
from softntk._linalg.norms import binary_exponent
from softntk._linalg.products import product
from softntk._two_layer.architecture import row_vectors
from softntk.networks import Architecture, Parameters, RowFactors, row_factors
from softntk.ntk._empirical.assembly import network_inputs, two_layer_kernel
from softntk.ntk._operators.base import GramOperator, Vectors
from softntk.ntk._row_scales import (
    saturate,
    scale_all,
    scale_rows,
    times_power_of_two,
    to_even,
)


def _alone(rows: RowFactors) -> Bool[Array, "n m"]:
    """Where a_ℓ − centres_ℓ is exactly zero: at a row's largest unit, if no other is as large."""
    return rows.largest & (jnp.sum(rows.largest, axis=1, keepdims=True) == 1)


class TwoLayerOperator(GramOperator):
    r"""The empirical NTK of a softntk network on [n, k].

    With Φ(V)_i = Σ_ℓ V_{iℓ} g_{iℓ} and Q = XᵀΦ(V),  (HV)_{iℓ} = ⟨x_i Q, g_{iℓ}⟩: two passes over
    blocks of rows, 4 n m d multiplications and the row factors twice; beside Q [d, m] only one
    block of rows is held.

    x_i = 2^{e_i} x̂_i (:mod:`softntk.ntk._row_scales`): Q is taken of 2^{-e} x, e that of the
    largest row, and brought to order one; the powers of two come back in the end, where what leaves
    the precision stays its largest number.
    """

    params: Parameters
    x: Float[Array, "n d"]
    architecture: Architecture = eqx.field(static=True)
    block_size: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, k)."""
        return (self.x.shape[0], self.params.readout.shape[1])

    @property
    def dtype(self) -> jnp.dtype:
        """That of the points."""
        return self.x.dtype

    def _in_precision(self, dtype: jnp.dtype) -> "TwoLayerOperator":
        params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (self.params, self.x))
        return TwoLayerOperator(
            params=params, x=x, architecture=self.architecture, block_size=self.block_size
        )

    def as_matrix(self) -> Float[Array, "size size"]:
        """Return all rows at once, through :func:`softntk.ntk.empirical`."""
        return self._matrix(None)

    def _matrix(self, points: Array | None) -> Float[Array, "rows size"]:
        """Return the kernel of the points (None: of x itself) with x."""
        kernel = two_layer_kernel(self.architecture, self.params, self.x, points, "full", None)
        size = self.in_size()
        return run_without_explicit_axes(
            lambda kernel: kernel.transpose(1, 3, 0, 2).reshape(-1, size)
        )(kernel)

    def _single(self, rows: RowFactors) -> Float[Array, "b m"] | None:
        """With one output g itself, which is no larger than its factors; made once, behind a
        barrier to fusion.
        """
        return (
            lax.optimization_barrier(row_vectors(rows, self.params.readout)[:, 0])
            if self.shape[1] == 1
            else None
        )

    def _exponent(self) -> Int[Array, ""]:
        """Return e, even, of the largest entry of all rows; 1 is an entry of each row for biases."""
        finite = jnp.where(jnp.isfinite(self.x), self.x, 0)
        exponent = to_even(binary_exponent(finite).reshape(()))
        return exponent if self.params.bias is None else jnp.maximum(exponent, 0)

    def _mm(self, vectors: Vectors) -> Vectors:
        return self._cross(self.x, vectors)

    def _cross(self, points: Array, vectors: Vectors) -> Array:
        a, trained = self.params.readout, self.architecture.train_readout
        exponent = self._exponent()

        @jax.checkpoint  # reverse mode computes a block again instead of keeping all of them
        def pull(x: Array, v: Array) -> tuple[Array, Array, Array]:
            rows = row_factors(self.architecture, self.params, x)
            inputs = times_power_of_two(network_inputs(self.params, x, rows), -exponent)
            alone, single = _alone(rows), self._single(rows)

            def one(v: Array) -> Array:
                if single is not None:
                    return product(inputs.T, single * v)
                weights = jnp.where(
                    alone, 0, product(v, a.T) - jnp.sum(v * rows.centres, axis=1, keepdims=True)
                )
                weights = weights - jnp.sum(v * rows.offsets, axis=1, keepdims=True)
                return product(inputs.T, rows.slopes * weights)

            invalid = jnp.any(~rows.valid).astype(v.dtype)
            if not trained:
                return jax.vmap(one, in_axes=-1)(v), jnp.zeros_like(invalid), invalid
            features = rows.features * 2.0 ** _feature_headroom(rows.features)
            return (
                jax.vmap(one, in_axes=-1)(v),
                jax.vmap(lambda v: product(features.T, v), in_axes=-1)(v),
                invalid,
            )

        blocks = (
            map_row_blocks(self.x, self.block_size),
            split_into_blocks(vectors, self.block_size),
        )
        shapes = jax.eval_shape(pull, blocks[0][0], blocks[1][0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (q, features, invalid), _ = lax.scan(
            lambda total, block: (jax.tree.map(jnp.add, total, pull(*block)), None),
            vary_like(zeros, self.params, blocks),
            blocks,
        )
        q, q_exponent = scale_all(q)
        features, features_exponent = scale_all(features) if trained else (features, exponent)

        @jax.checkpoint
        def push(x: Array) -> Array:
            rows = row_factors(self.architecture, self.params, x)
            inputs = scale_rows(network_inputs(self.params, x, rows))
            alone, single = _alone(rows), self._single(rows)

            def one(q: Array) -> Array:
                if single is not None:
                    return product(single * product(inputs.values, q), jnp.ones_like(a))
                moved = product(inputs.values, q) * rows.slopes
                total = jnp.sum(moved, axis=1, keepdims=True)
                apart = jnp.where(alone, 0, moved)
                return (
                    product(apart, a)
                    - rows.centres * jnp.sum(apart, axis=1, keepdims=True)
                    - rows.offsets * total
                )

            powers = inputs.exponents + exponent + q_exponent
            out = saturate(times_power_of_two(jax.vmap(one, out_axes=-1)(q), powers[:, None, None]))
            if trained:
                scaled = scale_rows(rows.features)
                powers = scaled.exponents + features_exponent - _feature_headroom(rows.features)
                more = jax.vmap(lambda f: product(scaled.values, f), out_axes=-1)(features)
                out = saturate(out + saturate(times_power_of_two(more, powers[:, None, None])))
            return jnp.where(rows.valid[:, None, None], out, jnp.inf)

        others = (
            blocks[0]
            if points is self.x
            else map_row_blocks(points, min(len(points), self.block_size))
        )
        return jnp.where(invalid > 0, jnp.inf, join_blocks(lax.map(push, others), len(points)))

    def _rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        k, a = self.shape[1], self.params.readout
        rows = row_factors(self.architecture, self.params, points)
        inputs = scale_rows(network_inputs(self.params, points, rows))
        features = scale_rows(rows.features)
        g = jnp.take_along_axis(row_vectors(rows, a), outputs[:, None, None], axis=1)[:, 0]
        same = outputs[:, None, None] == jnp.arange(k)[None, None, :]

        def block(x: Array) -> Array:
            others = row_factors(self.architecture, self.params, x)
            scaled = scale_rows(network_inputs(self.params, x, others))
            inner = product(g, row_vectors(others, a).reshape(-1, g.shape[1]).T).reshape(
                len(g), -1, k
            )
            roots = (inputs.roots[:, None] * scaled.roots[None, :])[..., None]
            out = saturate(
                product(inputs.values, scaled.values.T)[..., None] * inner * roots * roots
            )
            if self.architecture.train_readout:
                other = scale_rows(others.features)
                roots = features.roots[:, None] * other.roots[None, :]
                gram = saturate(product(features.values, other.values.T) * roots * roots)
                out = saturate(out + jnp.where(same, gram[..., None], 0))
            valid = rows.valid[:, None, None] & others.valid[None, :, None]
            return jnp.where(valid, out, jnp.inf).transpose(1, 2, 0)

        out = lax.map(block, map_row_blocks(self.x, self.block_size))
        return join_blocks(out, self.x.shape[0]).reshape(self.in_size(), -1).T

    def _diagonal(self) -> Float[Array, " size"]:
        def block(x: Array) -> Array:
            rows = row_factors(self.architecture, self.params, x)
            inputs = scale_rows(network_inputs(self.params, x, rows))
            squares = jnp.sum(inputs.values**2, axis=1, keepdims=True)
            out = squares * jnp.sum(row_vectors(rows, self.params.readout) ** 2, axis=2)
            out = saturate(times_power_of_two(out, 2 * inputs.exponents[:, None]))
            if self.architecture.train_readout:
                features = scale_rows(rows.features)
                more = jnp.sum(features.values**2, axis=1, keepdims=True)
                out = saturate(
                    out + saturate(times_power_of_two(more, 2 * features.exponents[:, None]))
                )
            return jnp.where(rows.valid[:, None], out, jnp.inf)

        out = lax.map(block, map_row_blocks(self.x, self.block_size))
        return join_blocks(out, self.x.shape[0]).reshape(-1)


def _feature_headroom(features: Array) -> int:
    """Return the power of two that features are divided by before they are added up: exponentials
    fill the precision.
    """
    return -(jnp.finfo(features.dtype).maxexp // 4)

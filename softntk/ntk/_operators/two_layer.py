"""The empirical kernel of a softntk network as an operator, by its row factors."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk._core.meshes import run_without_explicit_axes, vary_like
from softntk._linalg.blocks import join_blocks, split_into_blocks, split_points
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


def _dominant_unit(rows: RowFactors) -> Bool[Array, "n m"]:
    """Return a mask of the units with a_ℓ − centres_ℓ exactly zero.

    That is the largest unit of a row, provided that no other one is equally large.
    """
    return rows.largest & (jnp.sum(rows.largest, axis=1, keepdims=True) == 1)


class _PulledSums(NamedTuple):
    """Sums over the rows of x, scaled to order one, with the exponents of what was divided out.

    Attributes:
        q: Q for each vector, [r, d, m].
        q_exponent: of Q, and of the largest row.
        features: Σ_i φ_i v_i for each vector, [r, m, k]; unused unless the readout is trained.
        features_exponent: of that sum.
    """

    q: Array
    q_exponent: Array
    features: Array
    features_exponent: Array


class TwoLayerOperator(GramOperator):
    r"""The empirical NTK of a softntk network on [n, k].

        Q = XᵀΦ(V),  Φ(V)_i = Σ_ℓ V_{iℓ} g_{iℓ}        pull: [d, m] for each vector
        (HV)_{iℓ} = ⟨x_i Q, g_{iℓ}⟩                    push: [n, k]

    Both are passes over blocks of rows. Together they take 4 n m d multiplications and compute the
    row factors g twice. Beside Q only one block of rows is in memory.

    Overflow: with x_i = 2^{e_i} x̂_i (:mod:`softntk.ntk._row_scales`), Q is computed from 2^{-e} x,
    where e belongs to the largest row, and then scaled to order one. The powers of two are
    multiplied in at the end, where what overflows becomes the largest number.

    Attributes:
        params: weights of the network.
        x: points, [n, d].
        architecture: of the network.
        block_size: rows at a time.
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
        """Precision of the points."""
        return self.x.dtype

    def _cast(self, dtype: jnp.dtype) -> "TwoLayerOperator":
        params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (self.params, self.x))
        return TwoLayerOperator(
            params=params, x=x, architecture=self.architecture, block_size=self.block_size
        )

    def as_matrix(self) -> Float[Array, "size size"]:
        """Return all rows at once, through :func:`softntk.ntk.empirical`."""
        return self._cross_matrix(None)

    def _cross_matrix(self, points: Array | None) -> Float[Array, "rows size"]:
        """Return the kernel between points (None: x itself) and x as a matrix."""
        kernel = two_layer_kernel(self.architecture, self.params, self.x, points, "full", None)
        size = self.in_size()
        return run_without_explicit_axes(
            lambda kernel: kernel.transpose(1, 3, 0, 2).reshape(-1, size)
        )(kernel)

    def _single_output(self, rows: RowFactors) -> Float[Array, "b m"] | None:
        """Return g itself if there is one output, where it is no larger than its factors.

        The barrier keeps XLA from computing it again for each of its uses.
        """
        if self.shape[1] != 1:
            return None
        return lax.optimization_barrier(row_vectors(rows, self.params.readout)[:, 0])

    def _max_exponent(self) -> Int[Array, ""]:
        """Return e, even, of the largest entry of all rows; biases add an entry 1 to each row."""
        finite_x = jnp.where(jnp.isfinite(self.x), self.x, 0)
        exponent = to_even(binary_exponent(finite_x).reshape(()))
        return exponent if self.params.bias is None else jnp.maximum(exponent, 0)

    def _mm(self, vectors: Vectors) -> Vectors:
        return self._cross_mm(self.x, vectors)

    def _cross_mm(self, points: Array, vectors: Vectors) -> Array:
        # 1. Pull: sums over blocks of rows of x. Checkpoints make reverse mode compute a block
        # again instead of storing all of them.
        exponent = self._max_exponent()
        pull_block = jax.checkpoint(partial(self._pull_block, exponent))
        blocks = (
            split_points(self.x, self.block_size),
            split_into_blocks(vectors, self.block_size),
        )
        structure = jax.eval_shape(pull_block, blocks[0][0], blocks[1][0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
        (q, feature_sums, invalid_count), _ = lax.scan(
            lambda total, block: (jax.tree.map(jnp.add, total, pull_block(*block)), None),
            vary_like(zeros, self.params, blocks),
            blocks,
        )

        # 2. Scale both sums to order one.
        q, q_exponent = scale_all(q)
        if self.architecture.train_readout:
            feature_sums, sums_exponent = scale_all(feature_sums)
        else:
            sums_exponent = exponent
        sums = _PulledSums(q, exponent + q_exponent, feature_sums, sums_exponent)

        # 3. Push: the products of the sums with the rows at the points.
        push_block = jax.checkpoint(partial(self._push_block, sums))
        point_blocks = blocks[0]
        if points is not self.x:
            point_blocks = split_points(points, min(len(points), self.block_size))
        image = join_blocks(lax.map(push_block, point_blocks), len(points))

        # 4. A row of x outside the domain makes every product infinite.
        return jnp.where(invalid_count > 0, jnp.inf, image)

    def _pull_block(self, exponent: Array, x: Array, v: Array) -> tuple[Array, Array, Array]:
        """Return what a block of rows adds to Q, to the sum of features, and to the invalid rows.

        Args:
            exponent: e of the largest row.
            x: the rows, [b, d].
            v: the vectors at these rows, [b, k, r].
        """
        # 1. The factors of the rows.
        a = self.params.readout
        rows = row_factors(self.architecture, self.params, x)
        inputs = times_power_of_two(network_inputs(self.params, x, rows), -exponent)
        dominant_unit = _dominant_unit(rows)
        single_g = self._single_output(rows)

        # 2. XᵀΦ(v) for one vector.
        def pull_vector(v: Array) -> Array:
            if single_g is not None:
                return product(inputs.T, single_g * v)
            # Σ_ℓ v_ℓ (a_ℓ − centres_ℓ − offsets_ℓ). The first difference is exactly zero at a
            # dominant unit, where the two sums over ℓ would only agree up to rounding.
            centre_sum = jnp.sum(v * rows.centres, axis=1, keepdims=True)
            weights = jnp.where(dominant_unit, 0, product(v, a.T) - centre_sum)
            weights = weights - jnp.sum(v * rows.offsets, axis=1, keepdims=True)
            return product(inputs.T, rows.slopes * weights)

        # 3. All vectors; a trained readout also needs their sums weighted by the features.
        invalid_count = jnp.any(~rows.valid).astype(v.dtype)
        if not self.architecture.train_readout:
            q = jax.vmap(pull_vector, in_axes=-1)(v)
            return q, jnp.zeros_like(invalid_count), invalid_count
        features = rows.features * 2.0 ** _feature_exponent(rows.features)
        return (
            jax.vmap(pull_vector, in_axes=-1)(v),
            jax.vmap(lambda v: product(features.T, v), in_axes=-1)(v),
            invalid_count,
        )

    def _push_block(self, sums: _PulledSums, x: Array) -> Array:
        """Return the products at points x, [b, k, r]; +inf at points outside the domain."""
        # 1. The factors of the rows.
        a = self.params.readout
        rows = row_factors(self.architecture, self.params, x)
        inputs = scale_rows(network_inputs(self.params, x, rows))
        dominant_unit = _dominant_unit(rows)
        single_g = self._single_output(rows)

        # 2. ⟨h, g⟩ for one matrix Q, where h = S ∘ x Q; dominant units as in the pull.
        def push_matrix(q: Array) -> Array:
            if single_g is not None:
                return product(single_g * product(inputs.values, q), jnp.ones_like(a))
            hidden_image = product(inputs.values, q) * rows.slopes
            row_sum = jnp.sum(hidden_image, axis=1, keepdims=True)
            other_units = jnp.where(dominant_unit, 0, hidden_image)
            return (
                product(other_units, a)
                - rows.centres * jnp.sum(other_units, axis=1, keepdims=True)
                - rows.offsets * row_sum
            )

        # 3. All of them, with the powers of two that were divided out.
        powers = inputs.exponents + sums.q_exponent
        image = saturate(
            times_power_of_two(jax.vmap(push_matrix, out_axes=-1)(sums.q), powers[:, None, None])
        )

        # 4. What a trained readout adds.
        if self.architecture.train_readout:
            scaled_features = scale_rows(rows.features)
            powers = (
                scaled_features.exponents
                + sums.features_exponent
                - _feature_exponent(rows.features)
            )
            multiply_features = jax.vmap(
                lambda sums: product(scaled_features.values, sums), out_axes=-1
            )
            readout_image = multiply_features(sums.features)
            readout_image = saturate(times_power_of_two(readout_image, powers[:, None, None]))
            image = saturate(image + readout_image)
        return jnp.where(rows.valid[:, None, None], image, jnp.inf)

    def _compute_rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        # 1. The factors of the rows that are computed.
        k = self.shape[1]
        a = self.params.readout
        rows = row_factors(self.architecture, self.params, points)
        inputs = scale_rows(network_inputs(self.params, points, rows))
        features = scale_rows(rows.features)
        g = jnp.take_along_axis(row_vectors(rows, a), outputs[:, None, None], axis=1)[:, 0]
        same_output = outputs[:, None, None] == jnp.arange(k)[None, None, :]

        # 2. Their inner products with a block of x, for all outputs.
        def compute_block(x: Array) -> Array:
            block_rows = row_factors(self.architecture, self.params, x)
            block_inputs = scale_rows(network_inputs(self.params, x, block_rows))
            g_products = product(g, row_vectors(block_rows, a).reshape(-1, g.shape[1]).T).reshape(
                len(g), -1, k
            )
            # ⟨x_i, x_j⟩ ⟨g_{iℓ}, g_{jℓ'}⟩, its power of two in two halves
            pair_roots = (inputs.roots[:, None] * block_inputs.roots[None, :])[..., None]
            kernel = saturate(
                product(inputs.values, block_inputs.values.T)[..., None]
                * g_products
                * pair_roots
                * pair_roots
            )
            if self.architecture.train_readout:
                # ⟨φ_i, φ_j⟩ between equal outputs
                block_features = scale_rows(block_rows.features)
                pair_roots = features.roots[:, None] * block_features.roots[None, :]
                feature_gram = saturate(
                    product(features.values, block_features.values.T) * pair_roots * pair_roots
                )
                kernel = saturate(kernel + jnp.where(same_output, feature_gram[..., None], 0))
            valid = rows.valid[:, None, None] & block_rows.valid[None, :, None]
            return jnp.where(valid, kernel, jnp.inf).transpose(1, 2, 0)

        kernel = lax.map(compute_block, split_points(self.x, self.block_size))
        return join_blocks(kernel, self.x.shape[0]).reshape(self.in_size(), -1).T

    def _compute_diagonal(self) -> Float[Array, " size"]:
        def compute_block(x: Array) -> Array:
            rows = row_factors(self.architecture, self.params, x)
            inputs = scale_rows(network_inputs(self.params, x, rows))
            # |x_i|² ‖g_{iℓ}‖², and |φ_i|² for a trained readout
            squares = jnp.sum(inputs.values**2, axis=1, keepdims=True)
            diagonal = squares * jnp.sum(row_vectors(rows, self.params.readout) ** 2, axis=2)
            diagonal = saturate(times_power_of_two(diagonal, 2 * inputs.exponents[:, None]))
            if self.architecture.train_readout:
                features = scale_rows(rows.features)
                feature_squares = jnp.sum(features.values**2, axis=1, keepdims=True)
                exponents = 2 * features.exponents[:, None]
                feature_squares = saturate(times_power_of_two(feature_squares, exponents))
                diagonal = saturate(diagonal + feature_squares)
            return jnp.where(rows.valid[:, None], diagonal, jnp.inf)

        diagonal = lax.map(compute_block, split_points(self.x, self.block_size))
        return join_blocks(diagonal, self.x.shape[0]).reshape(-1)


def _feature_exponent(features: Array) -> int:
    """Return the exponent of a power of two that multiplies features before they are summed.

    It is negative: plain exponentials fill the range of the precision, and a sum would overflow.
    """
    return -(jnp.finfo(features.dtype).maxexp // 4)

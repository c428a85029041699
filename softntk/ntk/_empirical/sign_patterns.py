r"""All P_c = (S∘c) Sᵀ of a readout of signs, from products over hidden units of equal sign pattern.

The vectors c of the four terms (:mod:`softntk.ntk._empirical.contractions`) are 1, a_ℓ and
a_ℓ∘a_ℓ'. They are products s_p∘s_q of two columns of the matrix [1, a_1, …, a_k], whose entries are
signs. Take a small set Q of its columns. Units r whose signs agree on Q, up to one sign for all of
Q, have the same s_p∘s_q for every p, q ∈ Q. With the units grouped by that pattern t, of which
there are 2^(|Q|−1),

    P_{s_p∘s_q} = Σ_t (s_p s_q)(t) G_t,    G_t = Σ_{r of pattern t} S_{·r} S_{·r}ᵀ.

All G_t together cost one product of n²m multiplications, however many pairs Q has. Their signed
sums cost n² for each pair and pattern. A few sets contain every pair: one set is enough up to k =
4, and thirteen sets of four contain all 55 pairs of k = 10. Compared with one product for each
pair, with both of its symmetries used, that is a half (k = 10, m = 1024) to a quarter (k = 4, m =
2048) of the multiplications, and S is never multiplied by any c.

The units fill 2^(|Q|−1) groups of one static size, padded with zeros. The signs are random, so a
size of four standard deviations above the mean is rarely too small. If a pattern has more units
than that, the caller computes one product for each pair instead.
"""

from functools import lru_cache
from itertools import chain, combinations
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk._linalg.blocks import cache_budget
from softntk._linalg.products import product
from softntk.networks import RowFactors
from softntk.ntk._empirical.contractions import FourTerms, Readout, four_terms, select_pairs
from softntk.ntk._empirical.tiles import MIN_STRIP_ROWS

# Cost of an entry of a product beside its multiplications, in multiplications (measured on a CPU):
# a product of few terms is slower per term than a long one.
PRODUCT_OVERHEAD = 64
# Cost of an entry of a signed sum, in multiplications: it waits for memory.
SUM_OVERHEAD = 8
MAX_SET_SIZE = 8  # more columns make more patterns than products can fill
CAPACITY_UNIT = 16  # groups hold a multiple of this many units, as processors prefer


class Plan(NamedTuple):
    """Sets of columns of signs whose products are computed together; static and hashable.

    Attributes:
        sets: columns of [1, a_1, …, a_k], equally many in each set.
        capacity: how many units a pattern may have.
        pairs: for each set the pairs of columns that are computed from it, equally many for each
            set; (p, p) is P_1.
    """

    sets: tuple[tuple[int, ...], ...]
    capacity: int
    pairs: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def patterns(self) -> int:
        """Number of sign patterns of one set."""
        return 2 ** (len(self.sets[0]) - 1)

    @property
    def cost(self) -> int:
        """Multiplications for each pair of points, overheads included."""
        overhead = PRODUCT_OVERHEAD + SUM_OVERHEAD * len(self.pairs[0])
        return len(self.sets) * self.patterns * (self.capacity + overhead)

    def weights(self) -> Float[np.ndarray, "s c t"]:
        """Return the signs (s_p s_q)(t) with which G_t of a set enters each of its pairs."""
        reference = np.zeros((self.patterns, 1), int)  # the first column, relative to itself
        columns = np.concatenate([reference, _pattern_bits(self)], axis=1)

        def pair_signs(members: tuple[int, ...], p: int, q: int) -> np.ndarray:
            return 1 - 2 * (columns[:, members.index(p)] ^ columns[:, members.index(q)])

        return np.array(
            [
                [pair_signs(members, p, q) for p, q in pairs]
                for members, pairs in zip(self.sets, self.pairs, strict=True)
            ],
            float,
        )


def _pattern_bits(plan: Plan) -> np.ndarray:
    """Return pattern t as bits: whether a column differs in sign from the first, [t, |Q| − 1]."""
    return np.arange(plan.patterns)[:, None] >> np.arange(len(plan.sets[0]) - 1) & 1


def _cover_pairs(columns: range, size: int) -> list[tuple[int, ...]]:
    """Return sets of ``size`` columns that together contain every pair, chosen greedily."""
    # 1. Mark the pairs that no set contains yet.
    missing = np.zeros((columns.stop, columns.stop), bool)
    missing[columns.start :, columns.start :] = ~np.eye(len(columns), dtype=bool)
    sets = []
    while missing.any():
        # 2. Begin a set with the first column that lacks a pair; add the columns that complete most
        # missing pairs with the set, and among equals those that lack most pairs in all.
        members = [int(np.argmax(missing.any(axis=1)))]
        while len(members) < size:
            gain = missing[:, members].sum(axis=1) * len(missing) + missing.sum(axis=1)
            gain[[*members, *range(columns.start)]] = -1
            members.append(int(np.argmax(gain)))
        # 3. Its pairs are covered.
        missing[np.ix_(members, members)] = False
        sets.append(tuple(sorted(members)))
    return sets


def _assign_pairs(sets: list[tuple[int, ...]]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return for each set the pairs that are computed from it, in lists of equal length.

    A pair goes to the set with the shortest list among those that contain it, P_1 to the shortest
    list of all. Shorter lists are filled up with P_1.
    """
    holders: dict[tuple[int, int], list[int]] = {}
    for i, members in enumerate(sets):
        for pair in combinations(members, 2):
            holders.setdefault(pair, []).append(i)
    shares: list[list[tuple[int, int]]] = [[] for _ in sets]
    for pair in sorted(holders, key=lambda pair: len(holders[pair])):  # least choice first
        shares[min(holders[pair], key=lambda i: len(shares[i]))].append(pair)
    shortest = min(range(len(sets)), key=lambda i: len(shares[i]))
    shares[shortest].insert(0, (sets[shortest][0], sets[shortest][0]))
    max_length = max(map(len, shares))
    return tuple(
        tuple(share + [(members[0], members[0])] * (max_length - len(share)))
        for members, share in zip(sets, shares, strict=True)
    )


@lru_cache(maxsize=256)
def cheapest_plan(m: int, k: int, normalized: bool) -> Plan | None:
    """Return the cheapest plan for m units and k outputs, or None if single products are cheaper.

    Without a normaliser the column of ones is not needed.
    """
    columns = range(0 if normalized else 1, k + 1)

    def plan_for(set_size: int) -> Plan:
        sets = _cover_pairs(columns, set_size)
        mean = m / 2 ** (set_size - 1)
        # The number of units of a pattern has a variance of about its mean.
        max_units = mean + 4 * mean**0.5
        capacity = min(m, int(np.ceil(max_units / CAPACITY_UNIT)) * CAPACITY_UNIT)
        return Plan(sets=tuple(sets), capacity=capacity, pairs=_assign_pairs(sets))

    plans = (plan_for(set_size) for set_size in range(2, min(len(columns), MAX_SET_SIZE) + 1))
    best_plan = min(plans, key=lambda plan: plan.cost)
    # Single products: symmetry in (i, j) halves their cost.
    cost_of_products = FourTerms(normalized, signs=True).matrix_count(k) * m / 2
    return best_plan if best_plan.cost < cost_of_products else None


def gather_units(
    plan: Plan, readout: Readout | Float[np.ndarray, "m k"], xp: ModuleType
) -> tuple[Int[Any, "s t u"], Bool[Any, ""]]:
    """Return the units of each pattern of each set, and whether all patterns are within capacity.

    Args:
        plan: the sets and the capacity.
        readout: a, of signs.
        xp: numpy where the values of the readout are known, else jax.numpy.

    Returns:
        Indices of units, filled up with m where a pattern has fewer than the capacity; and whether
        no pattern has more.
    """
    # 1. The pattern of every unit, as an integer: bit q tells whether column q differs from the
    # first column of the set.
    m = len(readout)
    negative = xp.concatenate([xp.zeros((m, 1), bool), readout < 0], axis=1)
    members = negative[:, np.array(plan.sets)]  # [m, s, q]
    bits = xp.sum(
        (members[..., 1:] ^ members[..., :1]) * (1 << np.arange(members.shape[2] - 1))[None, None],
        axis=2,
    )

    # 2. The units sorted by pattern, and how many each pattern has.
    order = xp.argsort(bits, axis=0, stable=True).T
    counts = xp.sum(bits[:, :, None] == np.arange(plan.patterns)[None, None], axis=0)

    # 3. A slot of a group refers to a position in the sorted list, or to m where it is empty.
    slots = np.arange(plan.capacity)[None, None]
    positions = (xp.cumsum(counts, axis=1) - counts)[:, :, None] + slots
    units = xp.take_along_axis(
        order, xp.minimum(positions, m - 1).reshape(len(order), -1), axis=1
    ).reshape(positions.shape)
    units = xp.where(slots < counts[:, :, None], units, m).astype(np.int32)
    return units, xp.all(counts <= plan.capacity)


def multiply_by_patterns(
    plan: Plan, units: Int[Array, "s t u"], p: RowFactors, q: RowFactors, block_size: int | None
) -> Float[Array, "n1 n2 k k"]:
    """Return the inner products ⟨g_{iℓ}, g_{jℓ'}⟩ of all rows and outputs.

    Rows are processed in strips, all columns at once. On one set of points half of the tiles would
    be enough, but these products are so thin that smaller tiles lose what that saves.

    Args:
        plan: the sets.
        units: the units of each pattern, from :func:`gather_units`.
        p: factors of the rows.
        q: factors of the columns.
        block_size: rows per strip; None for as many as the caches hold.
    """
    n1 = len(p.slopes)
    n2 = len(q.slopes)
    t = plan.patterns
    strip_rows = block_size or max(cache_budget() // (t * n2), MIN_STRIP_ROWS)
    strip_count = -(-n1 // strip_rows)
    size = -(-n1 // strip_count)

    def group_slopes(
        rows: RowFactors, units: Int[Array, "t u"], padding: int
    ) -> Float[Array, "t n u"]:
        """Return S with its columns grouped by pattern; index m is the padded column of zeros."""
        slopes = jnp.pad(rows.slopes, ((0, padding), (0, 1)))
        return (
            jnp.take(slopes, units.reshape(-1), axis=1)
            .reshape(len(slopes), t, -1)
            .transpose(1, 0, 2)
        )

    def multiply_set(inputs: tuple[Array, Array]) -> Float[Array, "strips c b n2"]:
        """Return the P of the pairs of one set."""
        units, weights = inputs
        # The barriers keep XLA from gathering the columns again in every strip.
        slopes1, slopes2 = (
            lax.optimization_barrier(group_slopes(rows, units, padding))
            for rows, padding in ((p, strip_count * size - n1), (q, 0))
        )

        def multiply_strip(i: Int[Array, ""]) -> Float[Array, "c b n2"]:
            groups = product(
                lax.dynamic_slice_in_dim(slopes1, i * size, size, axis=1),
                slopes2.transpose(0, 2, 1),
            )
            return product(weights, groups.reshape(t, -1)).reshape(-1, size, n2)

        return lax.map(multiply_strip, jnp.arange(strip_count))

    # 1. The products of all sets, [s · c, n1, n2].
    strips = lax.map(multiply_set, (units, jnp.asarray(plan.weights(), p.slopes.dtype)))
    products = strips.swapaxes(1, 2).reshape(-1, strip_count * size, n2)[:, :n1]

    # 2. Where each pair is among them; P_1 is filled in as (p, p).
    pair_index = {pair: i for i, pair in enumerate(chain.from_iterable(plan.pairs))}
    ones_index = next(i for (p, q), i in pair_index.items() if p == q)

    def position(p: int, q: int) -> int:
        return ones_index if p == q else pair_index[p, q]

    # 3. Their sum. Without a normaliser, where the plan lacks the column of ones, one term is left.
    if plan.sets[0][0] == 0:
        return four_terms(products, position, p.means, q.means)
    return select_pairs(products, position, p.means.shape[1]).transpose(2, 3, 0, 1)

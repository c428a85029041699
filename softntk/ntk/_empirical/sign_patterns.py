r"""All P_c = (S∘c) Sᵀ of a readout of signs, from products over the hidden units that share their
signs.

The c of the four terms (:mod:`softntk.ntk._empirical.contractions`) are 1, a_ℓ and a_ℓ∘a_ℓ':
products c = s_p∘s_q of two columns of signs out of [1, a_1, …, a_k]. Take a few such columns, a set
Q. Units r whose signs agree on Q, up to one sign for all of Q, have the same s_p∘s_q for every p, q
∈ Q; with the units gathered by that pattern t, 2^(|Q|−1) of them,

    P_{s_p∘s_q} = Σ_t (s_p s_q)(t) G_t,    G_t = Σ_{r of pattern t} S_{·r} S_{·r}ᵀ.

The G_t together cost one product of n²m multiplications, whatever the number of pairs in Q, and
their signed sums n² for each pair and pattern. A few sets hold every pair: one set serves up to k =
4, thirteen sets of four all 55 pairs of k = 10. That is a half (k = 10, m = 1024) to a quarter (k =
4, m = 2048) of the multiplications that the products one by one take with both their symmetries,
and S is never multiplied by any c.

The gathered units fill 2^(|Q|−1) groups of one static size, with zeros where there are fewer; the
signs are random, so four standard deviations above the mean are hardly ever too few. Where they
are, the products are taken one by one.
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
from softntk.ntk._empirical.contractions import FourTerms, four_terms, pairs

# What a number of the result costs beside its multiplications, in multiplications: a product of few
# terms is not as fast as a long one, and a signed sum waits for memory (measured on a CPU).
PRODUCT, SUM = 64, 8


class Plan(NamedTuple):
    """Which columns of signs are taken together; static and hashable.

    Attributes:
        sets: columns of [1, a_1, …, a_k], as many in each.
        capacity: units a pattern may have.
        pairs: for each set the pairs of columns that are taken from it, as many in each; (p, p) is
            P_1.
    """

    sets: tuple[tuple[int, ...], ...]
    capacity: int
    pairs: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def patterns(self) -> int:
        """Of one set."""
        return 2 ** (len(self.sets[0]) - 1)

    @property
    def multiplications(self) -> int:
        """For each pair of points, counting what else takes time."""
        return len(self.sets) * self.patterns * (self.capacity + PRODUCT + SUM * len(self.pairs[0]))

    def weights(self) -> Float[np.ndarray, "s c t"]:
        """The sign with which G_t of a set enters each of its pairs."""
        columns = np.concatenate([np.zeros((self.patterns, 1), int), _bits(self)], axis=1)
        sign = lambda members, p, q: (
            1 - 2 * (columns[:, members.index(p)] ^ columns[:, members.index(q)])
        )
        return np.array(
            [
                [sign(s, p, q) for p, q in pairs]
                for s, pairs in zip(self.sets, self.pairs, strict=True)
            ],
            float,
        )


def _bits(plan: Plan) -> np.ndarray:
    """Pattern t as bits: whether the sign of each column but the first differs from that of the
    first.
    """
    return np.arange(plan.patterns)[:, None] >> np.arange(len(plan.sets[0]) - 1) & 1


def _cover(columns: range, size: int) -> list[tuple[int, ...]]:
    """Sets of that size that hold every pair, greedily."""
    missing = np.zeros((columns.stop, columns.stop), bool)
    missing[columns.start :, columns.start :] = ~np.eye(len(columns), dtype=bool)
    sets = []
    while missing.any():
        members = [int(np.argmax(missing.any(axis=1)))]
        while len(members) < size:
            gain = missing[:, members].sum(axis=1) * len(missing) + missing.sum(axis=1)
            gain[[*members, *range(columns.start)]] = -1
            members.append(int(np.argmax(gain)))
        missing[np.ix_(members, members)] = False
        sets.append(tuple(sorted(members)))
    return sets


def _share(sets: list[tuple[int, ...]]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Each pair to the set that has the fewest of those that hold it; what is missing to the
    longest list is P_1 again.
    """
    holders: dict[tuple[int, int], list[int]] = {}
    for i, members in enumerate(sets):
        for pair in combinations(members, 2):
            holders.setdefault(pair, []).append(i)
    shares: list[list[tuple[int, int]]] = [[] for _ in sets]
    for pair in sorted(holders, key=lambda pair: len(holders[pair])):
        shares[min(holders[pair], key=lambda i: len(shares[i]))].append(pair)
    least = min(range(len(sets)), key=lambda i: len(shares[i]))
    shares[least].insert(0, (sets[least][0], sets[least][0]))
    longest = max(map(len, shares))
    return tuple(
        tuple(share + [(s[0], s[0])] * (longest - len(share)))
        for s, share in zip(sets, shares, strict=True)
    )


@lru_cache(maxsize=256)
def plan(m: int, k: int, normalized: bool) -> Plan | None:
    """The cheapest plan for m units and k outputs, None where the products one by one are cheaper.

    Without a normaliser the column of ones is not needed.
    """
    columns = range(0 if normalized else 1, k + 1)

    def of_size(size: int) -> Plan:
        sets, mean = _cover(columns, size), m / 2 ** (size - 1)
        capacity = min(m, int(np.ceil((mean + 4 * mean**0.5) / 16)) * 16)
        return Plan(sets=tuple(sets), capacity=capacity, pairs=_share(sets))

    best = min(
        (of_size(size) for size in range(2, min(len(columns), 8) + 1)),
        key=lambda plan: plan.multiplications,
    )
    return (
        best if best.multiplications < FourTerms(normalized, signs=True).count(k) * m / 2 else None
    )


def gather(plan: Plan, readout: Any, xp: ModuleType) -> tuple[Int[Any, "s t u"], Bool[Any, ""]]:
    """The units of each pattern of each set (m where there are fewer), and whether they found room.

    ``xp`` is numpy where the readout is known, else jax.numpy.
    """
    m = len(readout)
    negative = xp.concatenate([xp.zeros((m, 1), bool), readout < 0], axis=1)
    members = negative[:, np.array(plan.sets)]  # [m, s, q]
    bits = xp.sum(
        (members[..., 1:] ^ members[..., :1]) * (1 << np.arange(members.shape[2] - 1))[None, None],
        axis=2,
    )
    order = xp.argsort(bits, axis=0, stable=True).T
    counts = xp.sum(bits[:, :, None] == np.arange(plan.patterns)[None, None], axis=0)
    slots = np.arange(plan.capacity)[None, None]
    places = (xp.cumsum(counts, axis=1) - counts)[:, :, None] + slots
    units = xp.take_along_axis(
        order, xp.minimum(places, m - 1).reshape(len(order), -1), axis=1
    ).reshape(places.shape)
    return xp.where(slots < counts[:, :, None], units, m).astype(np.int32), xp.all(
        counts <= plan.capacity
    )


def sign_patterns(
    plan: Plan, units: Int[Array, "s t u"], p: RowFactors, q: RowFactors, block_size: int | None
) -> Float[Array, "n1 n2 k k"]:
    """The inner products ⟨g_{iℓ}, g_{jℓ'}⟩ of all rows and outputs.

    Rows are taken in lines, all columns at once: half of the tiles would do on one set of points,
    but in products this thin the smaller tiles lose what that saves.
    """
    n1, n2, t = len(p.slopes), len(q.slopes), plan.patterns
    lines = -(-n1 // (block_size or max(cache_budget() // (t * n2), 16)))
    size = -(-n1 // lines)

    def gathered(rows: RowFactors, units: Int[Array, "t u"], more: int) -> Float[Array, "t n u"]:
        slopes = jnp.pad(rows.slopes, ((0, more), (0, 1)))
        return (
            jnp.take(slopes, units.reshape(-1), axis=1)
            .reshape(len(slopes), t, -1)
            .transpose(1, 0, 2)
        )

    def one_set(given: tuple[Array, Array]) -> Float[Array, "lines c b n2"]:
        units, weights = given
        one, two = (
            lax.optimization_barrier(gathered(rows, units, more))
            for rows, more in ((p, lines * size - n1), (q, 0))
        )

        def line(i: Int[Array, ""]) -> Float[Array, "c b n2"]:
            groups = product(
                lax.dynamic_slice_in_dim(one, i * size, size, axis=1), two.transpose(0, 2, 1)
            )
            return product(weights, groups.reshape(t, -1)).reshape(-1, size, n2)

        return lax.map(line, jnp.arange(lines))

    whole = lax.map(one_set, (units, jnp.asarray(plan.weights(), p.slopes.dtype)))
    products = whole.swapaxes(1, 2).reshape(-1, lines * size, n2)[:, :n1]
    place = {(p, q): i for i, (p, q) in enumerate(chain.from_iterable(plan.pairs))}
    ones = next(i for (p, q), i in place.items() if p == q)
    at = lambda p, q: ones if p == q else place[p, q]
    if plan.sets[0][0] == 0:  # with a normaliser
        return four_terms(products, at, p.means, q.means)
    return pairs(products, at, p.means.shape[1]).transpose(2, 3, 0, 1)

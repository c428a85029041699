"""The smallest width for which convergence is certified."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import check_callable, check_key, check_positive_int
from softntk._core.validation.on_host import Targets, as_double, as_host_targets, known_number
from softntk.networks import Network, Points
from softntk.theory._certificates.convergence import ConvergenceCertificate, certify_convergence


@record
class CertifiedWidth:
    """What :func:`certified_width` found.

    Attributes:
        width: the smallest one whose certificate holds; None if none up to ``largest`` does.
        certificate: of that width, or of the largest one tried.
        tried: (width, whether it holds, the part of the way that the proof reached), in order of
            width.
    """

    width: int | None
    certificate: ConvergenceCertificate
    tried: list[tuple[int, bool, float]]


def certified_width(
    make: Callable[[int], Network],
    x: Points,
    y: Targets,
    *,
    key: PRNGKeyArray,
    smallest: int = 64,
    largest: int = 2**20,
    precision: float = 0.05,
) -> CertifiedWidth:
    """Return how wide a network must be for :func:`softntk.theory.certify_convergence` to hold on
    these data, by bisection.

    Doubles the width until the certificate holds, then halves the ratio of the last two until it is
    below 1 + precision. Every width has other weights, drawn with the same key, so that near the
    threshold the answer carries their chance.

    Args:
        make: width -> network, as ``lambda m: sn.networks.two_layer("softmax", width=m)``.
        x: [n, d].
        y: [n, k], or [n] for one output.
        key: of the weights.
        smallest: the first width; even.
        largest: the last one.
        precision: relative.

    Returns:
        A :class:`CertifiedWidth`.

    Raises:
        ValueError: make no function, or not of networks of that width; key no key; x or y as for
            :func:`softntk.theory.certify_convergence`; widths not positive and even, or in the
            wrong order; precision not in (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> make = lambda m: sn.networks.two_layer("softmax", width=m)
        >>> found = certified_width(make, jnp.eye(3), jnp.full((3, 1), 0.05), key=jax.random.key(0))
        >>> found.certificate.holds, found.width < 2000
        (True, True)

    Source: MATHEMATICS.md#certificates.
    """
    check_callable("make", make, "a function of the width that returns a network")
    key = check_key("key", key)
    smallest = check_positive_int("smallest", smallest)
    largest = check_positive_int("largest", largest)
    if smallest % 2 or largest % 2 or smallest > largest:
        raise ValueError(
            f"smallest and largest must be even and in order, got {smallest} and {largest}."
        )
    precision = known_number("precision", precision, above=0, below=1)
    points = as_double("x", x, ("n", "d"))
    as_host_targets("y", y, len(points))
    found: dict[int, Any] = {}

    def holds(width: int) -> bool:
        net = make(width)
        if not isinstance(net, Network) or net.architecture.width != width:
            got = (
                type(net).__name__
                if not isinstance(net, Network)
                else f"one of width {net.architecture.width}"
            )
            raise ValueError(
                f"make must return a network of softntk.networks.two_layer of width {width}, got {got}."
            )
        _, params = net.init_fn(key, (-1, points.shape[1]))
        found[width] = certify_convergence(net, params, x, y)
        return found[width].holds

    low, high = None, smallest
    while not holds(high):
        if high == largest:
            return _told(None, high, found)
        low, high = high, min(2 * high, largest)
    while low is not None and high - low > max(2, precision * low):
        middle = 2 * round((low * high) ** 0.5 / 2)
        if not low < middle < high:
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return _told(high, high, found)


def _told(width: int | None, shown: int, found: dict[int, Any]) -> CertifiedWidth:
    tried = [(m, found[m].holds, found[m].progress) for m in sorted(found)]
    return CertifiedWidth(width=width, certificate=found[shown], tried=tried)

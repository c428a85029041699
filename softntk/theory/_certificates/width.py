"""The smallest width for which convergence is certified."""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import check_callable, check_key, check_positive_int
from softntk._core.validation.on_host import Targets, as_double, as_host_targets, known_number
from softntk.networks import Network, Points
from softntk.theory._certificates.convergence import ConvergenceCertificate, certify_convergence


@record
class CertifiedWidth:
    """The result of :func:`certified_width`.

    Attributes:
        width: the smallest one whose certificate holds; None if none up to ``largest`` does.
        certificate: of that width, or of the largest one tried.
        tried: (width, whether it holds, the part of ‖r₀‖ whose decrease the proof covers), in order
            of width.
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
    """Return the smallest width whose network has a certificate of convergence on these data.

    Use it to compare families by the width they need for
    :func:`softntk.theory.certify_convergence`, and with :func:`softntk.theory.required_width`.

    Doubles the width until the certificate holds, then bisects, on a logarithmic scale, until the
    ratio of the last two widths is below 1 + precision. Every width has its own weights, drawn with
    the same key, so that near the threshold the result is random.

    Args:
        make: width -> network, e.g. ``lambda m: sn.networks.two_layer("softmax", width=m)``.
        x: [n, d].
        y: [n, k], or [n] for one output.
        key: of the weights.
        smallest: the first width; even.
        largest: the last one.
        precision: relative.

    Returns:
        A :class:`CertifiedWidth`.

    Raises:
        ValueError: make no function, or its network not of that width; key no key; x or y as for
            :func:`softntk.theory.certify_convergence`; widths not positive and even, or in the
            wrong order; precision not in (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> make = lambda m: sn.networks.two_layer("softmax", width=m)
        >>> targets = jnp.full((3, 1), 0.05)
        >>> result = certified_width(make, jnp.eye(3), targets, key=jax.random.key(0))
        >>> result.certificate.holds, result.width < 2000
        (True, True)

    Source: MATHEMATICS.md#certificates.
    """
    # 1. Check the arguments.
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
    certificates: dict[int, ConvergenceCertificate] = {}

    def holds(width: int) -> bool:
        """Certify one width, and store the certificate."""
        # The same key for every width.
        net = make(width)
        _check_width(net, width)
        _, params = net.init_fn(key, (-1, points.shape[1]))
        certificates[width] = certify_convergence(net, params, x, y)
        return certificates[width].holds

    # 2. Double until a certificate holds, up to the largest width.
    failing = None
    holding = smallest
    while not holds(holding):
        if holding == largest:
            return _summary(None, holding, certificates)
        failing = holding
        holding = min(2 * holding, largest)
    # 3. Bisect between the last width that fails and the first that holds; widths are even.
    while failing is not None and holding - failing > max(2, precision * failing):
        middle = 2 * round((failing * holding) ** 0.5 / 2)
        if not failing < middle < holding:
            break
        if holds(middle):
            holding = middle
        else:
            failing = middle
    return _summary(holding, holding, certificates)


def _check_width(net: object, width: int) -> None:
    """Refuse results of ``make`` that are no network of that width."""
    if not isinstance(net, Network):
        description = type(net).__name__
    elif net.architecture.width != width:
        description = f"one of width {net.architecture.width}"
    else:
        return
    raise ValueError(
        f"make must return a network of softntk.networks.two_layer of width {width}, "
        f"got {description}."
    )


def _summary(
    width: int | None, reported_width: int, certificates: dict[int, ConvergenceCertificate]
) -> CertifiedWidth:
    """Return the smallest width with the certificate of ``reported_width`` and all trials."""
    tried = [(m, certificates[m].holds, certificates[m].progress) for m in sorted(certificates)]
    return CertifiedWidth(width=width, certificate=certificates[reported_width], tried=tried)

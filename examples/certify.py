"""Certificates: how wide a network must be for convergence to be proved, and error bars for the
minimum of a regression.

Twenty points on the unit sphere of R^16. For softmax, res_softmax and exp the smallest width at
which ``certify_convergence`` holds, for targets of norm 1 and √20; gradient descent is then run
with the certified step and must obey rate and radius. The networks are compared at equal λ_min: the
targets of each are scaled as σ_min of its Jacobian is, which is the same as scaling its output.
Below, ``certify_minimum`` along Newton's method on a softmax regression: the certified error beside
the true one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import BLUE, GREEN, ORANGE, PURPLE, make_figure, make_parser, save_figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

import softntk as sn

FAMILIES = ("softmax", "res_softmax", "exp")
COLOURS = {"softmax": BLUE, "res_softmax": PURPLE, "exp": GREEN}
STEPS = 60
# width; for targets of norm √20 the only one that is tried: 2**20 is not enough either
LARGEST = 2**18


@dataclass(frozen=True)
class Proof:
    """The smallest certified width of a family, and gradient descent there."""

    family: str
    norm: float
    """Of the targets, for softmax; those of the others are scaled to equal λ_min."""
    found: sn.theory.CertifiedWidth
    squares: np.ndarray
    """‖r_t‖²."""
    moved: np.ndarray
    """‖W_t − W_0‖."""

    @property
    def obeyed(self) -> bool:
        """Whether gradient descent kept what the certificate says."""
        cert = self.found.certificate
        return bool(
            (self.squares[1:] <= cert.rate * self.squares[:-1]).all()
            and (self.moved <= cert.radius).all()
        )


@dataclass(frozen=True)
class Bar:
    """One step of Newton's method on the regression."""

    step: int
    distance: float
    ball: sn.theory.MinimumCertificate


def sphere(n: int, d: int) -> np.ndarray:
    """Points."""
    x = np.random.default_rng(0).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def prove(
    family: str, x: np.ndarray, norm: float, reference: float, precision: float, smallest: int
) -> Proof:
    """The smallest width, and a run of gradient descent with what is certified there."""
    make = lambda m: sn.networks.two_layer(family, width=m)
    singular = (
        float(np.linalg.eigvalsh(np.asarray(make(2).kernel_fn(x, None, "ntk"), np.float64))[0])
        ** 0.5
    )
    y = np.random.default_rng(1).normal(size=(len(x), 1))
    y *= norm * singular / reference / np.linalg.norm(y)
    key = jax.random.key(0)
    found = sn.theory.certified_width(
        make,
        x,
        y,
        key=key,
        smallest=smallest if norm <= 1 else LARGEST,
        largest=LARGEST,
        precision=precision,
    )
    if found.width is None:
        return Proof(family, norm, found, np.empty(0), np.empty(0))
    net = make(found.width)
    _, start = net.init_fn(key, (-1, x.shape[1]))
    loss = lambda p: 0.5 * jnp.sum((net.apply_fn(p, x) - y) ** 2)
    tx = sn.solvers.gradient_descent(found.certificate.learning_rate)

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params)
        moved = jnp.linalg.norm(params.hidden - start.hidden)
        return (jax.tree.map(jnp.add, params, updates), state), (2 * value, moved)

    _, (squares, moved) = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=STEPS))(
        start
    )
    return Proof(family, norm, found, np.asarray(squares), np.asarray(moved))


def bars(n: int, d: int) -> list[Bar]:
    """Newton's method from zero, and what can be certified on the way."""
    rng = np.random.default_rng(2)
    A = rng.normal(size=(n, d)) / d**0.5
    b = np.exp(A @ rng.normal(size=d) + 0.3 * rng.normal(size=n))
    p = sn.regression.softmax(A, b / b.sum(), weights=0.3 / n**0.5)
    x, points = jnp.zeros(d), []
    for _ in range(7):
        points.append(x)
        x = x - jnp.linalg.solve(p.hessian(x).as_matrix(), p.gradient(x))
    exact = sn.solvers.minimise(p, x, rtol=1e-14, throw=False).value
    found = [
        (float(jnp.linalg.norm(point - exact)), sn.theory.certify_minimum(p, point))
        for point in points
    ]
    return [Bar(i, distance, ball) for i, (distance, ball) in enumerate(found)]


def table(proofs: Sequence[Proof], n: int) -> Table:
    """One row a proof."""
    out = Table(title=f"Gradient descent, proved: {n} points of the unit sphere, equal λ_min")
    for name in (
        "network",
        "‖y‖",
        "certified width",
        "η",
        "rate of ‖r‖²",
        "radius",
        "largest move seen",
        "obeyed",
    ):
        out.add_column(name, justify="left" if name == "network" else "right")
    for p in proofs:
        cert = p.found.certificate
        if p.found.width is None:
            width, _, progress = p.found.tried[-1]
            out.add_row(
                p.family,
                f"{p.norm:.3g}",
                f"> {width} ({100 * progress:.0f} % of the way)",
                *["–"] * 5,
            )
            continue
        cells = [
            f"{p.norm:.3g}",
            f"{p.found.width}",
            f"{cert.learning_rate:.3g}",
            f"{cert.rate:.4f}",
            f"{cert.radius:.3g}",
        ]
        out.add_row(p.family, *cells, f"{p.moved.max():.3g}", "yes" if p.obeyed else "NO")
    return out


def picture(proofs: Sequence[Proof], found: Sequence[Bar], path: Path) -> None:
    """How far proofs reach against width; a run against its certificate; error bars."""
    figure, (left, middle, right) = make_figure(1, 3, 14, 4.6)
    norms = sorted({p.norm for p in proofs})
    for p in proofs:
        widths, _, progress = zip(*p.found.tried, strict=True)
        style = "o-" if p.norm == norms[0] else "X"
        left.plot(
            widths,
            100 * np.array(progress),
            style,
            ms=5 if p.norm == norms[0] else 9,
            color=COLOURS[p.family],
            lw=2,
        )
    left.set(
        xscale="log",
        xlabel="width m",
        ylabel="part of ‖r₀‖ that the proof covers, %",
        ylim=(-3, 103),
    )
    left.set_title("how far the proof reaches")
    for p in proofs:
        if p.norm == norms[0] and len(p.squares):
            bound = p.squares[0] * p.found.certificate.rate ** np.arange(STEPS)
            middle.plot(p.squares, "-", color=COLOURS[p.family], lw=2.2)
            middle.plot(bound, ":", color=COLOURS[p.family], lw=2.2)
    middle.set(yscale="log", xlabel="steps of gradient descent", ylabel="‖F − Y‖²")
    middle.set_title("seen (solid) and certified (dotted)")
    held = [b for b in found if b.ball.holds]
    right.plot(
        [b.step for b in found],
        [max(b.distance, 1e-17) for b in found],
        "o-",
        color="black",
        lw=2,
        label="true error",
    )
    right.plot(
        [b.step for b in held],
        [b.ball.error for b in held],
        "v:",
        color=ORANGE,
        lw=2,
        label="certified error",
    )
    right.plot(
        [b.step for b in held],
        [b.ball.radius for b in held],
        "s--",
        color=BLUE,
        lw=2,
        label="one minimiser within",
    )
    right.set(yscale="log", xlabel="Newton steps", ylabel="distance from the point")
    right.set_title("error bars of a softmax regression")
    right.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.6))
    lines = [Line2D([], [], color=COLOURS[name], lw=2.2, label=name) for name in FAMILIES]
    styles = zip(norms, ("o", "X"), ("-", ""), strict=False)
    for norm, marker, style in styles:
        lines.append(
            Line2D(
                [],
                [],
                color="grey",
                ls=style,
                marker=marker,
                lw=2.2,
                label=f"left: ‖y‖ = {norm:.3g}",
            )
        )
    figure.legend(handles=lines, frameon=False, loc="outside lower center", ncols=5)
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> tuple[list[Proof], list[Bar]]:
    """Certify, print, draw."""
    parser = make_parser(__file__, __doc__, small="four points, one norm")
    options = parser.parse_args(argv)
    n, d, norms, precision, smallest = (
        (4, 4, (0.3,), 0.3, 64) if options.small else (20, 16, (1.0, 20**0.5), 0.1, 8192)
    )
    with jax.enable_x64(True):
        x = sphere(n, d)
        kernel = sn.networks.two_layer("softmax", width=2).kernel_fn(x, None, "ntk")
        reference = float(np.linalg.eigvalsh(np.asarray(kernel))[0]) ** 0.5
        proofs = [
            prove(name, x, norm, reference, precision, smallest)
            for norm in norms
            for name in FAMILIES
        ]
        found = bars(200, 5)
    console = Console(width=130)
    console.print(table(proofs, n))
    relu = sn.networks.two_layer("relu", width=1024)
    reason = sn.theory.certify_convergence(
        relu, relu.init_fn(jax.random.key(0), (-1, d))[1], x, np.ones((n, 1))
    ).reason
    console.print(f"relu: {reason}")
    for b in found:
        bar = (
            f"error ≤ {b.ball.error:.1e}, one minimiser within {b.ball.radius:.1e}"
            if b.ball.holds
            else b.ball.reason
        )
        console.print(f"Newton step {b.step}: true error {b.distance:.1e}; {bar}")
    picture(proofs, found, options.output)
    return proofs, found


if __name__ == "__main__":
    main()

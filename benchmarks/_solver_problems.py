"""The problems of ``solvers.py``, and what solvers are given of them: a fixed registry, each built
when its turn comes.

They span activation, form, size, condition of A, heavy-tailed rows, regularisation, and sparse A. A
name says it all: ``exp-normalized-1e4x50-c1e6-heavy-tiny`` has n 1e4, d 50, singular values over
six decades, rows scaled by Student's t with two degrees of freedom, and weights of 1e-6.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Float

import softntk as sn
from softntk._linalg import design_matrix as matrices
from softntk.regression import Problem

LARGEST_LOGIT = 8.0  # behind the targets
LARGEST_SCALE = 1e3  # of a heavy row
DENSITY = 0.01
TOLERANCE = 1e-9  # of the gradient, times that at the start
ROUNDING = 1.1  # by which a gradient that is computed again may exceed that
ENDLESS = 10**9
MEMORY = 8e9  # bytes, for jax.hessian
JACOBIAN = 1e7  # entries, for SciPy's least_squares


@dataclass(frozen=True)
class Spec:
    """What a problem is made of.

    Attributes:
        activation: u.
        form: "normalized", "rescaled" or "plain".
        n: rows.
        d: columns.
        condition: of A; its singular values (of a sparse A: the scales of its columns) are
            geometric.
        weight: w; for the normalized form, whose residual is that small, divided by 3 √n.
        heavy: rows scaled by Student's t with two degrees of freedom.
        sparse: one entry in a hundred, as BCOO.
    """

    activation: str
    form: str
    n: int
    d: int
    condition: float
    weight: float
    heavy: bool = False
    sparse: bool = False

    @property
    def name(self) -> str:
        """All of it."""
        parts = [
            self.activation,
            self.form,
            f"{_short(self.n)}x{self.d}",
            f"c{_short(self.condition)}",
        ]
        parts += ["heavy"] * self.heavy + ["sparse"] * self.sparse
        return "-".join([*parts, "strong" if self.weight >= 1 else "tiny"])


def _short(number: float) -> str:
    return f"{number:.0e}".replace("e+0", "e")


_STRONG, _TINY, _TINIER = 1.0, 1e-5, 1e-6
_N = "normalized"

SPECS = (
    Spec("exp", _N, 10_000, 50, 1e2, _STRONG),
    Spec("exp", _N, 10_000, 50, 1e4, _TINY),
    Spec("exp", _N, 10_000, 50, 1e6, _TINIER),
    Spec("exp", _N, 10_000, 50, 1e4, _TINY, heavy=True),
    Spec("exp", _N, 10_000, 50, 1e6, _STRONG, heavy=True),
    Spec("res_exp", _N, 10_000, 50, 1e2, _TINY, heavy=True),
    Spec("res_exp", _N, 10_000, 50, 1e6, _TINIER),
    Spec("res_exp", _N, 10_000, 50, 1e4, _STRONG, heavy=True),
    Spec("cosh", _N, 10_000, 50, 1e2, _TINY),
    Spec("cosh", _N, 10_000, 50, 1e4, _TINY, heavy=True),
    Spec("exp", "rescaled", 10_000, 50, 1e4, _TINY),
    Spec("exp", "rescaled", 10_000, 50, 1e2, _TINY, heavy=True),
    Spec("cosh", "rescaled", 10_000, 50, 1e4, _TINY),
    Spec("exp", "plain", 10_000, 50, 1e4, _TINY),
    Spec("exp", "plain", 10_000, 50, 1e2, _TINY, heavy=True),
    Spec("res_exp", "plain", 10_000, 50, 1e6, _TINIER),
    Spec("sinh", "plain", 10_000, 50, 1e4, _STRONG),
    Spec("erf", "plain", 10_000, 50, 1e4, _TINY),
    Spec("cosh", "plain", 10_000, 50, 1e2, _TINY),
    Spec("exp", _N, 100_000, 50, 1e6, _TINIER),
    Spec("res_exp", _N, 100_000, 50, 1e4, _TINY, heavy=True),
    Spec("cosh", _N, 100_000, 50, 1e4, _TINY),
    Spec("exp", "rescaled", 100_000, 50, 1e4, _TINY),
    Spec("exp", "plain", 100_000, 50, 1e6, _TINIER),
    Spec("sinh", "plain", 100_000, 50, 1e2, _TINY, heavy=True),
    Spec("erf", "plain", 100_000, 50, 1e6, _TINIER),
    Spec("exp", _N, 10_000, 500, 1e2, _TINY, sparse=True),
    Spec("sinh", "plain", 10_000, 500, 1e4, _STRONG, sparse=True),
    Spec("erf", "plain", 10_000, 500, 1e2, _TINY, sparse=True),
    Spec("exp", _N, 10_000, 500, 1e2, _TINY),
    Spec("res_exp", _N, 10_000, 500, 1e6, _TINIER),
    Spec("exp", "plain", 10_000, 500, 1e4, _STRONG),
    Spec("erf", "plain", 10_000, 500, 1e2, _TINY, heavy=True),
    Spec("exp", _N, 1_000_000, 50, 1e2, _STRONG),
    Spec("res_exp", _N, 1_000_000, 50, 1e6, _TINIER),
    Spec("sinh", "plain", 1_000_000, 50, 1e4, _TINY),
    Spec("exp", _N, 100_000, 500, 1e2, _TINY, heavy=True, sparse=True),
    Spec("res_exp", "plain", 100_000, 500, 1e4, _TINY, sparse=True),
    Spec("exp", _N, 100_000, 500, 1e4, _TINY),
    Spec("res_exp", _N, 100_000, 500, 1e6, _STRONG, heavy=True),
    Spec("exp", "plain", 100_000, 500, 1e2, _STRONG),
    Spec("erf", "plain", 100_000, 500, 1e4, _TINY),
)
"""Cheapest first, by n d²."""

QUICK = tuple(SPECS[i].name for i in (0, 1, 2, 4, 6, 7, 10, 13, 16, 17))

LEFT_OUT = {
    "heavy rows, condition 1e6, exp, sinh or cosh, plain, rescaled, or normalized with tiny weights": "the gradient cannot be "
    "computed to 1e-9 of the first: its floor in float64 lies at 2e-9 (normalized exp) to 1e-8 (plain, rescaled); with erf, "
    "whose slopes are bounded, at 1e-14",
    "erf, sinh or identity, normalized": "1ᵀu(0) = 0: the start lies outside of the domain",
    "erf, sinh or identity, rescaled": "u(0) = 0: the start is the minimiser, with loss zero",
    "relu, crrelu, threshold": "not twice differentiable; other solvers are not made for that",
    "plain identity": "linear least squares, one step for most",
    "d 500 at n 1e6": "A alone has 4 GB, a Jacobian or a factor of it as much again",
}
"""What the registry has not, and why."""


def _dense_matrix(rng: np.random.Generator, spec: Spec) -> np.ndarray:
    """Gaussian rows with geometric singular values in a random basis; the root mean square of their
    lengths is 1 (if even).
    """
    rotation = np.linalg.qr(rng.normal(size=(spec.d, spec.d)))[0]
    A = rng.normal(size=(spec.n, spec.d)) @ (
        np.geomspace(1, 1 / spec.condition, spec.d)[:, None] * rotation
    )
    A /= np.sqrt(np.sum(A * A) / spec.n)
    if spec.heavy:
        A *= _scales(rng, spec.n)[:, None]
    return A


def _scales(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.minimum(np.abs(rng.standard_t(2.0, size=n)), LARGEST_SCALE)


def _sparse_matrix(rng: np.random.Generator, spec: Spec) -> sparse.BCOO:
    """Gaussian entries in random places; the scales of the columns are geometric."""
    nonzeros = int(DENSITY * spec.n * spec.d)
    rows, columns = np.unravel_index(
        np.sort(rng.choice(spec.n * spec.d, nonzeros, replace=False, shuffle=False)),
        (spec.n, spec.d),
    )
    data = (
        rng.normal(size=nonzeros)
        * rng.permutation(np.geomspace(1, 1 / spec.condition, spec.d))[columns]
    )
    data /= np.sqrt(np.sum(data * data) / spec.n)
    if spec.heavy:
        data *= _scales(rng, spec.n)[rows]
    indices = jnp.asarray(np.stack([rows, columns], axis=1))
    return sparse.BCOO(
        (jnp.asarray(data), indices),
        shape=(spec.n, spec.d),
        indices_sorted=True,
        unique_indices=True,
    )


def build(spec: Spec) -> tuple[Problem, Float[Array, " d"]]:
    """The problem and its start.

    The target is u at logits of standard deviation one, with multiplicative noise, so that the
    minimiser has a loss and lies at logits of that order. The start is zero; for cosh, whose u'(0)
    = 0 makes zero stationary, a random point with logits of standard deviation 0.1.
    """
    rng = np.random.default_rng(0)
    A = _sparse_matrix(rng, spec) if spec.sparse else jnp.asarray(_dense_matrix(rng, spec))
    logits = np.asarray(A @ jnp.asarray(rng.normal(size=spec.d)))
    logits = np.clip(logits / np.std(logits), -LARGEST_LOGIT, LARGEST_LOGIT)
    u, noise = (
        np.asarray(sn.activations.get(spec.activation).u(jnp.asarray(logits))),
        rng.normal(size=spec.n),
    )
    b = u * (np.exp(0.5 * noise) if spec.form == "normalized" else 1 + 0.3 * noise)
    if spec.form != "plain":
        b /= abs(np.sum(b))
    weight = spec.weight / (3 * spec.n**0.5) if spec.form == "normalized" else spec.weight
    x0 = jnp.zeros(spec.d)
    if spec.activation == "cosh":
        x0 = jnp.asarray(rng.normal(size=spec.d))
        x0 *= 0.1 / jnp.std(A @ x0)
    return sn.regression.problem(A, b, spec.activation, spec.form, weight), x0


class Given(NamedTuple):
    """A problem as the other solvers take it: scaled, and as one of least squares.

    Attributes:
        problem: the regression.
        scale: of the loss. n² for the normalized form, so that there too residuals are of order
            one: the others have thresholds that are absolute.
        root: R [d, d] with RᵀR = AᵀA: of ½‖wAx‖² = ½‖wRx‖² the second has d residuals instead of n.
    """

    problem: Problem
    scale: Float[Array, ""]
    root: Float[Array, "d d"]

    def value_and_gradient(
        self, x: Float[Array, " d"]
    ) -> tuple[Float[Array, ""], Float[Array, " d"]]:
        """In closed form."""
        value, gradient = self.problem.value_and_gradient(x)
        return self.scale * value, self.scale * gradient

    def loss(self) -> Callable[[Float[Array, " d"]], Float[Array, ""]]:
        """A function that is differentiated in closed form."""
        loss = jax.custom_jvp(lambda x: self.scale * self.problem(x))

        @loss.defjvp
        def _(primals: tuple, tangents: tuple) -> tuple[Float[Array, ""], Float[Array, ""]]:
            value, gradient = self.value_and_gradient(*primals)
            return value, jnp.dot(gradient, *tangents)

        return loss

    def residual(self, x: Float[Array, " d"]) -> Float[Array, " m"]:
        """Half of the sum of its squares is the loss; n + d numbers."""
        p = self.problem
        return jnp.sqrt(self.scale) * jnp.concatenate([p.residual(x), p.weights * (self.root @ x)])

    def jacobian(self, x: Float[Array, " d"]) -> Float[Array, "m d"]:
        """Of the residual, dense, in closed form."""
        p = self.problem
        A, z = matrices.to_dense(p.A), p.logits(x)
        shift = p.activation.log_scale(z) if p.form == "normalized" else 0.0
        u, slope, _ = p.activation.jet(z, shift)
        total = jnp.sum(u) if p.form == "normalized" else 1.0
        rows = (slope / total)[:, None] * A
        if p.form != "plain":
            rows -= jnp.outer(u / total if p.form == "normalized" else p.b, (slope / total) @ A)
        return jnp.sqrt(self.scale) * jnp.concatenate([rows, p.weights * self.root])


def given(p: Problem) -> Given:
    """The problem with its scale and the triangular factor of A."""
    root = jnp.asarray(np.linalg.qr(np.asarray(matrices.to_dense(p.A)), mode="r"))
    return Given(p, jnp.asarray(p.shape[0] ** 2.0 if p.form == "normalized" else 1.0), root)


_value_and_gradient = jax.jit(Given.value_and_gradient)
_residual, _jacobian = jax.jit(Given.residual), jax.jit(Given.jacobian)
_hessian = jax.jit(lambda given, x: jax.hessian(given.loss())(x))
_product = jax.jit(lambda given, H, v: given.scale * H.mv(v))
_matrix = jax.jit(lambda given, x: given.scale * given.problem.hessian(x).as_matrix())


class Over(Exception):
    """The gradient is small enough, or time is up."""


class Task:
    """A problem, its start, and what solvers may want of it beyond."""

    def __init__(self, p: Problem, x0: jax.Array) -> None:
        self.problem, self.x0 = p, x0
        self.given = given(p)
        self.tolerance = TOLERANCE * float(self.gradient_norm(x0))

    def gradient_norm(self, x: Any) -> Any:
        """Of the scaled loss."""
        return self.given.scale * jnp.linalg.norm(self.problem.gradient(jnp.asarray(x)))

    def judge(self, x: Any) -> dict[str, Any]:
        """The gradient at x, over that at the start, and whether it will do."""
        size = TOLERANCE * float(self.gradient_norm(x)) / self.tolerance
        return {"gradient": size, "solved": size <= ROUNDING * TOLERANCE}

    def jacobian_too_large(self) -> str | None:
        """Why not, or None."""
        entries = self.problem.shape[0] * self.problem.shape[1]
        return f"a dense Jacobian of {entries:.0e} entries" if entries > JACOBIAN else None

    def hessian_too_large(self) -> str | None:
        """Why not, or None; of ``jax.hessian``."""
        held = self.jax_hessian.memory_analysis().temp_size_in_bytes
        return f"jax.hessian holds {held / 1e9:.0f} GB" if held > MEMORY else None

    @functools.cached_property
    def jax_hessian(self) -> Any:
        """``jax.hessian`` of the loss, compiled."""
        return _hessian.lower(self.given, self.x0).compile()


class Clock:
    """Stops a solver: at the tolerance, when its time is up, or after some steps.

    Remembers where it was.
    """

    def __init__(self, task: Task, seconds: float, steps: int = ENDLESS) -> None:
        self.tolerance, self.seconds, self.steps = task.tolerance, seconds, steps
        self.x, self.count, self.began = task.x0, 0, time.perf_counter()

    def check(self) -> None:
        """Raise if the time is up."""
        if time.perf_counter() - self.began > self.seconds:
            raise Over

    def tick(self, x: Any, norm: Any, count: int = 1) -> None:
        """Raise if the gradient at x, of this norm, will do, or if it was the last of what is
        allowed.
        """
        self.x, self.count = x, self.count + count
        if float(norm) <= self.tolerance or self.count >= self.steps:
            raise Over
        self.check()


class Watched:
    """The functions of a problem as SciPy calls them."""

    def __init__(self, task: Task, clock: Clock) -> None:
        self.task, self.given, self.clock = task, task.given, clock
        self.at, self.operator = None, None

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """In closed form."""
        value, gradient = map(np.asarray, _value_and_gradient(self.given, jnp.asarray(x)))
        self.clock.tick(x.copy(), np.linalg.norm(gradient))
        return float(value), gradient

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """With the Hessian, which is kept as long as x is the same."""
        self.clock.check()
        if self.at is None or not np.array_equal(x, self.at):
            self.at, self.operator = x.copy(), self.task.problem.hessian(jnp.asarray(x))
        return np.asarray(_product(self.given, self.operator, jnp.asarray(v)))

    def jax_hessian(self, x: np.ndarray) -> np.ndarray:
        """By automatic differentiation."""
        self.clock.check()
        return np.asarray(self.task.jax_hessian(self.given, jnp.asarray(x)))

    def our_hessian(self, x: np.ndarray) -> np.ndarray:
        """In closed form."""
        self.clock.check()
        return np.asarray(_matrix(self.given, jnp.asarray(x)))

    def residual(self, x: np.ndarray) -> np.ndarray:
        """That of least squares."""
        self.clock.check()
        return np.asarray(_residual(self.given, jnp.asarray(x)))

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """Of the residual."""
        self.clock.tick(x.copy(), self.task.gradient_norm(x))
        return np.asarray(_jacobian(self.given, jnp.asarray(x)))

"""Random arguments: small, cheap and hard, all from one seeded generator."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SETTINGS = (("float32", False), ("float32", False), ("float64", True), ("float32", True))
"""Precision of the arguments, and whether JAX works with 64 bits."""


class Draw:
    """The randomness of one case.

    Attributes:
        dtype: "float32" or "float64", of the arguments.
        x64: whether JAX works with 64 bits.
        mild: ordinary numbers of order one: the case is about something else.
        n, d, k, m: points, features, outputs, width; few different ones, so that little is
            compiled.
    """

    def __init__(
        self, generator: np.random.Generator, *, mild: bool = False, setting: int | None = None
    ) -> None:
        """Draw the precision, unless a setting is given: then there are four points, too, and one
        program will do.
        """
        self.generator = generator
        self.mild = mild
        drawn = int(generator.integers(len(SETTINGS)))
        self.dtype, self.x64 = SETTINGS[0 if mild else drawn if setting is None else setting]
        many = generator.random() < 0.85
        self.n = 4 if mild or many or setting is not None else 1
        self.d = 3
        self.k = 2
        self.m = 8

    # --- plain numbers

    def random(self) -> float:
        """Return a number in [0, 1)."""
        return float(self.generator.random())

    def integers(self, low: int, high: int | None = None) -> int:
        """Return an integer, as NumPy's generator does."""
        return int(self.generator.integers(low, high))

    def pick(self, *options: Any) -> Any:
        """Return one of the options."""
        return options[self.integers(len(options))]

    def chance(self, probability: float) -> bool:
        """Return True with this probability, and never in a mild case."""
        return not self.mild and self.random() < probability

    def scale(self, decades: float | None = None) -> float:
        """Return a unit: one, or a power of ten whose square is (for ``decades`` up to 15)
        representable.
        """
        if self.mild or self.random() < 0.4:
            return 1.0
        limit = (15.0 if self.dtype == "float32" else 100.0) if decades is None else decades
        return float(10.0 ** self.generator.uniform(-limit, limit))

    def positive(self, low: float = 0.1, high: float = 10.0) -> float:
        """Return a positive number, uniform in its logarithm."""
        return float(np.exp(self.generator.uniform(np.log(low), np.log(high))))

    # --- arrays

    def cast(self, x: Any) -> Any:
        """Return numbers in the precision of the case, as a JAX array or, sometimes, a NumPy array."""
        array = np.asarray(x, self.dtype)
        return array if self.chance(0.25) else jnp.asarray(array)

    def normal(self, *shape: int) -> np.ndarray:
        """Return normal numbers in float64, rounded to the precision of the case."""
        return self.generator.normal(size=shape).astype(self.dtype).astype(np.float64)

    def points(
        self, n: int | None = None, d: int | None = None, scale: float | None = None
    ) -> np.ndarray:
        """Return points [n, d] in float64: ordinary, zero, repeated, nearly equal, on a line, of
        any unit.
        """
        n, d = self.n if n is None else n, self.d if d is None else d
        x = self.normal(n, d)
        if not self.mild:
            kind = self.pick(
                "plain", "plain", "zero row", "repeated", "near", "line", "zeros", "spread"
            )
            if kind == "zero row":
                x[-1] = 0
            elif kind == "repeated":
                x[-1] = x[0]
            elif kind == "near":
                x[-1] = x[0] * (1 + 4 * np.finfo(self.dtype).eps)
            elif kind == "line":
                x = np.outer(x[:, 0], x[0])
            elif kind == "zeros":
                x = np.zeros_like(x)
            elif kind == "spread":
                x = x * 10.0 ** self.generator.integers(-6, 3, size=(n, 1))
        return self.rounded(x * (self.scale() if scale is None else scale))

    def gram(self, n: int | None = None, scale: float | None = None) -> np.ndarray:
        """Return a positive semidefinite matrix in float64: full, of low rank, a multiple of one,
        zero, of any unit.
        """
        n = self.n if n is None else n
        kind = (
            self.pick("full", "full", "full", "low rank", "identity", "zero", "diagonal")
            if not self.mild
            else "full"
        )
        factor = self.normal(n, n)
        matrix = factor @ factor.T / n + 0.1 * np.eye(n)
        if kind == "low rank":
            matrix = np.outer(factor[0], factor[0])
        elif kind == "identity":
            matrix = np.eye(n)
        elif kind == "zero":
            matrix = np.zeros((n, n))
        elif kind == "diagonal":
            matrix = np.diag(10.0 ** self.generator.uniform(-6, 2, size=n))
        return self.rounded(matrix * (self.scale() if scale is None else scale))

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """Return numbers that the precision of the case represents, in float64."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(x, self.dtype).astype(np.float64)

    def key(self) -> Any:
        """Return a random key."""
        return jax.random.key(self.integers(3))

    @property
    def eps(self) -> float:
        """The unit of rounding."""
        return float(np.finfo(self.dtype).eps)

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return float(np.finfo(self.dtype).tiny)

    @property
    def largest(self) -> float:
        """The largest number."""
        return float(np.finfo(self.dtype).max)

r"""The kernel of an estimator: chosen by its arguments, and evaluated on weighted points.

| symbol | meaning | shape |
|---|---|---|
| x, √s | points, and roots of their weights | [n, d], [n] |
| x̃ | weighted points, (x, √s) | [n, d + 1] |
| k̃(x̃, x̃') | √s k(x, x') √s' | |

With the kernel of weighted points the ridge regression with weights s,

    α = (K + λ S⁻¹)⁻¹ y = S^½ (S^½ K S^½ + λ)⁻¹ S^½ y,

is one without weights, and points of weight zero, by which data are filled up, count for nothing.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from softntk import networks, ntk
from softntk._core.validation import check_choice, check_flag, check_positive
from softntk.ntk import GramOperator
from softntk.sklearn._padding import MIN_FEATURES, pad_columns, padded_size

KINDS = ("ntk", "nngp")
# The kernels of infinite width do not depend on the width that a network is given.
ANY_WIDTH = 2


class Kernel(abc.ABC):
    """A kernel that is ready to be evaluated, on NumPy arrays of points [n, d]."""

    @abc.abstractmethod
    def precision(self, x: np.ndarray) -> np.dtype:
        """Return the precision in which the kernel at x is computed."""

    @abc.abstractmethod
    def operator(self, x: np.ndarray, roots: np.ndarray) -> GramOperator:
        """Return the kernel of weighted points as an operator on [n] or [n, k]."""

    @abc.abstractmethod
    def weighted_points(self, x: np.ndarray, roots: np.ndarray) -> np.ndarray:
        """Return x̃, as the operator takes them at other points."""

    @abc.abstractmethod
    def outputs_at_start(self, x: np.ndarray) -> np.ndarray:
        """Return F(x) before training, [n, k], or [n, 1] for all targets."""


@dataclass(frozen=True)
class _WeightedKernel:
    """A kernel function of weighted points.

    Two of them with equal parts are equal, so that the programs of one serve the other.

    Attributes:
        kernel_fn: ``(x1, x2) -> [n1, n2]``, or with a third argument ``get``.
        get: "ntk" or "nngp"; None for functions of two arguments.
    """

    kernel_fn: Callable
    get: str | None

    def __call__(self, x1: Array, x2: Array) -> Array:
        kinds = () if self.get is None else (self.get,)
        kernel = self.kernel_fn(x1[:, :-1], x2[:, :-1], *kinds)
        return x1[:, -1:] * kernel * x2[None, :, -1]


@dataclass(frozen=True)
class FunctionKernel(Kernel):
    """The kernel of a network of infinite width, or a function of the user.

    Attributes:
        kernel_fn: of weighted points.
    """

    kernel_fn: _WeightedKernel

    def precision(self, x: np.ndarray) -> np.dtype:
        """Return the precision of x."""
        return x.dtype

    def weighted_points(self, x: np.ndarray, roots: np.ndarray) -> np.ndarray:
        """Return (x, √s)."""
        return np.column_stack([x, roots.astype(x.dtype)])

    def operator(self, x: np.ndarray, roots: np.ndarray) -> GramOperator:
        """Return the operator on [n]."""
        return ntk.kernel_operator(self.kernel_fn, self.weighted_points(x, roots))

    def outputs_at_start(self, x: np.ndarray) -> np.ndarray:
        """Return zeros, [n, 1]."""
        return np.zeros((len(x), 1), x.dtype)


@dataclass(frozen=True)
class NamedKernel(FunctionKernel):
    """The kernel of a two-layer network of a named family.

    The standard deviation σ is a factor of the points, and the bias a feature: so both may change
    without anything being compiled again. The NTK is then σ² times that of ``two_layer``.

    Attributes:
        kernel_fn: of weighted points, for σ = 1 and without a bias.
        sigma: σ.
        bias: whether there is a bias.
    """

    sigma: float
    bias: bool

    def weighted_points(self, x: np.ndarray, roots: np.ndarray) -> np.ndarray:
        """Return (σx, σ, 0 …, √s)."""
        points = np.column_stack([x, np.ones((len(x), int(self.bias)), x.dtype)])
        points = x.dtype.type(self.sigma) * points
        points = pad_columns(points, padded_size(points.shape[1], MIN_FEATURES))
        return np.column_stack([points, roots.astype(x.dtype)])


@dataclass(frozen=True)
class _WeightedOutputs:
    """The function of a network, multiplied by the roots of the weights.

    Attributes:
        apply_fn: ``(params, x) -> [n, k]`` or [n].
    """

    apply_fn: Callable

    def __call__(self, params: Any, x: Array) -> Array:
        outputs = self.apply_fn(params, x[:, :-1])
        return outputs * x[:, -1].reshape(-1, *(1,) * (jnp.ndim(outputs) - 1))


@dataclass(frozen=True, eq=False)
class EmpiricalKernel(Kernel):
    """The empirical NTK of a network at its weights.

    Attributes:
        apply_fn: ``(params, x) -> [n, k]`` or [n].
        params: the weights.
        dtype: their precision, in which the kernel is computed.
    """

    apply_fn: Callable
    params: Any
    dtype: np.dtype

    def precision(self, x: np.ndarray) -> np.dtype:  # noqa: ARG002
        """Return the precision of the weights."""
        return self.dtype

    def weighted_points(self, x: np.ndarray, roots: np.ndarray) -> np.ndarray:
        """Return (x, √s) in the precision of the weights."""
        return np.column_stack([x, roots]).astype(self.dtype)

    def operator(self, x: np.ndarray, roots: np.ndarray) -> GramOperator:
        """Return the operator on [n, k]."""
        function = _WeightedOutputs(self.apply_fn)
        return ntk.operator(function, self.params, self.weighted_points(x, roots))

    def outputs_at_start(self, x: np.ndarray) -> np.ndarray:
        """Return F(x), [n, k]."""
        outputs = self.apply_fn(self.params, jnp.asarray(x, self.dtype))
        return np.asarray(outputs).reshape(len(x), -1)


def choose_kernel(
    kernel: Any, params: Any, get: Any, sigma: Any, bias: Any, mean_square: float
) -> Kernel:
    """Return the kernel that the arguments of an estimator describe.

    Args:
        kernel: the name of a family, a triple of functions, or a function.
        params: weights, for the empirical kernel; None for infinite width.
        get: "ntk" or "nngp".
        sigma: a number, or "scale".
        bias: whether a named network has a bias.
        mean_square: the mean of ‖x‖² over the training points.

    Raises:
        ValueError: a name, or a combination, that means nothing.
    """
    # 1. Check what does not depend on the kind of kernel.
    get = check_choice("get", get, KINDS)
    bias = check_flag("bias", bias)
    is_scaled = isinstance(sigma, str)
    if is_scaled:
        check_choice("sigma", sigma, ("scale",))
    else:
        sigma = check_positive("sigma", sigma)

    # 2. A name: a network of infinite width.
    if isinstance(kernel, str):
        if is_scaled:
            sigma = _scaled_sigma(mean_square + bias)
        return _named_kernel(kernel, params, get, float(sigma), bias)

    # 3. Functions: they bring σ and bias with them.
    if not is_scaled or not bias:
        raise ValueError(
            "sigma and bias are for kernels given by name; a network or function has its own. "
            'Leave sigma="scale" and bias=True.'
        )
    apply_fn, kernel_fn = _as_functions(kernel)
    if params is not None:
        return _empirical_kernel(apply_fn, params, get)
    takes_get = kernel_fn is not kernel
    return FunctionKernel(_WeightedKernel(kernel_fn, get if takes_get else None))


def _named_kernel(name: str, params: Any, get: str, sigma: float, bias: bool) -> NamedKernel:
    """Return the kernel of a family of two-layer networks."""
    check_choice("kernel", name, networks.FAMILIES)
    if params is not None:
        raise ValueError(
            "params must be None where kernel is a name, whose kernel is that of infinite width. "
            "Pass kernel=networks.two_layer(…) with its params."
        )
    kernel_fn = networks.two_layer(name, width=ANY_WIDTH).kernel_fn
    return NamedKernel(_WeightedKernel(kernel_fn, get), sigma, bias)


def _as_functions(kernel: Any) -> tuple[Callable, Callable]:
    """Return apply_fn and kernel_fn of a triple; a function stands for either."""
    if isinstance(kernel, tuple) and len(kernel) == 3 and all(map(callable, kernel)):
        return kernel[1], kernel[2]
    if isinstance(kernel, type) or not callable(kernel):
        raise ValueError(
            f"kernel must be one of {sorted(networks.FAMILIES)}, a triple (init_fn, apply_fn, "
            "kernel_fn), a function (x1, x2) -> [n1, n2], or an apply_fn(params, x) with params=, "
            f"got {type(kernel).__name__}."
        )
    return kernel, kernel


def _scaled_sigma(mean_square: float) -> float:
    """Return the σ by which the mean of the squares becomes one."""
    return mean_square**-0.5 if mean_square > 0 else 1.0


def _empirical_kernel(apply_fn: Callable, params: Any, get: str) -> EmpiricalKernel:
    """Return the kernel of a function at its weights, in their widest precision."""
    if get != "ntk":
        raise ValueError('get must be "ntk" with params, whose kernel is the empirical NTK.')
    leaves = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype")]
    is_double = any(leaf.dtype == np.float64 for leaf in leaves)
    return EmpiricalKernel(apply_fn, params, np.dtype(np.float64 if is_double else np.float32))

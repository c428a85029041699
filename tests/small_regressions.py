"""A small regression, and one update of a transform on it."""

from typing import Any

import numpy as np

import softntk as sn


def regression(
    dtype="float64",
    *,
    n=12,
    d=3,
    weights=0.3,
    seed=0,
    scale=1.0,
    form="normalized",
    activation="exp",
):
    """Its Hessian is indefinite at points that are far from zero, unless the weights are large."""
    rng = np.random.default_rng(seed)
    A, b = scale * rng.normal(size=(n, d)), rng.dirichlet(np.ones(n))
    return sn.regression.problem(A.astype(dtype), b.astype(dtype), activation, form, weights)


def after(tx: Any, p: Any, state: Any, x: Any, **extra: Any) -> tuple[Any, Any]:
    """Return the update at x, and the state after it."""
    value, grad = p.value_and_gradient(x)
    return tx.update(grad, state, x, value=value, grad=grad, value_fn=p, **extra)

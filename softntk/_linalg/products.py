"""Matrix products in full precision, also on a GPU or TPU, whose default precision is lower."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

product: Callable[..., Array] = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
"""Return A B in the precision of its factors."""

"""Products of matrices in full precision, whatever a GPU or TPU takes by default."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

product: Callable[..., Array] = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
"""A B, in the precision of its factors."""

"""Scalar activations u with their derivatives and Gaussian moments: the object under every network
and regression.

An :class:`Activation` answers two questions, both in a form that does not overflow:

- ``jet(z, c)`` is ``e^{-c} (u, u', u'')`` at z, for a shift c that ``log_scale(z)`` proposes, one
  number a row. In a normalized quantity such as ``u / 1ᵀu`` the shift cancels, so logits of ±1e4
  are harmless.
- ``moments`` are Gaussian expectations times ``e^{-s}``, for a shift s that ``growth(q)`` proposes:
  in the ratios that the infinite limit of a normalized network consists of it cancels, and they
  stay finite.

``ACTIVATIONS`` is the table of them; a new activation is one entry, and everything in softntk works
for it.

Example:
    >>> import jax.numpy as jnp
    >>> from softntk import activations
    >>> res_exp = activations.get("res_exp")
    >>> float(res_exp.u(jnp.zeros(()))), float(res_exp.du(jnp.zeros(())))
    (1.0, 2.0)
    >>> swish = activations.from_function(lambda z: z / (1 + jnp.exp(-z)), "swish")
    >>> round(float(swish.moments.mean(jnp.ones(()), 0.0)), 4)  # E[swish(g)], g ~ N(0, 1), by quadrature
    0.2066
"""

from softntk.activations._activation import Activation as Activation
from softntk.activations._enclosures import SUPREMA as SUPREMA
from softntk.activations._moments import Moments as Moments
from softntk.activations._moments import chain as chain
from softntk.activations._moments import infinite_limit as infinite_limit
from softntk.activations._moments import quadrature_moments as quadrature_moments
from softntk.activations._normalize import normaliser_is_resolved as normaliser_is_resolved
from softntk.activations._normalize import normalize as normalize
from softntk.activations._table import ACTIVATIONS as ACTIVATIONS
from softntk.activations._table import crrelu as crrelu
from softntk.activations._table import from_function as from_function
from softntk.activations._table import get as get

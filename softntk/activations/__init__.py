"""Scalar activations u with derivatives and Gaussian moments, under every network and regression.

An :class:`Activation` has three parts, none of which overflows:

- ``jet(z, c)`` is ``e^{-c} (u, u', u'')`` at z, for a shift c that ``log_scale(z)`` proposes, one
  number for each row. In a normalized quantity such as ``u / 1ᵀu`` the shift cancels, so logits of
  ±1e4 are harmless.
- ``moments`` are Gaussian expectations times ``e^{-s}``, for a shift s that ``growth(q)`` proposes.
  The infinite limit of a normalized network consists of their ratios, in which the shift cancels,
  so they stay finite.
- ``enclosure`` is what is proved about u and three derivatives on intervals, from which
  certificates and bounds are made.

``ACTIVATIONS`` is the table of them. A new activation is one entry in it, and kernels, regressions,
certificates, denoisers and layers then take it by name.

Example:
    >>> import jax.numpy as jnp
    >>> from softntk import activations
    >>> res_exp = activations.get("res_exp")
    >>> float(res_exp.u(jnp.zeros(()))), float(res_exp.du(jnp.zeros(())))
    (1.0, 2.0)
    >>> swish = activations.from_function(lambda z: z / (1 + jnp.exp(-z)), "swish")
    >>> round(float(swish.moments.mean(jnp.ones(()), 0.0)), 4)  # E[swish(g)] by quadrature
    0.2066
"""

from softntk.activations._activation import Activation as Activation
from softntk.activations._crrelu import crrelu as crrelu
from softntk.activations._enclosures import Enclosure as Enclosure
from softntk.activations._enclosures import HostJet as HostJet
from softntk.activations._from_function import from_function as from_function
from softntk.activations._moments import Moments as Moments
from softntk.activations._moments import chain as chain
from softntk.activations._moments import infinite_limit as infinite_limit
from softntk.activations._normalize import normaliser_is_resolved as normaliser_is_resolved
from softntk.activations._normalize import normalize as normalize
from softntk.activations._quadrature import quadrature_moments as quadrature_moments
from softntk.activations._table import ACTIVATIONS as ACTIVATIONS
from softntk.activations._table import SUPREMA as SUPREMA
from softntk.activations._table import get as get
from softntk.activations._table import missing_enclosure_reason as missing_enclosure_reason

"""When a preconditioner of conjugate gradients is computed, and computed again."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from softntk._core.typing import Params
from softntk._core.validation import check_callable
from softntk.solvers._newton.curvature_model import Options, Preconditioner
from softntk.solvers._newton.state import NewtonState

# Products of a step after which its preconditioner is computed anew.
PRODUCTS_BEFORE_REFRESH = 8


def check_preconditioner(
    preconditioner: Any, sketch_size: int | None, cg_steps: int | None
) -> Preconditioner | None:
    """Return a function, or None; raise ValueError where there is nothing to precondition."""
    if preconditioner is None:
        return None
    if cg_steps is None or sketch_size is not None:
        raise ValueError(
            "preconditioner is that of conjugate gradients: give cg_steps, and no sketch_size, "
            f"whose sample is one itself; got cg_steps={cg_steps}, sketch_size={sketch_size}."
        )
    return check_callable("preconditioner", preconditioner)


def refresh_preconditioner(options: Options, state: NewtonState, params: Params) -> NewtonState:
    """Return the state with a new preconditioner if the last step took many products."""
    compute = options.preconditioner
    if compute is None:
        return state

    def refresh() -> Any:
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, state.preconditioner)
        return jax.tree.map(jnp.asarray, compute(params, state.preconditioner), dtypes)

    limit = getattr(state.preconditioner, "refresh_above", PRODUCTS_BEFORE_REFRESH)
    is_slow = state.last_products > limit
    preconditioner = lax.cond(is_slow, refresh, lambda: state.preconditioner)
    return state._replace(preconditioner=preconditioner)

"""Whether a run approaches a minimiser at infinity, of problems that can prove it."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from softntk.solution import Result
from softntk.solvers._minimise.loop_state import Loss, Params

# Results of runs that may have gone towards infinity.
_INCONCLUSIVE_RESULTS = (
    Result.SUCCESSFUL,
    Result.MAX_STEPS,
    Result.STAGNATED,
    Result.NO_STEP,
    Result.PLATEAU,
)


def with_recession(
    problem: Loss, start: Params, x: Params, result: Int[Array, ""]
) -> Int[Array, ""]:
    """Return the result, MINIMUM_AT_INFINITY where the problem proves that it has no minimiser."""
    if not hasattr(problem, "lacks_minimiser"):
        return result
    falls_forever = problem.lacks_minimiser(x, start)
    is_inconclusive = jnp.isin(result, jnp.asarray(_INCONCLUSIVE_RESULTS))
    code = jnp.where(falls_forever & is_inconclusive, Result.MINIMUM_AT_INFINITY, result)
    return code.astype(jnp.int32)

"""What an approximate Newton transform remembers from step to step."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from softntk.solvers._newton.row_sampler import Sampler


class NewtonState(NamedTuple):
    """What an approximate Newton transform remembers, and tells.

    Attributes:
        count: updates so far.
        damping: the radius of the trust region or the parameter μ; zero where there is none.
        kind: what the last update was, a :class:`softntk.solvers.Step`.
        negative_curvature: whether the last curvature had a negative eigenvalue, beyond rounding.
        smallest_curvature: the smallest it looked at, in the metric; zero where it did not look.
        distortion: the measured ε of the sample; zero for exact curvature.
        sample_size: rows of the last sample; zero without one.
        conjugate_gradient_steps: in all.
        evaluations: of ``value_fn``, in all.
        gradient_norm: of the last updates that came in.
        result: a :class:`softntk.solution.Result`; STEP_CHANGED if what comes behind a damped step
            did not take it as it was.
        proposed: where the last damped step leads, flattened, and its length: to see that.
        sampler: of the rows; None without a sample.
    """

    count: Int[Array, ""]
    damping: Float[Array, ""]
    kind: Int[Array, ""]
    negative_curvature: Bool[Array, ""]
    smallest_curvature: Float[Array, ""]
    distortion: Float[Array, ""]
    sample_size: Int[Array, ""]
    conjugate_gradient_steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    gradient_norm: Float[Array, ""]
    result: Int[Array, ""]
    proposed: tuple[Float[Array, " d"], Float[Array, ""]] | None
    sampler: Sampler | None

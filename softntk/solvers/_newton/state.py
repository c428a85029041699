"""The state of an approximate Newton transform."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from softntk.solvers._diagnostics import StepDiagnostics, diagnostics_property
from softntk.solvers._newton.row_sampler import Sampler


class NewtonState(NamedTuple):
    """State of an approximate Newton transform.

    Attributes:
        count: number of updates.
        smallest_curvature: the smallest eigenvalue of the curvature in the metric; zero where it
            was not computed.
        sample_size: rows of the last sample; zero without a sample.
        conjugate_gradient_steps: number of products with the curvature over all updates.
        evaluations: number of evaluations of ``value_fn`` over all updates.
        gradient_norm: norm of the last incoming updates.
        diagnostics: what ``minimise`` reads, a :class:`softntk.solvers.StepDiagnostics`. Its
            ``result`` is STEP_CHANGED if a later transform of the chain changed a damped step. Its
            fields are attributes of the state as well, ``model_error`` under the name
            ``distortion``.
        proposed: the end of the last damped step, flattened, and the length of the step; the next
            update compares it with the params that it gets. None without damping.
        sampler: the sampler of rows; None without a sample.
        preconditioner: of the conjugate gradients, as the function ``preconditioner`` returned it
            last; None without one.
        last_products: products of the last step, which decide whether it is computed anew.
    """

    count: Int[Array, ""]
    smallest_curvature: Float[Array, ""]
    sample_size: Int[Array, ""]
    conjugate_gradient_steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    gradient_norm: Float[Array, ""]
    diagnostics: StepDiagnostics
    proposed: tuple[Float[Array, " d"], Float[Array, ""]] | None
    sampler: Sampler | None
    preconditioner: Any | None
    last_products: Int[Array, ""]

    kind = diagnostics_property("kind", "Kind of the last update, a :class:`softntk.solvers.Step`.")
    result = diagnostics_property("result", "Result code, a :class:`softntk.solution.Result`.")
    damping = diagnostics_property("damping", "Trust-region radius or μ; zero without damping.")
    negative_curvature = diagnostics_property(
        "negative_curvature",
        "True where the last curvature had a negative eigenvalue, beyond rounding.",
    )
    distortion = diagnostics_property(
        "model_error", "Measured ε of the sample; zero for exact curvature."
    )

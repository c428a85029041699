"""The state of an approximate Newton transform."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from softntk.solvers._diagnostics import StepDiagnostics
from softntk.solvers._newton.row_sampler import Sampler


class NewtonState(NamedTuple):
    """State of an approximate Newton transform.

    Attributes:
        count: number of updates.
        smallest_curvature: the smallest eigenvalue of the curvature in the metric; zero where it
            was not computed.
        sample_size: rows of the last sample; zero without a sample.
        conjugate_gradient_steps: products with the curvature, in all.
        evaluations: evaluations of ``value_fn``, in all.
        gradient_norm: norm of the last incoming updates.
        diagnostics: what ``minimise`` reads, a :class:`softntk.solvers.StepDiagnostics`; its
            ``result`` is STEP_CHANGED if a transform behind a damped step changed it. Its fields
            are attributes of the state as well, ``model_error`` under the name ``distortion``.
        proposed: the point that the last damped step leads to, flattened, and the length of the
            step; the next update compares it with the params that it gets. None without damping.
        sampler: the sampler of rows; None without a sample.
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

    @property
    def kind(self) -> Int[Array, ""]:
        """Kind of the last update, a :class:`softntk.solvers.Step`."""
        return self.diagnostics.kind

    @property
    def result(self) -> Int[Array, ""]:
        """Result code, a :class:`softntk.solution.Result`."""
        return self.diagnostics.result

    @property
    def damping(self) -> Float[Array, ""]:
        """Trust-region radius or μ; zero without damping."""
        return self.diagnostics.damping

    @property
    def negative_curvature(self) -> Bool[Array, ""]:
        """True where the last curvature had a negative eigenvalue, beyond rounding."""
        return self.diagnostics.negative_curvature

    @property
    def distortion(self) -> Float[Array, ""]:
        """Measured ε of the sample; zero for exact curvature."""
        return self.diagnostics.model_error

"""diffrax, an optional dependency, and a controller of its steps that leaves no host callback."""

import functools
from typing import Any

FIRST_STEP_DIVISOR = 50
"""The first step is the whole interval divided by this number."""


def diffrax() -> Any:
    """Return the module diffrax.

    Raises:
        ImportError: it is not installed; the message says how.
    """
    try:
        import diffrax as module
    except ImportError as error:
        raise ImportError(
            "Differential equations need diffrax: pip install 'softntk[diffusion]'."
        ) from error
    return module


@functools.cache
def step_controller() -> Any:
    """Return the class of step size controllers whose first step is a part of the interval.

    The length of the first step can also be an argument of ``diffeqsolve``. That puts a check of
    its sign into the program, as a callback to the host, and such a program cannot be exported.
    """

    class StepController(diffrax().PIDController):
        def init(self, terms: Any, t0: Any, t1: Any, y0: Any, _: Any, *rest: Any) -> Any:
            # diffrax reverses time where t1 is less than t0, so that the step is positive here.
            return super().init(terms, t0, t1, y0, (t1 - t0) / FIRST_STEP_DIVISOR, *rest)

    return StepController

"""What every test gets: run-time type checks on softntk, both precisions, no silent rank promotion."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before SciPy loads its linear algebra: two workers with two threads each wait for one another, and
# a factorisation then takes ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.monitoring
import jaxtyping
import pytest
from jaxtyping import install_import_hook

# Before the first import of softntk: from here on every annotated function checks shapes and dtypes
# as it is called.
with install_import_hook("softntk", "beartype.beartype"):
    import softntk  # noqa: F401
    from softntk import nt  # noqa: F401

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--every N``: one test in N, of every file; for a second Python or JAX."""
    parser.addoption("--every", type=int, default=1, metavar="N", help="run one test in N")


SLOW_CASES = frozenset((Path(__file__).parent / "slow_cases.txt").read_text().split("\n"))
"""Single cases that take seconds, of tests whose other cases do not; whole tests carry the mark
``slow`` themselves.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow cases, and leave out what ``--every`` does not want."""
    for item in items:
        if item.nodeid in SLOW_CASES:
            item.add_marker(pytest.mark.slow)
    items[:] = items[:: config.getoption("--every")]


@pytest.fixture(autouse=True)
def _compile_quickly(request: pytest.FixtureRequest) -> None:
    """Most tests are small programs that take longer to compile than to run;
    ``@pytest.mark.optimised`` is for the others.
    """
    jax.config.update(
        "jax_disable_most_optimizations", request.node.get_closest_marker("optimised") is None
    )


_tests_run = 0


@pytest.fixture(autouse=True)
def _forget_programs_in_time() -> Iterator[None]:
    """Every compiled program holds memory maps, of which Linux gives a process 65,530: before they
    run out all are let go.
    """
    global _tests_run
    yield
    _tests_run += 1
    maps = Path("/proc/self/maps")
    if _tests_run % 10 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test in each precision."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def untyped() -> Iterator[None]:
    """Switch the run-time types off, to meet the errors that users meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Collect an entry for each program that XLA compiles."""
    events: list[str] = []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)

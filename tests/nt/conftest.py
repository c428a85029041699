"""What tests of neural_tangents' own functions need."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def their_rank_promotion() -> Iterator[None]:
    """Let ranks be promoted, as neural_tangents itself does."""
    with jax.numpy_rank_promotion("allow"):
        yield

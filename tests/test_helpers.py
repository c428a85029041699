"""The helpers can fail."""

import numpy as np
import pytest
from helpers import assert_close


def test_assert_close_heeds_its_tolerance():
    assert_close([1.0, 2.0], [1.0, 2.0 + 1e-11])
    assert_close([1.0, 2.0], [1.0, 2.1], rtol=0.1)
    for actual, kwargs in [
        ([1.0, 2.1], {"rtol": 0.01}),
        ([1.0, 2.0 + 1e-9], {}),
        ([1.0, 2.001], {"dtype": "float32"}),
    ]:
        with pytest.raises(AssertionError, match="exceeds"):
            assert_close(actual, [1.0, 2.0], **kwargs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_assert_close_refuses_what_is_not_finite(bad):
    with pytest.raises(AssertionError, match="finite"):
        assert_close([bad], [bad])
    with pytest.raises(AssertionError, match="shapes"):
        assert_close([1.0], [[1.0]])

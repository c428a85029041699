"""Sizes to which data are filled up, so that similar data share their compiled programs."""

import numpy as np

MIN_ROWS = 64
MIN_FEATURES = 8
# Steps between the sizes, relative to the power of two below: an eighth wastes at most 12.5 %.
STEPS_PER_OCTAVE_BITS = 3


def padded_size(count: int, multiple: int) -> int:
    """Return the size to which count rows or features are filled up.

    It is a multiple of an eighth of the power of two below count, and of ``multiple``, itself a
    power of two.
    """
    step = max(multiple, 1 << max(0, count.bit_length() - 1 - STEPS_PER_OCTAVE_BITS))
    return -(-count // step) * step


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Return an array with zeros behind it, until it has so many rows."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))


def pad_columns(array: np.ndarray, columns: int) -> np.ndarray:
    """Return a matrix with zeros beside it, until it has so many columns."""
    return np.pad(array, [(0, 0), (0, columns - array.shape[1])])

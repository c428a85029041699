"""Arguments, values and errors in a line each, for messages about cases."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import softntk

PACKAGE_FOLDER = str(Path(softntk.__file__).parent)


def as_numbers(leaf: Any) -> np.ndarray | None:
    """Return a leaf in float64, or None where it holds no numbers."""
    try:
        array = np.asarray(leaf)
        return (
            array.astype(np.float64)
            if array.dtype.kind in "fiub" or "float" in str(array.dtype)
            else None
        )
    except (TypeError, ValueError):
        return None


def error_text(error: Exception) -> str:
    """Return type, message and place of an error, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(PACKAGE_FOLDER)]
    place = (
        f" <- {Path(own[-1].filename).relative_to(PACKAGE_FOLDER)}:{own[-1].lineno}" if own else ""
    )
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:220]}{place}"


def describe(arguments: Mapping[str, Any]) -> str:
    """Return the arguments in a line."""
    return ", ".join(f"{name}={short(value)}" for name, value in arguments.items())


def short(value: Any) -> str:
    """Return a value in at most 160 characters."""
    array = as_numbers(value) if isinstance(value, np.ndarray | jax.Array) else None
    text = (
        np.array2string(array, precision=6, threshold=12, separator=", ")
        if array is not None
        else repr(value)
    )
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:157]}..."

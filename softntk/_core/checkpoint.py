"""Checkpoints of a run in one npz file.

A new file is written next to the old one and renamed, so that a complete file exists at any time.
A fingerprint in the file says which run it belongs to. It is a hash, to the last bit, of what the
caller chooses: the start, the loss and gradient there, and the first state of the transform, or the
data and the first step.
"""

import hashlib
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

Leaf = jax.Array | np.ndarray | np.number | np.bool_

# Marks the file format; a change of the layout needs a new number.
_FORMAT_NAME = "softntk checkpoint 1"
# Every message about a file that cannot be used ends with this.
_REFUSAL_ADVICE = "It was left as it is; remove it, or name another file."


def _as_numpy(leaf: Leaf) -> np.ndarray:
    """Return a leaf as a NumPy array; a random key as its integers."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _as_storable(leaf: Leaf) -> np.ndarray:
    """Return a leaf in a dtype that npz files support; bfloat16 and similar types as their bits."""
    array = _as_numpy(leaf)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _restore_leaf(data: np.ndarray, leaf: Leaf) -> jax.Array:
    """Return stored data as an array, or random key, of the dtype of ``leaf``."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
    dtype = np.dtype(leaf.dtype)
    return jnp.asarray(data.view(dtype) if dtype.kind == "V" else data)


def fingerprint(tree: PyTree) -> str:
    """Return a hash of the structure, shapes, dtypes and bits of a pytree of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(str(structure).encode())
    for array in map(_as_numpy, leaves):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def foreign_run_message(path: str | os.PathLike) -> str:
    """Return the error message for a checkpoint that belongs to another run."""
    return (
        f"checkpoint {str(path)!r} belongs to another problem, start, precision or transform. "
        f"{_REFUSAL_ADVICE}"
    )


def save(path: str | os.PathLike, tree: PyTree, mark: str) -> None:
    """Write the leaves of a pytree and the fingerprint ``mark`` to a file.

    If the process is killed while writing, the previous file is unharmed.
    """
    path = Path(path)
    unfinished_path = path.with_name(path.name + ".writing")
    arrays = {f"leaf_{i}": _as_storable(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with open(unfinished_path, "wb") as file:
        header = {"format": np.asarray(_FORMAT_NAME), "fingerprint": np.asarray(mark)}
        np.savez(file, **header, **arrays)  # pyright: ignore[reportArgumentType]
        # The data must be on the disk before the rename makes them the checkpoint.
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished_path, path)


def load(path: str | os.PathLike, tree: PyTree, mark: str) -> PyTree | None:
    """Return the saved pytree in the structure of ``tree``, or None if there is no file.

    The first axis of a leaf may have another length than in ``tree``: histories grow. ``mark`` is
    the fingerprint of the run that is to be resumed.

    Raises:
        ValueError: the file is no checkpoint, is damaged, or belongs to another run (the file is
            not changed then); or its directory does not exist.
    """
    # 1. A missing file starts a new run; a missing directory could never be written to.
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be written: there is no directory "
            f"{str(path.parent)!r}."
        )
    if not path.exists():
        return None
    # 2. Read everything, without unpickling objects.
    leaves, structure = jax.tree.flatten(tree)
    try:
        with open(path, "rb") as raw_file, np.load(raw_file, allow_pickle=False) as archive:
            stored = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"checkpoint {str(path)!r} is damaged, or no checkpoint: {error}. {_REFUSAL_ADVICE}"
        ) from error
    # 3. Check the format, then that this is the same run.
    if str(stored.get("format")) != _FORMAT_NAME:
        raise ValueError(
            f"checkpoint {str(path)!r} is no checkpoint of this version of softntk. "
            f"{_REFUSAL_ADVICE}"
        )
    is_same_run = len(stored) == len(leaves) + 2 and str(stored["fingerprint"]) == mark
    is_same_run = is_same_run and all(
        stored[f"leaf_{i}"].shape[1:] == _as_numpy(leaf).shape[1:] for i, leaf in enumerate(leaves)
    )
    if not is_same_run:
        raise ValueError(foreign_run_message(path))
    restored = [_restore_leaf(stored[f"leaf_{i}"], leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, restored)

"""Checkpoints of a run as one npz file: written beside the old one and renamed, so that there is
always a whole one.

A file knows which run it belongs to by a fingerprint: the start, the loss and gradient there, and
the first state of the transform, to the last bit.
"""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_FORMAT = "softntk checkpoint 1"
_ADVICE = "It was left as it is; remove it, or name another file."


def _plain(leaf: Any) -> np.ndarray:
    """A leaf as numbers; a key as what it is made of."""
    return np.asarray(
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )


def _storable(leaf: Any) -> np.ndarray:
    """Return a leaf in a dtype that NumPy's files know: bfloat16 and its like as their bits."""
    plain = _plain(leaf)
    return plain.view(f"u{plain.dtype.itemsize}") if plain.dtype.kind == "V" else plain


def _like(data: np.ndarray, leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
    dtype = np.dtype(leaf.dtype)
    return jnp.asarray(data.view(dtype) if dtype.kind == "V" else data)


def fingerprint(tree: Any) -> str:
    """Of structure, shapes, dtypes and bits."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in map(_plain, leaves):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def foreign(path: str | os.PathLike) -> str:
    """What is said of a checkpoint of another run."""
    return f"checkpoint {str(path)!r} belongs to another problem, start, precision or transform. {_ADVICE}"


def save(path: str | os.PathLike, tree: Any, mark: str) -> None:
    """Write the leaves of a tree; whoever is killed on the way leaves the file that was there
    before.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".writing")
    leaves = {f"leaf_{i}": _storable(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with open(beside, "wb") as file:
        np.savez(file, format=np.asarray(_FORMAT), fingerprint=np.asarray(mark), **leaves)  # pyright: ignore[reportArgumentType]
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load(path: str | os.PathLike, tree: Any, mark: str) -> Any | None:
    """The tree that was saved, in the structure of ``tree``; None if there is no file.

    Raises:
        ValueError: a file that is no checkpoint, is damaged, or belongs to another run. It is left
            as it is. A directory that does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be written: there is no directory {str(path.parent)!r}."
        )
    if not path.exists():
        return None
    leaves, structure = jax.tree.flatten(tree)
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"checkpoint {str(path)!r} is damaged, or no checkpoint: {error}. {_ADVICE}"
        ) from error
    if str(kept.get("format")) != _FORMAT:
        raise ValueError(
            f"checkpoint {str(path)!r} is no checkpoint of this version of softntk. {_ADVICE}"
        )
    fits = len(kept) == len(leaves) + 2 and str(kept["fingerprint"]) == mark
    fits = fits and all(
        kept[f"leaf_{i}"].shape[1:] == _plain(leaf).shape[1:] for i, leaf in enumerate(leaves)
    )
    if not fits:
        raise ValueError(foreign(path))
    return jax.tree.unflatten(
        structure, [_like(kept[f"leaf_{i}"], leaf) for i, leaf in enumerate(leaves)]
    )

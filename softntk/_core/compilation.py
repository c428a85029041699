"""JAX's persistent compilation cache, switched on with one call."""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache


def compilation_cache(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs in a folder, so that the next process does not compile them again.

    Use it in scripts that are started often: XLA takes seconds for programs that run for
    milliseconds. It switches on the persistent cache of JAX, which serves all functions of JAX in
    this process and not those of softntk only; JAX's own threshold of one second, under which
    nothing is kept, is lifted. Call it before the first computation: what was compiled before the
    call is not kept. Delete the folder to start anew.

    Args:
        path: the folder, created if it does not exist. Default: ``softntk/xla`` in the user's cache
            folder, which is ``$XDG_CACHE_HOME`` or ``~/.cache``, on macOS ``~/Library/Caches``, on
            Windows ``%LOCALAPPDATA%``.

    Returns:
        The folder; None where it cannot be written. Then a warning says so, and programs are
        compiled as before.

    Raises:
        TypeError: path is neither a path nor None.

    Example:
        >>> import softntk as sn
        >>> sn.compilation_cache("compiled").name  # doctest: +SKIP
        'compiled'

    Source: https://docs.jax.dev/en/latest/persistent_compilation_cache.html.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path or None, got {type(path).__name__}.")
    folder = _user_cache_folder() / "softntk" / "xla" if path is None else Path(path).expanduser()
    reason = _why_not_writable(folder)
    if reason is not None:
        warnings.warn(
            f"no compilation cache: {folder} cannot be written ({reason}). "
            "Programs are compiled in every process; pass a folder that you can write to as path.",
            stacklevel=2,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # JAX decides once, at its first compilation, whether there is a cache: let it decide again.
    jax_cache.reset_cache()
    return folder


def _user_cache_folder() -> Path:
    """Return the folder in which this system keeps the caches of the user's programs."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    folder = os.environ.get(variable, "")
    return Path(folder) if os.path.isabs(folder) else Path.home() / ".cache"


def _why_not_writable(folder: Path) -> str | None:
    """Make the folder and a file in it; return the error of the system, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__

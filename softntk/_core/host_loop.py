"""A loop on the host over chunks of work on the device: progress, checkpoints, Ctrl-C.

Long runs are programs of a chunk of steps each. Between two chunks the host shows a line, writes a
checkpoint and can be interrupted; each caller says how a chunk is run, and when the run is over.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from jaxtyping import PyTree

from softntk._core import checkpoint as checkpoints
from softntk._core.progress import Progress

State = TypeVar("State")


class ProgressLine(NamedTuple):
    """The line that is shown after each chunk.

    Attributes:
        shown: whether a line is shown at all.
        title: the text in front of it.
        text: the state → the text behind the title.
    """

    shown: bool
    title: str
    text: Callable[[Any], str]


class CheckpointFile(NamedTuple):
    """The file that is written after each chunk.

    Attributes:
        path: where the file is.
        mark: fingerprint of the run, made by :func:`softntk._core.checkpoint.fingerprint`.
        content: the state → the pytree that is saved.
    """

    path: str | os.PathLike
    mark: str
    content: Callable[[Any], PyTree]


def run(
    advance: Callable[[State], State],
    state: State,
    *,
    until: Callable[[State], bool],
    progress: ProgressLine,
    checkpoint: CheckpointFile | None = None,
) -> tuple[State, bool]:
    """Run chunks until the run is over, or Ctrl-C is pressed.

    Args:
        advance: a chunk: the state → the next state. It returns only after the device is done
            (``jax.block_until_ready``), and changes nothing in place, so that an interrupted chunk
            leaves the state before it.
        state: the first state.
        until: the state → whether the run is over. Where that holds for the first state, it is
            returned as it is.
        progress: the line to show.
        checkpoint: the file to write, before the line is shown; None for no file.

    Returns:
        The last complete state, and whether Ctrl-C ended the run.
    """
    progress_line = Progress(progress.shown, progress.title)
    try:
        while not until(state):
            state = advance(state)
            if checkpoint is not None:
                checkpoints.save(checkpoint.path, checkpoint.content(state), checkpoint.mark)
            progress_line.show(progress.text(state))
    except KeyboardInterrupt:
        return state, True
    finally:
        progress_line.close()
    return state, False

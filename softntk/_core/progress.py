"""A line that rich keeps up to date while something long runs, or nothing."""


class Progress:
    """``show`` a text as often as you like, ``close`` at the end."""

    def __init__(self, shown: bool, title: str) -> None:
        self._status, self._title = None, title
        if shown:
            try:
                from rich.console import Console
            except ImportError as error:
                raise ModuleNotFoundError(
                    "progress=True shows its line with rich, which is not installed: pip install rich, or use progress=False."
                ) from error
            self._status = Console().status(title)
            self._status.start()

    def show(self, text: str) -> None:
        """Replace the text."""
        if self._status is not None:
            self._status.update(f"{self._title}: {text}")

    def close(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()

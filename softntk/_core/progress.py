"""A progress line on the terminal during long computations."""


class Progress:
    """A line of text that rich keeps up to date, or nothing if ``shown`` is False.

    Call :meth:`show` as often as needed and :meth:`close` at the end.

    Raises:
        ModuleNotFoundError: the line is to be shown, but rich is not installed.
    """

    def __init__(self, shown: bool, title: str) -> None:
        self._status = None
        self._title = title
        if shown:
            try:
                from rich.console import Console
            except ImportError as error:
                raise ModuleNotFoundError(
                    "progress=True shows its line with rich, which is not installed: "
                    "pip install rich, or use progress=False."
                ) from error
            self._status = Console().status(title)
            self._status.start()

    def show(self, text: str) -> None:
        """Replace the text after the title."""
        if self._status is not None:
            self._status.update(f"{self._title}: {text}")

    def close(self) -> None:
        """Remove the line."""
        if self._status is not None:
            self._status.stop()

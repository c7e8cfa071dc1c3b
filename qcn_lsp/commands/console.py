"""The console on which commands print, and progress on it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_WIDTH = 120  # of a table that goes to a file, a pipe or a log


def make_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or wide enough where there is none.

    It prints text as it is: names of files and models may look like markup or emoji codes.
    """
    console = Console(markup=False, emoji=False, stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console


class Show:
    """Progress on a terminal; a line for each new activity elsewhere."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._task = progress.add_task("", total=100)
        self._last = ""

    def __call__(self, activity: str, percentage: int | None) -> None:
        """Show what is being done, and how much of it is."""
        self._progress.update(self._task, description=activity, completed=percentage or 0)
        if not self._console.is_terminal and activity != self._last:
            self._console.print(activity, highlight=False)
        self._last = activity


@contextmanager
def progress_on(console: Console) -> Iterator[Show]:
    """Show progress on a console while the block runs."""
    activity = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), activity, BarColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with progress:
        yield Show(console, progress)

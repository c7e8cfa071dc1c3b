"""The console on which commands print."""

from rich.console import Console

PLAIN_WIDTH = 120  # of a table that goes to a file, a pipe or a log


def make_console() -> Console:
    """Return a console as wide as the terminal, or wide enough where there is none.

    It prints text as it is: names of files and models may look like markup or emoji codes.
    """
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console

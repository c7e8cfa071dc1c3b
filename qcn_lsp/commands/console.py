"""The console on which commands print."""

from rich.console import Console

PLAIN_WIDTH = 120  # of a table that goes to a file, a pipe or a log


def make_console() -> Console:
    """Return a console as wide as the terminal, or wide enough where there is none."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console

"""The formats in which an overlay could say that a file has changed; each names the newer text."""

import difflib
import io
from collections.abc import Callable
from pathlib import PurePosixPath

from qcn_indexer.blocks import change_text

Format = Callable[[PurePosixPath, str, str], str]  # path, older text, newer text

NO_NEWLINE = "\\ No newline at end of file\n"


def whole_file(path: PurePosixPath, older: str, newer: str) -> str:
    """Return the file as it is now."""
    return newer


def unified_diff(path: PurePosixPath, older: str, newer: str) -> str:
    """Return what `git apply` takes."""
    lines = difflib.unified_diff(_lines(older), _lines(newer), f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}" for line in lines)


def blocks(path: PurePosixPath, older: str, newer: str) -> str:
    """Return original and updated blocks; the whole file where they cannot say it."""
    return change_text(older, newer) or newer


FORMATS: dict[str, Format] = {
    "whole file": whole_file,
    "unified diff": unified_diff,
    "original/updated blocks": blocks,
}


def _lines(text: str) -> list[str]:
    """Lines with their line feeds, which alone end them."""
    return io.StringIO(text, newline="\n").readlines()

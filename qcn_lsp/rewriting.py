r"""A model's new version of a piece of a file: made to fit its place, and judged.

Fitting changes white space alone: the piece's indentation, tabs or spaces as the file has them, its
line ends. A line further out than the piece's first stays where it is: a preprocessor's, or the
inside of a string. What is judged is refused with a sentence, never mended.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from qcn_lsp.positions import line_end, plain, plain_lines
from qcn_lsp.postprocess.context import indentation
from qcn_lsp.postprocess.hidden import hidden_characters, names_of
from qcn_lsp.postprocess.special_tokens import control_tokens
from qcn_lsp.postprocess.whitespace import indent_unit

_ONLY_CLOSES = re.compile(r"[)\]}>;,]+|end\b.*")


class Unacceptable(Exception):  # noqa: N818 - an outcome of judging
    """The new version may not replace the old; str() is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters `start` up to `end` of the text of a file, to be replaced."""

    path: PurePosixPath
    text: str
    start: int
    end: int

    @property
    def old(self) -> str:
        """What stands there now."""
        return self.text[self.start : self.end]

    def with_new(self, new: str) -> str:
        """Return the file's text with `new` in its place."""
        return self.text[: self.start] + new + self.text[self.end :]


def fitted(answer: str, piece: Piece) -> str:
    """Return `answer` as it can stand in the place of `piece`.

    It is indented as the old version is, has the file's line ends, and ends as the old version
    does, with or without a line end.
    """
    lines = plain(answer).strip("\n").rstrip().split("\n")
    old = plain(piece.old)
    unit = indent_unit(plain_lines(piece.text))
    lines = _indented(_with_first_line_in(lines, old), indentation(old), unit)
    end = old[len(old.rstrip("\n")) :]
    ends_of = piece.old if "\n" in old else piece.text
    return ("\n".join(lines) + end).replace("\n", line_end(ends_of))


def judge(new: str, piece: Piece) -> None:
    """Raise `Unacceptable` where `new` may not replace `piece`.

    It may hold no character that a reader does not see and no control token of a model, unless the
    old version has it, and the file's text must be understood by its parser no worse than before.
    """
    from qcn_indexer.enclosing import syntax_errors

    if hidden := hidden_characters(new) - hidden_characters(piece.old):
        raise Unacceptable(f"It holds characters that cannot be seen ({names_of(hidden)}).")
    if control_tokens(new) - control_tokens(piece.old):
        raise Unacceptable("It holds a control token of the model.")
    before = syntax_errors(piece.path, piece.text)
    after = syntax_errors(piece.path, piece.with_new(new))
    if before is not None and after is None:
        raise Unacceptable("The file would be too much for its parser.")
    if before is not None and after is not None and after > before:
        raise Unacceptable("It is not well formed: the file would parse worse than before.")


def _with_first_line_in(lines: list[str], old: str) -> list[str]:
    """Give the first line its indentation back, where it alone was left without.

    A model often begins at the first word; what follows is then indented as it was.
    """
    base, rest = indentation(old), [line for line in lines[1:] if line.strip()]
    if not base or indentation(lines[0]) or not rest:
        return lines
    if not all(line.startswith(base) for line in rest):
        return lines
    closes = _ONLY_CLOSES.fullmatch(rest[-1].strip()) and indentation(rest[-1]) == base
    below = [indentation(line) for line in old.split("\n")[1:] if line.strip()]
    deeper = [indent for indent in below if len(indent) > len(base)]
    as_before = bool(deeper) and all(line.startswith(min(deeper, key=len)) for line in rest)
    return [base + lines[0], *lines[1:]] if closes or as_before else lines


def _indented(lines: list[str], wanted: str, unit: str | None) -> list[str]:
    """Shift all lines by what the first is off, and have their tabs or spaces as the file's."""
    given = indentation(lines[0])
    theirs = indent_unit(lines) or unit
    shifted = []
    for line in lines:
        indent = indentation(line)
        if indent.startswith(given) and line.strip():
            inner = indent[len(given) :]
            if unit and theirs:
                inner = _in_units(inner, theirs, unit)
            line = wanted + inner + line[len(indent) :]
        shifted.append(line)
    return shifted


def _in_units(indent: str, theirs: str, ours: str) -> str:
    """Return an indentation with the file's tabs in the place of spaces, or the other way round."""
    if ours == "\t" and " " in indent and theirs != "\t":
        levels, spare = divmod(len(indent.expandtabs(len(theirs))), len(theirs))
        return "\t" * levels + " " * spare
    if ours != "\t" and "\t" in indent:
        return indent.replace("\t", ours)
    return indent

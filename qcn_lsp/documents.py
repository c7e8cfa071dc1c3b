r"""The open documents, kept in step with the editor.

Purpose
    The editor owns the text of an open document and tells us each change. `DocumentStore`
    applies the changes and hands out immutable snapshots; nothing else in the server holds
    document text.

Guarantees
    - After any sequence of well-formed changes, in any of the three position encodings, the
      store's text is the editor's text, code unit by code unit. In utf-16 this includes edits
      that cut a surrogate pair in two and later ones that join the halves again.
    - Positions are clamped as the specification asks: a column past its line is the line's end,
      a line past the last is the end of the document. A range whose end lies before its start
      is taken from the other side, as Microsoft's own `vscode-languageserver-textdocument` does.
    - A change costs what it touches. The text is a list of lines, as in an editor: finding a
      line is an index, a change re-splits the touched lines and splices the list. The whole
      text is joined (in C) only when a snapshot is asked for, and once per version.
    - A snapshot never changes, and its text is always well formed: lone surrogates, which no
      encoder accepts, are shown as U+FFFD. The length and all positions stay the same.

Failure modes
    - What breaks the protocol without leaving the text in doubt is logged and carried out:
      opening twice, an older version number, a reversed range.
    - A change that cannot be understood at all leaves the text in doubt. The document is then
      *lost*: no snapshot of it is given out, so that no feature speaks about text the user does
      not see, until the client opens it again or sends its whole text.

Rejected: a rope or a piece table over the whole text. It would spare the splice of a pointer
list (some 50 µs for 100,000 lines), at the cost of a line index of its own.
"""

import hashlib
import logging
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from math import inf

from lsprotocol import types

from qcn_lsp.positions import count_units, index_at, split_lines, without_line_end
from qcn_lsp.uris import same_document_key

logger = logging.getLogger(__name__)

_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Document:
    """An immutable snapshot of an open document."""

    uri: str
    language_id: str
    version: int
    text: str
    lines: Sequence[str] | None = field(default=None, repr=False, compare=False)
    """The text cut into lines, where the store has them at hand; otherwise cut when needed."""
    edition: int = field(default=0, repr=False, compare=False)
    """Which of all texts that the store has ever held: a client that opens a document again counts
    its versions anew."""

    def digest(self) -> str:
        """Return what stands for the text, of whatever version."""
        text = self.text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    def offset_at(self, position: types.Position, encoding: types.PositionEncodingKind) -> int:
        """Return the index in `text` of a position, clamped into the text.

        A position inside a character is that character's start. (Negative lines and columns do
        not occur: `types.Position` refuses them.)
        """
        lines = split_lines(self.text) if self.lines is None else self.lines
        if position.line >= len(lines):
            return len(self.text)
        line = without_line_end(lines[position.line])
        index, _ = index_at(line, position.character, encoding)
        return sum(map(len, lines[: position.line])) + index

    def position_at(self, offset: int, encoding: types.PositionEncodingKind) -> types.Position:
        """Return the position of an index in `text`, clamped into the text.

        An index between the two characters of a line end is the place in front of it.
        """
        lines = split_lines(self.text) if self.lines is None else self.lines
        starts = [0, *accumulate(map(len, lines))][:-1]
        offset = min(max(offset, 0), len(self.text))
        number = bisect_right(starts, offset) - 1
        before = without_line_end(lines[number])[: offset - starts[number]]
        return types.Position(line=number, character=count_units(before, encoding))


class DocumentStore:
    """The texts of all open documents, least recently used first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.encoding = types.PositionEncodingKind.Utf16
        """What the client counts columns in; set once, while initializing."""
        self._texts: dict[str, _OpenText] = {}
        self._clock = clock
        self._changed_at: dict[str, float] = {}
        self._editions = count(1)

    def get(self, uri: str) -> Document | None:
        """Return the document as it is now; None when it is not open, or lost."""
        text = self._texts.get(same_document_key(uri))
        return None if text is None or text.lost else text.snapshot()

    def open_documents(self) -> list[Document]:
        """Return all open documents, the most recently opened, changed or focused last."""
        return [text.snapshot() for text in self._texts.values() if not text.lost]

    def quiet_for(self, uri: str) -> float:
        """Return the seconds since a document's last change; infinity where there was none."""
        changed_at = self._changed_at.get(same_document_key(uri))
        return inf if changed_at is None else self._clock() - changed_at

    def open(self, item: types.TextDocumentItem) -> None:
        """Take over a document's text from the editor."""
        key = same_document_key(item.uri)
        if self._texts.pop(key, None):
            logger.warning("%s was opened again; its new text is taken", item.uri)
        self._texts[key] = _OpenText(item, self.encoding, self._editions)

    def change(
        self,
        identifier: types.VersionedTextDocumentIdentifier,
        changes: Sequence[types.TextDocumentContentChangeEvent],
    ) -> None:
        """Apply changes in their order; each one's range refers to the text the last one left."""
        key = same_document_key(identifier.uri)
        text = self._texts.pop(key, None)
        if text is None:
            logger.warning("ignored a change of %s, which is not open", identifier.uri)
            return
        if identifier.version <= text.version:
            # The order of messages is the order of changes, whatever the numbers say.
            logger.warning(
                "%s changed from version %d to %d, which is not newer",
                identifier.uri,
                text.version,
                identifier.version,
            )
        text.apply(changes, identifier.version)
        self._texts[key] = text  # last in the order
        self._changed_at[key] = self._clock()

    def close(self, uri: str) -> None:
        """Give a document's text back to the file system."""
        key = same_document_key(uri)
        self._changed_at.pop(key, None)
        if self._texts.pop(key, None) is None:
            logger.warning("ignored the closing of %s, which is not open", uri)

    def focus(self, uri: str) -> None:
        """Note that the user looks at this document; ignored when it is not open."""
        key = same_document_key(uri)
        if text := self._texts.pop(key, None):
            self._texts[key] = text

    def lose(self, uri: str) -> None:
        """Note that a change of this document could not be understood."""
        text = self._texts.get(same_document_key(uri))
        if text is not None:
            text.lost = True
            logger.error(
                "lost track of %s after a malformed change; "
                "nothing is offered for it until it is opened again",
                uri,
            )


class _OpenText:
    """One document's text as the editor has it, lone surrogates included."""

    def __init__(
        self,
        item: types.TextDocumentItem,
        encoding: types.PositionEncodingKind,
        editions: Iterator[int],
    ) -> None:
        self.uri = item.uri
        self.language_id = item.language_id
        self.version = item.version
        self.lost = False
        self._editions = editions
        self._encoding = encoding
        self._has_surrogates = False
        self._lines: list[str] = []
        self._snapshot: Document | None = None
        self._replace_all(item.text)

    def snapshot(self) -> Document:
        if self._snapshot is None:
            text = "".join(self._lines)
            if self._has_surrogates:
                text = _SURROGATE.sub(_REPLACEMENT, text)
            lines, edition = tuple(self._lines), next(self._editions)
            self._snapshot = Document(
                self.uri, self.language_id, self.version, text, lines, edition
            )
        return self._snapshot

    def apply(self, changes: Sequence[types.TextDocumentContentChangeEvent], version: int) -> None:
        for change in changes:
            if isinstance(change, types.TextDocumentContentChangePartial):
                self._replace(change.range, change.text)
            else:
                self._replace_all(change.text)
                self.lost = False
        self.version = version
        self._snapshot = None

    def _replace_all(self, text: str) -> None:
        self._has_surrogates = False
        self._lines = split_lines(self._admit(text))

    def _replace(self, span: types.Range, new: str) -> None:
        start = self._locate(span.start)
        end = start if span.end == span.start else self._locate(span.end)
        if end < start:
            logger.warning("%s: a change's range ends before it starts; turned round", self.uri)
            start, end = end, start
        first, last = start[0], end[0]
        text = self._up_to(start) + self._admit(new) + self._from(end)
        if self._has_surrogates:  # halves that have come to stand side by side are one character
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if text.startswith("\n") and first > 0 and self._lines[first - 1].endswith("\r"):
            first -= 1  # "\r" ended that line alone; now "\r\n" does
            text = self._lines[first] + text
        lines = split_lines(text)
        if last < len(self._lines) - 1:
            # A line followed this range, so `text` ends in a line end, and the empty line that
            # split_lines sees after it is that following line's start.
            lines.pop()
        self._lines[first : last + 1] = lines

    def _locate(self, position: types.Position) -> tuple[int, int, int]:
        """Return line number, index in the line, and code units into the character there."""
        last = len(self._lines) - 1
        if position.line > last:
            return last, len(self._lines[last]), 0
        line = without_line_end(self._lines[position.line])
        return position.line, *index_at(line, position.character, self._encoding)

    def _up_to(self, place: tuple[int, int, int]) -> str:
        number, index, inside = place
        line = self._lines[number]
        return line[:index] + (self._halves(line[index])[0] if inside else "")

    def _from(self, place: tuple[int, int, int]) -> str:
        number, index, inside = place
        line = self._lines[number]
        return self._halves(line[index])[1] + line[index + 1 :] if inside else line[index:]

    def _halves(self, character: str) -> tuple[str, str]:
        """Cut the character that a place lies inside.

        utf-16 editors can cut a surrogate pair, and then hold its halves. No utf-8 editor can
        send half a sequence through JSON: there the place is the character's start.
        """
        if self._encoding is not types.PositionEncodingKind.Utf16:
            return "", character
        self._has_surrogates = True
        units = character.encode("utf-16-le")
        return (
            units[:2].decode("utf-16-le", "surrogatepass"),
            units[2:].decode("utf-16-le", "surrogatepass"),
        )

    def _admit(self, text: str) -> str:
        """Look for lone surrogates in text from the client; only utf-16 has a place for them."""
        if text.isascii() or not _SURROGATE.search(text):
            return text
        if self._encoding is not types.PositionEncodingKind.Utf16:
            return _SURROGATE.sub(_REPLACEMENT, text)
        self._has_surrogates = True
        return text

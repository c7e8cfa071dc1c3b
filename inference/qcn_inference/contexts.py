"""What the model has been given to read of each repository, by name: layouts, as tokens.

A *context* is an ordered list of *segments*, each a file's text under its path, or a note about it.
It is the front of a prompt: a completion that names a context is read behind it. What of it has
been read already is no concern of this module: `state_cache.py` finds that by the tokens.

A segment is known by its hash, so that a layout travels as hashes and only what is new as text. The
hash is computed here, from path and text: nobody can put another text under it. Everything in a
segment is plain text; the control tokens that open it are placed here.

A context has one of two *dialects*. In front of completions it is the repository format that the
coder models were trained on. In front of chats it is the beginning of ChatML's first turn, as the
checkpoint's template begins it: files as text under their paths, since chat models were not trained
with file separators inside a turn.

Belongs to the event loop's thread; the values are immutable and may go anywhere.
"""

import hashlib
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, Protocol

from qcn_inference.grid import BLOCK
from qcn_inference.request import Refreshed
from qcn_inference.tokenizer import FILE_SEP, IM_START, REPO_NAME, Tokenizer

Zone = Literal["base", "overlay"]
MOST_CONTEXTS = 64
"""Of all windows of the user together; what was used least recently goes first."""
REFRESHES_NOTED = 10
TAIL_ROOM = 16_384
"""Tokens behind a context, for a prompt's own and what is generated; or a quarter, if less."""

CHAT_OPENING = (
    "The repository {repo} as it is now: its files, each below its path. Where two passages "
    "differ, the later one is current.\n"
)
CHAT_HEADER = "\n# File: {path}\n"


def context_limit(context_length: int) -> int:
    """The most tokens that a context may have where the model reads `context_length` in all."""
    return context_length - min(TAIL_ROOM, context_length // 4)


def opening(tokenizer: Tokenizer, repo: str, turn: str | None = None) -> "array[int]":
    """What every context of a repository begins with; for chats behind the `turn` they begin."""
    if turn is not None:
        said = CHAT_OPENING.format(repo=repo or "at hand")
        return array("i", tokenizer.encode_with_control(turn) + tokenizer.encode_plain(said))
    name = tokenizer.encode_plain(repo + "\n")
    return array("i", [tokenizer.control_id(REPO_NAME), *name])


def segment_hash(path: str, text: str) -> str:
    """The name of a segment: SHA-256 of its path, a NUL and its text, hexadecimal."""
    return hashlib.sha256(f"{path}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Segment:
    """A file, or a note about one, as the model reads it."""

    hash: str
    path: str
    ids: "array[int]"
    lines: tuple[tuple[int, int], ...]  # of the text: for each, the span of ids that touch it

    chat: bool = False  # its dialect

    @classmethod
    def of(cls, tokenizer: Tokenizer, path: str, text: str, *, chat: bool = False) -> "Segment":
        """Encode a segment; takes about a second for a megabyte."""
        body = text if text.endswith("\n") or not text else text + "\n"
        if chat:
            header = tokenizer.encode_plain(CHAT_HEADER.format(path=path))
        else:
            header = [tokenizer.control_id(FILE_SEP), *tokenizer.encode_plain(path + "\n")]
        ids = array("i", header + tokenizer.encode_plain(body))
        return cls(segment_hash(path, text), path, ids, _lines(tokenizer, ids, len(header)), chat)


def _lines(tokenizer: Tokenizer, ids: Sequence[int], start: int) -> tuple[tuple[int, int], ...]:
    """For each line that ends in `ids` from `start` on, from where to where it stands in them."""
    lines = []
    for at in range(start, len(ids)):
        piece = tokenizer.token_bytes(ids[at])
        for _ in range(piece.count(b"\n")):
            lines.append((start, at + 1))
            start = at  # more of this token may belong to the next line,
        if piece.endswith(b"\n"):
            start = at + 1  # or none
    return tuple(lines)


class Placed(Protocol):
    """A segment's place in a layout."""

    hash: str
    zone: Zone
    hot: bool

    @property
    def superseded(self) -> Sequence[tuple[int, int]]:
        """Spans of lines of its text that say what is no longer so."""


@dataclass(frozen=True, slots=True)
class Span:
    """A segment in its place: its ids stand from `start` on."""

    segment: Segment
    zone: Zone
    hot: bool
    start: int
    superseded: tuple[tuple[int, int], ...] = ()  # spans of its lines that are no longer so

    @property
    def superseded_ids(self) -> list[tuple[int, int]]:
        """Where the ids stand that are no longer so; lines the text does not have are ignored."""
        lines = self.segment.lines
        return [
            (self.start + lines[first][0], self.start + lines[min(behind, len(lines)) - 1][1])
            for first, behind in self.superseded
            if first < len(lines)
        ]

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.start + len(self.segment.ids)


@dataclass(frozen=True, slots=True)
class Context:
    """One layout, as tokens."""

    id: str
    repo: str
    spans: tuple[Span, ...]
    ids: "array[int]"
    turn: str | None = None  # of a chat, what the template has in front; None for completions
    turn_start: int = 0  # where its last control token stands, from which on blocks are counted

    @property
    def keep(self) -> tuple[int, ...]:
        """Where the next layout may differ from this one: positions worth a checkpoint.

        In front of every file that changes often and of every entry of the overlay, and the end.
        Of a chat, in which no control token ends a block there, the block's beginning.
        """
        places = [span.start for span in self.spans if span.hot or span.zone == "overlay"]
        places.append(len(self.ids))
        if self.turn is None:
            return tuple(places)
        begun = {at - (at - self.turn_start) % BLOCK for at in places}
        return tuple(sorted(begun - {self.turn_start}))

    def superseded(self, current: str) -> tuple[tuple[int, int], ...]:
        """Spans of ids that say what is no longer so, behind which the `current` file is shown.

        Of that file all that stands here: its text behind is the newer one.
        """
        found: list[tuple[int, int]] = []
        for span in self.spans:
            whole = span.segment.path == current
            for start, end in [(span.start, span.end)] if whole else span.superseded_ids:
                if found and start <= found[-1][1]:  # a token may belong to two lines
                    start, end = found.pop()[0], end
                found.append((start, end))
        return tuple(found)


class Contexts:
    """The contexts of all clients."""

    def __init__(self) -> None:
        self._contexts: dict[str, Context] = {}  # least recently used first
        self._segments: dict[tuple[str, bool], Segment] = {}  # those of the contexts
        self._refreshes: dict[str, deque[Refreshed]] = {}
        self._arrivals = count()
        self._newest: dict[str, int] = {}  # the arrival of the layout in force
        self._deleted: dict[str, int] = {}  # when it was; the last of them

    def get(self, name: str) -> Context | None:
        """The newest layout under a name."""
        context = self._contexts.pop(name, None)
        if context is not None:
            self._contexts[name] = context
        return context

    def of_repository(self, repo: str) -> list[str]:
        """The names of the contexts of repositories of this name."""
        return [name for name, context in self._contexts.items() if context.repo == repo]

    def unknown(self, hashes: Sequence[str], *, chat: bool = False) -> set[str]:
        """Those that must come with their text."""
        return {one for one in hashes if (one, chat) not in self._segments}

    def compose(
        self,
        tokenizer: Tokenizer,
        name: str,
        repo: str,
        layout: Sequence[Placed],
        new: Sequence[Segment],
        turn: str | None = None,
    ) -> Context:
        """Lay out segments that are known or among the `new` ones, for chats behind a `turn`."""
        known = self._segments | {(segment.hash, segment.chat): segment for segment in new}
        ids = opening(tokenizer, repo, turn)
        opener = tokenizer.control_id(IM_START)
        turn_start = max((at for at, token in enumerate(ids) if token == opener), default=0)
        spans = []
        for place in layout:
            segment = known[place.hash, turn is not None]
            spans.append(Span(segment, place.zone, place.hot, len(ids), tuple(place.superseded)))
            ids += segment.ids
        return Context(name, repo, tuple(spans), ids, turn, turn_start)

    def arrive(self) -> int:
        """Note that a layout has arrived; of two, the one that arrived later is the newer."""
        return next(self._arrivals)

    def put(self, context: Context, arrival: int) -> bool:
        """Put a layout in force under its name; False if a newer one is, or all was deleted."""
        name = context.id
        if max(self._newest.get(name, -1), self._deleted.get(name, -1)) > arrival:
            return False
        self._newest[context.id] = arrival
        self._contexts.pop(context.id, None)
        self._contexts[context.id] = context
        while len(self._contexts) > MOST_CONTEXTS:
            self.remove(next(iter(self._contexts)))
        self._keep_segments()
        return True

    def remove(self, name: str) -> Context | None:
        """Forget a context; returns what it was."""
        removed = self._contexts.pop(name, None)
        self._refreshes.pop(name, None)
        self._newest.pop(name, None)
        self._keep_segments()
        return removed

    def delete(self, name: str) -> None:
        """Forget a context, and what is on its way to take its place."""
        self.remove(name)
        self._deleted.pop(name, None)
        self._deleted[name] = self.arrive()
        while len(self._deleted) > MOST_CONTEXTS:
            del self._deleted[next(iter(self._deleted))]

    def note(self, name: str, refreshed: Refreshed) -> None:
        """Remember what a refresh cost, if the context is still there."""
        if name in self._contexts:
            self._refreshes.setdefault(name, deque(maxlen=REFRESHES_NOTED)).append(refreshed)

    def refreshes(self, name: str) -> list[Refreshed]:
        """The last refreshes of a context, oldest first."""
        return list(self._refreshes.get(name, ()))

    def _keep_segments(self) -> None:
        self._segments = {
            (span.segment.hash, span.segment.chat): span.segment
            for context in self._contexts.values()
            for span in context.spans
        }

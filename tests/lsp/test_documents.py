r"""The server's copy of a document is the editor's, code unit by code unit.

The model here knows nothing of lines lists or Python strings: a document is a list of code units
of the encoding, an edit replaces units, and a line ends after `\n`, `\r\n` or a `\r` alone.
"""

import json
import random
from collections.abc import Sequence
from math import inf

import pytest
from lsp_wire import notification, session
from lsprotocol import types
from sampling import FULL, count

from qcn_lsp.documents import Document, DocumentStore

UTF8, UTF16, UTF32 = types.PositionEncodingKind
ENCODINGS = [UTF8, UTF16, UTF32]
URI = "file:///model.txt"
CODECS = {UTF8: ("utf-8", 1), UTF16: ("utf-16-le", 2), UTF32: ("utf-32-le", 4)}

Units = list[bytes]


def encode(text: str, encoding: types.PositionEncodingKind) -> Units:
    codec, size = CODECS[encoding]
    data = text.encode(codec, "surrogatepass")
    return [data[i : i + size] for i in range(0, len(data), size)]


def decode(units: Units, encoding: types.PositionEncodingKind) -> str:
    """Return the text as features see it: what no encoder accepts becomes U+FFFD."""
    codec, _ = CODECS[encoding]
    text = b"".join(units).decode(codec, "surrogatepass")
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


class Model:
    """A document as a list of code units."""

    def __init__(self, text: str, encoding: types.PositionEncodingKind) -> None:
        self.encoding = encoding
        self.units = encode(text, encoding)

    @property
    def text(self) -> str:
        return decode(self.units, self.encoding)

    def lines(self) -> list[tuple[int, int]]:
        """Return each line's first unit and the unit after its last, line ends left out."""
        line_feed, carriage_return = encode("\n", self.encoding), encode("\r", self.encoding)
        spans, start, i = [], 0, 0
        while i < len(self.units):
            unit, after = [self.units[i]], self.units[i + 1 : i + 2]
            if unit in (line_feed, carriage_return):
                spans.append((start, i))
                i += 2 if unit == carriage_return and after == line_feed else 1
                start = i
            else:
                i += 1
        return [*spans, (start, len(self.units))]

    def place(self, position: types.Position) -> int:
        """Return the index of the unit a position means, in the words of the specification."""
        lines = self.lines()
        if position.line >= len(lines):
            return len(self.units)
        start, end = lines[position.line]
        place = min(start + position.character, end)
        if self.encoding is UTF8:  # half a sequence cannot be told in JSON: its start
            while place < end and 0x80 <= self.units[place][0] < 0xC0:
                place -= 1
        return place

    def replace(self, span: types.Range, text: str) -> None:
        start, end = sorted((self.place(span.start), self.place(span.end)))
        self.units[start:end] = encode(text, self.encoding)


PIECES = [
    *["\n", "\r", "\r\n", "\f", "\v", "\x1c", "\x85", "\u2028", "\u2029", "\t", " ", "", ""],
    *["a", "word", "é", "ü\n", "漢", "漢字\r\n", "😀", "👩‍🔬", "🇦🇶\r", "e\u0301", "\ufeff", "\0"],
    *["def f():\n    return 1\n", "x = 'ß'\r\ny\r\rz\n\n", "\n\r", "\r\n\r", "no end"],
]
HALVES = ["\ud83d", "\ude00", "\ud83d\n", "a\ude00b"]


def random_text(random_: random.Random, encoding: types.PositionEncodingKind, most: int) -> str:
    pieces = PIECES + HALVES if encoding is UTF16 else PIECES
    text = "".join(random_.choices(pieces, k=random_.randrange(most)))
    # JSON cannot tell two halves side by side from the whole.
    whole: str = json.loads(json.dumps(text))
    return whole


def random_position(random_: random.Random, model: Model) -> types.Position:
    lines = model.lines()
    if random_.random() < 0.05:
        return types.Position(random_.choice([0, len(lines), 2**31 - 1]), 2**31 - 1)
    number = random_.randrange(len(lines))
    start, end = lines[number]
    return types.Position(number, random_.randint(0, end - start + 2))


def random_change(random_: random.Random, model: Model) -> types.TextDocumentContentChangeEvent:
    """Draw an edit, and carry it out on the model."""
    encoding = model.encoding
    if random_.random() < 0.01 or len(model.units) > 2_000:
        text = random_text(random_, encoding, 40)
        model.units = encode(text, encoding)
        return types.TextDocumentContentChangeWholeDocument(text)
    start = random_position(random_, model)
    end = start if random_.random() < 0.4 else random_position(random_, model)
    text = random_text(random_, encoding, 4)
    span = types.Range(start, end)
    model.replace(span, text)
    return types.TextDocumentContentChangePartial(range=span, text=text)


def item(text: str) -> types.TextDocumentItem:
    return types.TextDocumentItem(URI, "plaintext", 1, text)


def opened(text: str, encoding: types.PositionEncodingKind) -> DocumentStore:
    store = DocumentStore()
    store.encoding = encoding
    store.open(item(text))
    return store


def change(
    store: DocumentStore, changes: Sequence[types.TextDocumentContentChangeEvent], version: int = 2
) -> None:
    store.change(types.VersionedTextDocumentIdentifier(version, URI), changes)


def edit(
    start: tuple[int, int], end: tuple[int, int], text: str
) -> types.TextDocumentContentChangePartial:
    span = types.Range(types.Position(*start), types.Position(*end))
    return types.TextDocumentContentChangePartial(range=span, text=text)


def text_of(store: DocumentStore) -> str:
    document = store.get(URI)
    assert document is not None
    return document.text


@pytest.mark.long
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.value)
@pytest.mark.parametrize("seed", range(count(sample=4, full=40)))
def test_random_edits_leave_the_editors_text(
    encoding: types.PositionEncodingKind, seed: int
) -> None:
    random_ = random.Random(f"{encoding} {seed}")
    text = random_text(random_, encoding, 30)
    model, store = Model(text, encoding), opened(text, encoding)
    for version in range(2, 400):
        changes = [random_change(random_, model) for _ in range(random_.choice([1, 1, 1, 5]))]
        change(store, changes, version)
        assert text_of(store) == model.text, changes
        document = store.get(URI)
        assert document is not None
        check_positions(document, model, random_)


def check_positions(document: Document, model: Model, random_: random.Random) -> None:
    """Hold a snapshot's own conversions against the model's."""
    position = random_position(random_, model)
    offset = document.offset_at(position, model.encoding)
    before = decode(model.units[: model.place(position)], model.encoding)
    after = decode(model.units[model.place(position) :], model.encoding)
    if before + after == model.text:  # else the position lies inside a character
        assert document.text[:offset] == before
        found = document.position_at(offset, model.encoding)
        assert model.place(found) == model.place(position)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.value)
def test_random_edits_through_the_real_server(encoding: types.PositionEncodingKind) -> None:
    random_ = random.Random(encoding.value)
    text = random_text(random_, encoding, 30)
    model = Model(text, encoding)
    capabilities = {"general": {"positionEncodings": [encoding.value]}}
    with session(capabilities=capabilities) as server:
        document = {"uri": URI, "languageId": "plaintext", "version": 1, "text": text}
        server.send(notification("textDocument/didOpen", {"textDocument": document}))
        for version in range(2, count(sample=300, full=1_000)):
            changed = random_change(random_, model)
            server.send(notification("textDocument/didChange", as_json(changed, version)))
            if version % (1 if FULL else 10) == 0:
                assert server.ask(version, "test/text", {"uri": URI}) == model.text
        server.messages.clear()
        assert server.ask("end", "test/text", {"uri": URI}) == model.text


def as_json(changed: types.TextDocumentContentChangeEvent, version: int) -> object:
    event: dict[str, object] = {"text": changed.text}
    if isinstance(changed, types.TextDocumentContentChangePartial):
        event["range"] = {
            name: {"line": place.line, "character": place.character}
            for name, place in (("start", changed.range.start), ("end", changed.range.end))
        }
    return {"textDocument": {"uri": URI, "version": version}, "contentChanges": [event]}


# --- Single cases, by name ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "changed", "after"),
    [
        ("a", edit((0, 1), (0, 1), "b"), "ab"),
        ("a\n", edit((1, 0), (1, 0), "b"), "a\nb"),
        ("", edit((0, 0), (0, 0), "b"), "b"),
        ("a\r\nb", edit((0, 9), (0, 9), "!"), "a!\r\nb"),
        ("a\fb\nc", edit((1, 0), (1, 1), "d"), "a\fb\nd"),
        ("a\u2028b\x85c\nd", edit((1, 0), (1, 1), "e"), "a\u2028b\x85c\ne"),
        ("a\rb", edit((1, 0), (1, 1), "c"), "a\rc"),
        ("a\rb", edit((1, 0), (1, 1), "\nc"), "a\r\nc"),
        ("a\nb\n", edit((0, 1), (9, 9), ""), "a"),
        ("ab", edit((0, 2), (0, 1), ""), "a"),
        ("ab\ncd", edit((1, 1), (0, 1), "-"), "a-d"),
        ("a", edit((7, 7), (8, 8), "b"), "ab"),
    ],
    ids=[
        *["end without newline", "end after newline", "empty document", "past a CRLF line"],
        *["form feed", "U+2028 and NEL", "lone CR", "CR becomes CRLF", "past the end"],
        *["reversed", "reversed over lines", "outside"],
    ],
)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.value)
def test_an_edit(
    encoding: types.PositionEncodingKind,
    before: str,
    changed: types.TextDocumentContentChangePartial,
    after: str,
) -> None:
    store = opened(before, encoding)
    change(store, [changed])
    assert text_of(store) == after


def test_a_surrogate_pair_can_be_cut_and_joined_again() -> None:
    store = opened("a😀b", UTF16)
    change(store, [edit((0, 2), (0, 3), "")])
    assert text_of(store) == "a\ufffdb"
    change(store, [edit((0, 2), (0, 2), "\ude01")])
    assert text_of(store) == "a😁b"


@pytest.mark.parametrize(("encoding", "inside"), [(UTF8, 2), (UTF8, 4), (UTF16, 2)])
def test_a_position_inside_a_character_is_its_start(
    encoding: types.PositionEncodingKind, inside: int
) -> None:
    document = Document(URI, "plaintext", 1, "a😀b")
    assert document.offset_at(types.Position(0, inside), encoding) == 1


def test_a_snapshot_never_changes() -> None:
    store = opened("old\n", UTF16)
    snapshot = store.get(URI)
    assert snapshot is not None
    change(store, [edit((0, 0), (1, 0), "new")])
    assert (snapshot.text, snapshot.version) == ("old\n", 1)
    assert snapshot.position_at(4, UTF16) == types.Position(1, 0)
    assert snapshot is not store.get(URI) is store.get(URI)


def test_a_change_sees_what_the_one_before_it_left() -> None:
    store = opened("one", UTF16)
    change(store, [edit((0, 3), (0, 3), "\ntwo"), edit((1, 3), (1, 3), "\nthree")])
    assert text_of(store) == "one\ntwo\nthree"


def test_a_document_is_quiet_from_its_last_change_on_for_as_long_as_it_is_open() -> None:
    now = 5.0
    store = DocumentStore(clock=lambda: now)
    store.open(item("a"))
    assert store.quiet_for(URI) == inf
    change(store, [edit((0, 1), (0, 1), "b")])
    now = 7.5
    assert store.quiet_for(URI) == 2.5
    store.close(URI)
    store.open(item("a"))
    assert store.quiet_for(URI) == inf


# --- Clients that err ---------------------------------------------------------------------------


def test_the_order_of_messages_counts_not_the_version() -> None:
    store = opened("a", UTF16)
    change(store, [edit((0, 1), (0, 1), "b")], version=7)
    change(store, [edit((0, 2), (0, 2), "c")], version=3)
    document = store.get(URI)
    assert document is not None
    assert (document.text, document.version) == ("abc", 3)


def test_opening_twice_takes_the_new_text() -> None:
    store = opened("a", UTF16)
    store.open(item("b"))
    assert text_of(store) == "b"


def test_what_is_not_open_can_be_neither_changed_nor_closed() -> None:
    store = DocumentStore()
    change(store, [types.TextDocumentContentChangeWholeDocument("a")])
    store.close(URI)
    store.lose(URI)
    assert store.get(URI) is None


def test_a_lost_document_comes_back_with_its_whole_text() -> None:
    store = opened("a", UTF16)
    store.lose(URI)
    assert store.get(URI) is None
    assert store.open_documents() == []
    change(store, [edit((0, 0), (0, 0), "b")])
    assert store.get(URI) is None
    change(store, [types.TextDocumentContentChangeWholeDocument("c")], 3)
    assert text_of(store) == "c"


def test_the_server_says_nothing_about_a_text_it_has_lost() -> None:
    document = {"uri": URI, "languageId": "plaintext", "version": 1, "text": "a"}
    broken = {
        "textDocument": {"uri": URI, "version": 2},
        "contentChanges": [{"range": {"start": "there"}, "text": "b"}],
    }
    with session() as server:
        server.send(notification("textDocument/didOpen", {"textDocument": document}))
        assert server.ask(1, "test/text", {"uri": URI}) == "a"
        server.send(notification("textDocument/didChange", broken))
        assert server.ask(2, "test/text", {"uri": URI}) is None
        server.wait_for(
            lambda message: (
                message.get("method") == "window/logMessage"
                and "lost track of" in message["params"]["message"]
            )
        )


# --- Names and order ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opened_as", "asked_as"),
    [
        ("file:///c%3A/x/y.py", "file:///C:/x/y.py"),
        ("file:///home/%C3%BC.py", "file:///home/ü.py"),
        ("file:///a%20b", "file:///a b"),
        ("file://localhost/a", "file:///a"),
        ("file:///a/x/../y.py", "file:///a/y.py"),
        ("untitled:Untitled-1", "untitled:Untitled-1"),
        ("vscode-notebook-cell:/n.ipynb#W1s", "vscode-notebook-cell:/n.ipynb#W1s"),
        ("vscode-remote://ssh-remote%2Bhost/a.py", "vscode-remote://ssh-remote%2Bhost/a.py"),
        ("", ""),
        ("no uri at all [", "no uri at all ["),
        ("file://[", "file://["),
        ("file:///\ud800", "file:///\ud800"),
        ("file:///%FF.py", "file:///%FF.py"),
    ],
)
def test_one_document_by_all_its_names(opened_as: str, asked_as: str) -> None:
    store = DocumentStore()
    store.open(types.TextDocumentItem(opened_as, "plaintext", 1, "text"))
    document = store.get(asked_as)
    assert document is not None
    assert document.uri == opened_as
    store.close(asked_as)
    assert store.get(opened_as) is None


def test_other_documents_stay_apart() -> None:
    names = ["untitled:a", "untitled:A", "vscode-notebook-cell:/n#1", "vscode-notebook-cell:/n#2"]
    names += ["file:///%FE.py", "file:///%FF.py", "file:///\ufffd.py"]  # the first two: no UTF-8
    store = DocumentStore()
    for name in names:
        store.open(types.TextDocumentItem(name, "plaintext", 1, name))
    found = [store.get(name) for name in names]
    assert [document and document.text for document in found] == names


def test_the_document_used_last_is_the_last() -> None:
    store = DocumentStore()
    for name in "abc":
        store.open(types.TextDocumentItem(f"untitled:{name}", "plaintext", 1, ""))
    store.change(types.VersionedTextDocumentIdentifier(2, "untitled:a"), [])
    store.focus("untitled:b")
    store.focus("untitled:unknown")
    assert [document.uri[-1] for document in store.open_documents()] == ["c", "a", "b"]

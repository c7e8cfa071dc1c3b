"""The log of what changed since the base: what a reader of it knows, and what each change costs."""

from collections.abc import Sequence
from pathlib import PurePosixPath as Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_reader import read
from qcn_indexer.layout import Segment
from qcn_indexer.overlay import (
    SHORTER,
    SUPERSEDED_CAP,
    Deleted,
    Event,
    Limits,
    Overlay,
    Renamed,
    Written,
)
from qcn_indexer.ranking import Ranked
from qcn_indexer.skeleton import skeleton
from qcn_indexer.superseded import superseded_lines
from sampling import examples

A, B, C = Path("a.py"), Path("b.py"), Path("c.py")
LONG = "".join(f"line {number}\n" for number in range(40))


def tokens(text: str) -> int:
    """A token a line: easy to follow in a test."""
    return text.count("\n")


def over(*files: tuple[Path, str], budget: int = 1000, rewrite: int = 0) -> Overlay:
    base = [Segment(path, text, "base", "file") for path, text in files]
    return Overlay.over(base, limits=Limits(budget, rewrite), count=tokens)


def after(overlay: Overlay, *events: Event) -> Overlay:
    for event in events:
        overlay = overlay.after(event)
    return overlay


def entries(overlay: Overlay) -> list[tuple[str, str]]:
    return [(str(entry.segment.path), entry.segment.kind) for entry in overlay.entries]


def test_a_small_change_is_appended_as_blocks_and_a_large_one_as_the_file() -> None:
    small = over((A, LONG)).after(Written(A, LONG.replace("line 9\n", "line nine\n")))
    assert entries(small) == [("a.py", "change")]
    assert "line nine" in small.entries[0].segment.text
    large = over((A, LONG)).after(Written(A, "all new\n"))
    assert entries(large) == [("a.py", "file")]
    assert large.layout.segments == (*large.base, Segment(A, "all new\n", "overlay", "file"))


def test_saving_again_rewrites_the_entry() -> None:
    overlay = over((A, LONG))
    for number in range(100):
        overlay = overlay.after(Written(A, f"{LONG}save {number}\n"))
        assert entries(overlay) == [("a.py", "change")]
    assert "save 99" in overlay.entries[0].segment.text
    assert "save 98" not in overlay.entries[0].segment.text


def test_a_file_that_had_to_be_said_whole_gets_blocks_upon_it_and_they_are_rewritten() -> None:
    overlay = over().after(Written(A, LONG))
    for number in range(100):
        overlay = overlay.after(Written(A, f"{LONG}save {number}\n"))
        assert entries(overlay) == [("a.py", "file"), ("a.py", "change")]
    assert entries(overlay.after(Written(A, "all new\n"))) == [("a.py", "file")]


def test_an_older_entry_goes_when_little_stands_behind_it() -> None:
    edits = Written(A, "1\n"), Written(B, "2\n"), Written(A, "3\n")
    assert entries(after(over(rewrite=9), *edits)) == [("b.py", "file"), ("a.py", "file")]


def test_an_older_entry_stays_superseded_when_much_stands_behind_it() -> None:
    edits = Written(A, "1\n"), Written(B, LONG), Written(A, "3\n"), Written(A, "4\n")
    overlay = after(over(rewrite=9), *edits)
    assert [entry.segment.text for entry in overlay.entries] == ["1\n", LONG, "4\n"]
    assert overlay.superseded_share > 0


def test_a_file_that_goes_back_to_its_base_text_leaves_no_entry() -> None:
    overlay = over((A, LONG))
    assert after(overlay, Written(A, "new\n"), Written(A, LONG)) == overlay


def test_where_that_is_dear_the_base_text_is_said_again() -> None:
    overlay = after(over((A, "old\n")), Written(A, "new\n"), Written(B, LONG), Written(A, "old\n"))
    assert overlay.entries[-1].segment == Segment(A, "old\n", "overlay", "file")


def test_a_deletion_and_a_rename_are_notes() -> None:
    base = over((A, LONG), (B, LONG))
    overlay = after(base, Deleted(A), Renamed(B, C))
    assert entries(overlay) == [("a.py", "note"), ("b.py", "note")]
    assert [entry.segment.text for entry in overlay.entries] == [
        "(deleted)\n",
        "(renamed to c.py)\n",
    ]
    assert read(overlay.layout.segments) == {C: ("file", LONG)}


def test_a_renamed_file_that_is_edited_keeps_its_note_and_gets_blocks() -> None:
    overlay = after(over((A, LONG)), Renamed(A, B), Written(B, f"{LONG}more\n"))
    assert entries(overlay) == [("a.py", "note"), ("b.py", "change")]
    back = after(overlay, Written(B, LONG), Renamed(B, A))
    assert entries(back) == []


def test_a_file_made_and_deleted_since_leaves_nothing() -> None:
    assert entries(after(over((A, LONG)), Written(B, "b\n"), Deleted(B))) == []


def test_what_the_layout_does_not_show_is_not_deleted_or_renamed() -> None:
    overlay = over((A, LONG))
    assert after(overlay, Deleted(B), Renamed(B, C), Renamed(A, A)) == overlay


def test_a_file_too_long_for_the_overlay_is_shown_by_its_signatures_or_a_note() -> None:
    long = "def f(x):\n" + "    x += 1\n" * 60
    overlay = after(over(budget=20), Written(A, long))
    assert overlay.entries[0].segment == Segment(A, skeleton(A, long), "overlay", "skeleton")
    same_signatures = overlay.after(Written(A, long + "    return x\n"))
    assert same_signatures == overlay
    assert entries(over(budget=20).after(Written(Path("a.txt"), long))) == [("a.txt", "note")]


def test_a_secret_leaves_base_and_entries_under_every_name_it_had() -> None:
    secret = "token = 'hunter2'\n"
    overlay = after(over((A, secret), (B, LONG)), Renamed(A, C), Written(C, secret + "more\n"))
    overlay = overlay.after(Written(B, "b\n")).without(C)
    assert not any("hunter2" in segment.text for segment in overlay.layout.segments)
    assert read(overlay.layout.segments) == {B: ("file", "b\n")}


def test_a_file_that_was_taken_out_and_may_be_shown_again_is_said_whole() -> None:
    """Blocks would quote the lines that they replace, the secret among them."""
    secret = f"{LONG}token = 'hunter2'\n"
    overlay = after(over((A, secret), (B, LONG)), Renamed(A, C)).without(C)
    for path, text in ((A, LONG), (C, LONG), (A, secret), (C, secret)):
        again = overlay.after(Written(path, text))
        assert [entry.segment for entry in again.entries] == [
            Segment(path, text, "overlay", "file")
        ]
    assert entries(overlay.after(Written(B, f"{LONG}more\n"))) == [("b.py", "change")]


def test_compaction_is_due_when_the_overlay_is_full() -> None:
    overlay = over(*((Path(str(n)), LONG) for n in range(50)), budget=30)
    assert overlay.compaction_due() is None
    full = after(overlay, Written(A, LONG[:100]), Written(B, LONG[:100]), Written(C, LONG[:100]))
    assert full.compaction_due() == f"the overlay holds {full.tokens} tokens of 30"


def test_compaction_is_due_when_too_much_is_superseded() -> None:
    overlay = over((A, LONG), (B, LONG), (C, LONG)).after(Written(A, "a\n"))
    assert overlay.superseded_share == pytest.approx(40 / 128, abs=0.02)
    assert "no longer so" in (overlay.compaction_due() or "")


# Any sequence of events. Few names and few lines, so that names are used again and lines repeat.
PATHS = st.sampled_from([A, B, C, Path("d.txt")])
TEXTS = st.one_of(
    st.lists(st.sampled_from(["a", "b", "", "def f():", "updated:"]), max_size=12).map("\n".join),
    st.integers(0, 30).map(lambda n: LONG.replace(f"line {n}\n", "changed\n")),
    st.integers(0, 30).map(lambda n: f"{LONG}{'more' * n}\n"),
)
EVENTS = st.lists(
    st.one_of(
        st.builds(Written, PATHS, TEXTS),
        st.builds(Deleted, PATHS),
        st.builds(Renamed, PATHS, PATHS),
    ),
    max_size=25,
)
FILES = st.dictionaries(PATHS, TEXTS, max_size=4)
LIMITS = st.builds(Limits, st.integers(0, 200), st.integers(0, 60))


def workspace_after(files: dict[Path, str], event: Event) -> dict[Path, str]:
    """What a disk holds after the event; renames of files that are not there do nothing."""
    files = dict(files)
    match event:
        case Written(path, text):
            files[path] = text
        case Deleted(path):
            files.pop(path, None)
        case Renamed(old, new) if old in files:
            files[new] = files.pop(old)
    return files


def assert_reads_as(overlay: Overlay, files: dict[Path, str]) -> None:
    """Every file is known, whole and exact or in short, and none that is gone."""
    known = read(overlay.layout.segments)
    assert known.keys() == files.keys()
    for path, (kind, text) in known.items():
        if kind == "file":
            assert text == files[path]
        elif kind == "skeleton":
            # One that was renamed to another suffix keeps the signatures it had.
            assert text in (skeleton(path, files[path]), skeleton(A, files[path]))
        else:
            assert tokens(files[path]) + 2 > overlay.limits.budget // 2


@pytest.mark.long
@examples(sample=300, full=1000)
@given(files=FILES, events=EVENTS, limits=LIMITS)
def test_reading_the_layout_gives_the_current_text_of_every_file(
    files: dict[Path, str], events: Sequence[Event], limits: Limits
) -> None:
    overlay = over(*files.items(), budget=limits.budget, rewrite=limits.rewrite)
    base = overlay.base
    for event in events:
        files = workspace_after(files, event)
        overlay = overlay.after(event)
        assert_reads_as(overlay, files)
        assert overlay.base == base, "nothing in a base moves while it lives"
        assert overlay.tokens == sum(entry.segment.tokens(tokens) for entry in overlay.entries)


@pytest.mark.long
@examples(sample=300, full=1000)
@given(files=FILES, events=EVENTS, limits=LIMITS)
def test_a_change_costs_its_own_entries_and_what_was_worth_rewriting(
    files: dict[Path, str], events: Sequence[Event], limits: Limits
) -> None:
    overlay = over(*files.items(), budget=limits.budget, rewrite=limits.rewrite)
    for event in events:
        before, overlay = overlay, overlay.after(event)
        same = before.layout.common_front(overlay.layout)
        assert same >= len(overlay.base)
        computed = overlay.entries[same - len(overlay.base) :]
        older = [entry for entry in computed if any(entry is old for old in before.entries)]
        assert sum(entry.tokens for entry in older) <= limits.rewrite


@pytest.mark.long
@examples(sample=200, full=1000)
@given(files=FILES, saves=st.lists(TEXTS, min_size=1, max_size=20), limits=LIMITS)
def test_any_number_of_saves_leave_one_entry_or_the_file_with_blocks_upon_it(
    files: dict[Path, str], saves: Sequence[str], limits: Limits
) -> None:
    overlay = over(*files.items(), budget=limits.budget, rewrite=limits.rewrite)
    overlay = after(overlay, *(Written(A, text) for text in saves))
    if len(overlay.entries) > 1:
        assert entries(overlay) == [("a.py", "file"), ("a.py", "change")]
        assert overlay.entries[1].tokens * SHORTER <= tokens(saves[-1]) + 2


@pytest.mark.long
@examples(sample=200, full=1000)
@given(files=FILES, events=EVENTS, limits=LIMITS, budget=st.integers(10, 400), hot=st.sets(PATHS))
def test_compaction_leaves_nothing_superseded_and_keeps_the_front(
    files: dict[Path, str],
    events: Sequence[Event],
    limits: Limits,
    budget: int,
    hot: set[Path],
) -> None:
    overlay = over(*files.items(), budget=limits.budget, rewrite=limits.rewrite)
    for event in events:
        files = workspace_after(files, event)
        overlay = overlay.after(event)
    ranked = [
        Ranked(path, text, score=1, heat=float(path in hot), hot=path in hot, reasons=())
        for path, text in sorted(files.items())
    ]

    compacted = overlay.compacted(ranked, budget=budget)

    assert compacted.entries == ()
    assert compacted.superseded_share == 0 <= SUPERSEDED_CAP
    assert compacted.compaction_due() is None
    assert sum(segment.tokens(tokens) for segment in compacted.base) <= budget
    for path, (kind, text) in read(compacted.layout.segments).items():
        assert text == (files[path] if kind == "file" else skeleton(path, files[path]))
    if not hot and sum(tokens(text) + 2 for text in files.values()) <= budget:
        changed = [files.get(segment.path) != segment.text for segment in overlay.base]
        front = changed.index(True) if any(changed) else len(changed)
        assert compacted.base[:front] == overlay.base[:front]


def current_lines(overlay: Overlay) -> list[str]:
    """All lines of the layout that are not superseded; a change's own line feed is none of them."""
    found = []
    segments = overlay.layout.segments
    for segment, spans in zip(segments, superseded_lines(overlay), strict=True):
        text = segment.text.removesuffix("\n") if segment.kind == "change" else segment.text
        superseded = {line for start, end in spans for line in range(start, end)}
        lines = enumerate(text.split("\n"))
        found += [line for number, line in lines if number not in superseded]
    return found


def test_what_a_change_takes_back_is_superseded_and_what_it_says_is_not() -> None:
    overlay = over((A, LONG), (B, "x\n")).after(Written(A, LONG.replace("line 9\n", "line nine\n")))
    lines = current_lines(overlay)
    assert "line nine" in lines
    assert not {"line 9", "original:", "updated:"} & set(lines)
    base, untouched, change = superseded_lines(overlay)
    assert base == ((6, 13),)  # three lines on each side are said again
    assert untouched == ()
    assert change == ((0, 9),)


def test_a_renamed_file_is_current_and_a_deleted_one_is_not() -> None:
    overlay = after(over((A, "a\n"), (B, "b\n")), Renamed(A, C), Deleted(B))
    assert current_lines(overlay) == ["a", ""]


@pytest.mark.long
@examples(sample=300, full=1000)
@given(files=FILES, events=EVENTS, limits=LIMITS)
def test_what_is_not_superseded_is_the_current_text_of_every_file_once(
    files: dict[Path, str], events: Sequence[Event], limits: Limits
) -> None:
    overlay = over(*files.items(), budget=limits.budget, rewrite=limits.rewrite)
    for event in events:
        overlay = overlay.after(event)
        known = read(overlay.layout.segments).values()
        texts = [text for kind, text in known if kind != "note"]
        lines = [line for text in texts for line in text.split("\n")]
        assert sorted(current_lines(overlay)) == sorted(lines)
        assert all(not spans for spans in superseded_lines(overlay)) or overlay.entries

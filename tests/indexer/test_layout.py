"""A context as values, and the name of what the model reads."""

import hashlib
from dataclasses import replace
from pathlib import PurePosixPath as Path

import pytest
from qcn_indexer.layout import Layout, Segment

SEGMENT = Segment(Path("a.py"), "a = 1\n", "base", "file")


def test_the_hash_names_what_is_read() -> None:
    assert SEGMENT.hash == hashlib.sha256(b"a.py\0a = 1\n").hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        replace(SEGMENT, path=Path("b.py")),
        replace(SEGMENT, text="a = 2\n"),
        Segment(Path("a.pya"), " = 1\n", "base", "file"),  # the same letters, cut elsewhere
    ],
)
def test_whatever_is_read_otherwise_has_another_hash(other: Segment) -> None:
    assert other.hash != SEGMENT.hash
    assert not other.reads_as(SEGMENT)


def test_zone_kind_and_heat_change_nothing_that_is_read() -> None:
    elsewhere = replace(SEGMENT, zone="overlay", kind="skeleton", hot=True)
    assert elsewhere.hash == SEGMENT.hash
    assert elsewhere.reads_as(SEGMENT)


def test_a_path_that_is_no_utf8_has_a_hash() -> None:
    assert len(replace(SEGMENT, path=Path("\udcff.py")).hash) == 64


def test_two_layouts_share_what_they_have_in_common_in_front() -> None:
    other = replace(SEGMENT, path=Path("b.py"))
    layout = Layout((SEGMENT, other))
    assert layout.common_front(layout) == 2
    assert layout.common_front(Layout((SEGMENT, replace(other, text="")))) == 1
    assert layout.common_front(Layout((other, SEGMENT))) == 0
    assert layout.common_front(Layout((SEGMENT,))) == 1


def test_a_segment_takes_a_control_token_its_path_and_its_text() -> None:
    assert SEGMENT.tokens(len) == 1 + len("a.py\n") + len("a = 1\n")

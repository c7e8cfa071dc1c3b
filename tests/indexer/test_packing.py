"""What a base holds, and in which order."""

from collections.abc import Sequence
from pathlib import PurePosixPath as Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer.layout import Segment
from qcn_indexer.packing import LARGE, Packing, pack
from qcn_indexer.ranking import Ranked
from qcn_indexer.skeleton import skeleton
from sampling import examples

BUDGET = 800  # a large file takes more than 100


def tokens(text: str) -> int:
    """A token a line; a segment takes two more, for its header."""
    return text.count("\n")


def ranked(path: str, lines: int, *, heat: float = 0.0, text: str | None = None) -> Ranked:
    body = "x = 1\n" * lines if text is None else text
    return Ranked(Path(path), body, score=0, heat=heat, hot=heat >= 1, reasons=())


def packed(*files: Ranked, budget: int = BUDGET, front: Sequence[Segment] = ()) -> Packing:
    return pack(files, budget=budget, count=tokens, front=front)


def names(packing: Packing) -> list[str]:
    return [str(segment.path) for segment in packing.layout.segments]


def size(packing: Packing) -> int:
    return sum(segment.tokens(tokens) for segment in packing.layout.segments)


def test_files_unlikely_to_change_stand_first_and_hot_ones_last() -> None:
    packing = packed(
        ranked("open.py", 9, heat=2),
        ranked("warm.py", 9, heat=0.3),
        ranked("edited.py", 9, heat=1),
        ranked("z.py", 9),
        ranked("a.py", 9),
    )
    assert names(packing) == ["a.py", "z.py", "warm.py", "edited.py", "open.py"]
    assert [segment.hot for segment in packing.layout.segments] == [False] * 3 + [True] * 2
    assert packing.left_out == ()


def test_the_budget_goes_to_the_best_and_what_is_left_to_the_best_fit() -> None:
    files = [ranked(f"{number}.py", 98) for number in range(7)]  # 700 with their headers
    others = ranked("big.py", 95), ranked("small.py", 5), ranked("fits.py", 80)
    packing = packed(*files, *others)
    assert set(names(packing)) == {f"{number}.py" for number in range(7)} | {"fits.py", "small.py"}
    assert packing.left_out == ((Path("big.py"), "it ranks below what fits the budget"),)


def test_a_gap_is_filled_by_what_leaves_the_smallest_and_never_by_a_large_file() -> None:
    files = [ranked(f"{number}.py", 98) for number in range(7)]
    assert names(packed(*files, ranked("a.py", 30), ranked("b.py", 80)))[-1] == "b.py"
    files = [*files[:6], ranked("last.py", 50), ranked("next.py", 90), ranked("large.py", 130)]
    assert names(packed(*files, ranked("more.py", 85)))[-1] == "next.py"


def test_what_fills_a_gap_counts_once() -> None:
    files = [ranked(f"{number}.py", 98) for number in range(7)]
    gap = {"big.py": 95, "b.py": 60, "c.py": 9, "d.py": 5, "e.py": 1}
    packing = packed(*files, *(ranked(name, lines) for name, lines in gap.items()))
    assert [path.name for path, _ in packing.left_out] == ["big.py"]


def test_what_does_not_fit_stands_with_its_signatures() -> None:
    function = "def f(x):\n" + "    x += 1\n" * 40
    files = [ranked(f"{number}.py", 98) for number in range(7)]
    short = ranked("g.py", 0, text="def g(x):\n    return x\n")
    packing = packed(*files, ranked("a.py", 80), ranked("f.py", 0, text=function), short)
    assert Segment(Path("f.py"), "def f(x):\n", "base", "skeleton") in packing.layout.segments
    assert Segment(Path("g.py"), short.text, "base", "file") in packing.layout.segments


def test_where_everything_fits_nothing_is_kept_back_for_signatures() -> None:
    files = [ranked(f"{number}.py", 98) for number in range(8)]
    assert len(packed(*files).layout.segments) == 8


def test_a_large_file_stands_with_its_signatures_however_it_ranks() -> None:
    large = "def f(x):\n" + "    x += 1\n" * 200
    packing = packed(ranked("large.py", 0, text=large), ranked("data.py", 200), ranked("a.py", 5))
    assert [(segment.path.name, segment.kind) for segment in packing.layout.segments] == [
        ("a.py", "file"),
        ("large.py", "skeleton"),
    ]
    ((path, reason),) = packing.left_out
    assert path == Path("data.py")
    assert reason == f"it takes more than {int(BUDGET * LARGE)} tokens, signatures alone too"


def test_an_empty_file_is_left_out_with_its_reason() -> None:
    packing = packed(ranked("__init__.py", 0), ranked("a.py", 1))
    assert packing.left_out == ((Path("__init__.py"), "it is empty"),)


def test_packed_again_the_front_stays_up_to_the_first_changed_file() -> None:
    files = [ranked(f"{number}.py", 9) for number in range(6)]
    front = packed(*files).layout.segments
    files[3] = ranked("3.py", 10, heat=1)
    again = packed(*reversed(files), front=front)
    assert names(again) == ["0.py", "1.py", "2.py", "4.py", "5.py", "3.py"]
    assert again.layout.segments[:3] == front[:3]


def test_a_full_front_makes_room_for_a_hot_file() -> None:
    files = [ranked(f"{number}.py", 98) for number in range(8)]
    front = packed(*files).layout.segments
    again = packed(ranked("new.py", 98, heat=2), *files, front=front)
    assert names(again)[-1] == "new.py"
    assert again.layout.segments[:7] == front[:7]


PATHS = [f"{folder}{name}" for folder in ("", "b/") for name in ("a.py", "c.py", "d.txt", "e.py")]
TEXTS = st.one_of(
    st.integers(0, 60).map(lambda lines: "x = 1\n" * lines),
    st.integers(0, 60).map(lambda lines: "def f(x):\n" + "    x += 1\n" * lines),
)
HEATS = st.sampled_from([0.0, 0.2, 1.0, 2.0])
FILES = st.lists(st.tuples(st.sampled_from(PATHS), TEXTS, HEATS), unique_by=lambda one: one[0]).map(
    lambda files: [ranked(path, 0, text=text, heat=heat) for path, text, heat in files]
)


@pytest.mark.long
@examples(sample=300, full=2000)
@given(before=FILES, files=FILES, budget=st.integers(0, 200))
def test_each_file_stands_once_within_the_budget_or_has_its_reason(
    before: list[Ranked], files: list[Ranked], budget: int
) -> None:
    front = packed(*before, budget=budget).layout.segments
    packing = packed(*files, budget=budget, front=front)
    texts = {file.path: file.text for file in files}
    assert size(packing) <= budget
    for segment in packing.layout.segments:
        whole = texts[segment.path]
        assert segment.text in (whole, skeleton(segment.path, whole))
        assert segment.text
    stand = [segment.path for segment in packing.layout.segments]
    left_out = [path for path, reason in packing.left_out if reason]
    assert sorted(stand + left_out) == sorted(texts)
    assert packing == packed(*files, budget=budget, front=front)

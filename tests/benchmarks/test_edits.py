"""The cases of `edit`: the same changes in contexts of all lengths, by the real overlay."""

from pathlib import PurePosixPath

import pytest
from layout_reader import read

from benchmarks.edit import LENGTHS
from benchmarks.edits import FOLDER, INSERTED, Edits, Texts
from benchmarks.replay import count

ROUNDS = 5


@pytest.fixture(scope="module")
def files() -> Texts:
    """A folder of short files with many others on both sides, and long ones to take text from."""
    names = {f"{FOLDER}/{name}.py": 10 + 4 * at for at, name in enumerate("abcdefgh")}
    names |= {f"{side}/{number:03}.py": 100 for side in ("a", "z") for number in range(60)}
    names |= {f"zz/long_{number}.py": 2_000 for number in range(3)}
    return {
        PurePosixPath(name): "".join(f"{name}_{line} = {line}\n" for line in range(lines))
        for name, lines in names.items()
    }


def _tokens(edits: Edits) -> int:
    return sum(segment.tokens(count) for segment in edits.base.base)


def test_the_same_files_lie_in_the_middle_of_contexts_of_all_lengths(files: Texts) -> None:
    contexts = [Edits(files, length, count) for length in LENGTHS]
    for length, edits in zip(LENGTHS, contexts, strict=True):
        assert 0.9 * length < _tokens(edits) <= length
        assert list(edits.texts) == sorted(edits.texts)
    for one in contexts[1:]:
        assert contexts[0].texts.keys() <= one.texts.keys()
        paths = list(one.texts)
        (first,) = {at for at, path in enumerate(paths) if path == FOLDER / "a.py"}
        assert 0.3 < first / len(paths) < 0.7


def test_a_change_costs_the_same_in_contexts_of_all_lengths(files: Texts) -> None:
    costs = [
        {name: make(0).after.tokens for name, make in Edits(files, length, count).cases.items()}
        for length in LENGTHS
    ]
    assert costs[0] == costs[1] == costs[2]
    assert costs[0]["nothing"] == 0
    assert INSERTED < costs[0]["512 tokens inserted"] < 2 * INSERTED


def test_what_is_read_behind_a_change_is_the_text_after_it(files: Texts) -> None:
    edits = Edits(files, LENGTHS[0], count)
    for name, make in edits.cases.items():
        case = make(0)
        current = {path: text for path, (_, text) in read(case.after.layout.segments).items()}
        in_order = {one.path: one.text for one in case.in_file_order.segments}
        assert current == in_order, name
        assert list(in_order) == sorted(in_order)
        unchanged = name in {"nothing", "typing in a long file", "back on the branch"}
        assert (current == edits.texts) == unchanged, name


def test_no_two_editions_of_a_case_read_the_same(files: Texts) -> None:
    edits = Edits(files, LENGTHS[0], count)
    for name, make in edits.cases.items():
        cases = [make(number) for number in range(ROUNDS)]
        read_last = {(case.after.layout, case.tail) for case in cases}
        assert len(read_last) == ROUNDS, name


def test_typing_goes_on_where_the_completion_before_it_was(files: Texts) -> None:
    case = Edits(files, LENGTHS[0], count).cases["typing in a long file"](3)
    assert case.asked is not None
    assert case.tail.prefix[:-1] == case.asked.prefix
    assert case.tail.suffix == case.asked.suffix

"""The last bases are kept, and the one nearest to what is on disk is found again."""

from collections.abc import Mapping
from pathlib import PurePosixPath as Path

from qcn_indexer.bases import KEPT, Base, Bases
from qcn_indexer.snapshot import Snapshot, Version


def holding(texts: Mapping[str, str]) -> Snapshot:
    return Snapshot({"": {name: Version(1, 1, text.encode()) for name, text in texts.items()}})


def base(texts: Mapping[str, str], *unlike_disk: str) -> Base:
    return Base((), holding(texts), frozenset(map(Path, unlike_disk)), {}, ())


def test_the_base_since_which_the_fewest_files_changed_comes_first() -> None:
    first, second = base({"a": "1", "b": "1"}), base({"a": "2", "b": "2"})
    bases = Bases()
    bases.keep(first)
    bases.keep(second)
    now = holding({"a": "1", "b": "1", "c": "1"})
    found = [(one, sorted(map(str, changed))) for one, changed in bases.nearest(now, most=3)]
    assert found == [(first, ["c"]), (second, ["a", "b", "c"])]
    assert [one for one, _ in bases.nearest(now, most=2)] == [first]


def test_a_file_that_was_shown_unlike_the_disk_counts_as_changed() -> None:
    shown = base({"a": "1"}, "a")
    assert shown.changed_since(holding({"a": "1"})) == {Path("a")}


def test_both_names_of_a_renamed_file_count() -> None:
    assert base({"a": "1"}).changed_since(holding({"b": "1"})) == {Path("a"), Path("b")}


def test_only_the_last_are_kept_each_once_and_none_that_must_go() -> None:
    made = [base({"a": str(number)}) for number in range(KEPT + 1)]
    bases = Bases()
    for one in (*made, made[1]):
        bases.keep(one)

    def kept() -> list[Base]:
        return [found for found, _ in bases.nearest(holding({}), most=1)]

    assert kept() == [made[1], *reversed(made[2:])]  # equally far: the newest first
    bases.drop(made[1])
    assert made[1] not in kept()
    bases.forget()
    assert kept() == []

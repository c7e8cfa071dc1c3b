"""What stands in front of each question: never the answer, and either version of what changed."""

import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from qcn_indexer.layout import Segment

from qcn_lsp.evaluation.formats import FORMATS
from qcn_lsp.evaluation.lines import lines_with_names_of_others
from qcn_lsp.evaluation.questions import (
    COMPACTED,
    STALE,
    WITH,
    WITHOUT,
    Question,
    Questions,
)
from qcn_lsp.evaluation.versions import is_in_git, version_before

PRICES, SHOP = PurePosixPath("prices.py"), PurePosixPath("shop.py")
OLD = "def price_of(item):\n    return item.price\n"
NEW = "def price_of(item, rate):\n    return item.price * rate\n"
LINE = "    result = sum(price_of(item, 2) for item in items)"
TEXTS = {
    PRICES: NEW,
    SHOP: "from prices import price_of\n\n\ndef total(items):\n    tax = 2\n"
    + f"{LINE}\n    return result\n"
    + "".join(f"a{number} = {number}\n" for number in range(20)),
    PurePosixPath("other.py"): "".join(f"b{number} = {number}\n" for number in range(20)),
}
ROOM = 4_000


def _count(text: str) -> int:
    return len(text) // 3


def _git(root: Path, *arguments: str) -> None:
    people = {
        f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = os.environ | people | {"GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *arguments], cwd=root, check=True, env=environment)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose prices.py was changed in its last commit; in a folder below its top."""
    folder = tmp_path / "project"
    folder.mkdir()
    _git(tmp_path, "init", "--quiet")
    for text in (OLD, NEW):
        for path, content in (TEXTS | {PRICES: text}).items():
            (folder / path).write_text(content)
        _git(tmp_path, "add", "--all")
        _git(tmp_path, "commit", "--quiet", "--message", "x")
    return folder


def _said(segments: tuple[Segment, ...]) -> list[tuple[PurePosixPath, str, str]]:
    return [(one.path, one.zone, one.text) for one in segments if one.path in (PRICES, SHOP)]


def _question(root: Path, name: str) -> Question:
    questions = Questions(root, TEXTS, count=_count, room=ROOM)
    lines = lines_with_names_of_others(root, TEXTS)
    asked = {
        "repository": questions.repository(lines),
        "overlay": questions.overlay(lines, 5),
        "deletion": questions.deletion(lines, 5),
    }
    (question,) = asked[name]
    return question


def test_the_rest_of_the_line_is_asked_for_between_what_stands_around_it(root: Path) -> None:
    question = _question(root, "repository")
    assert question.prefix + question.expected + question.suffix == TEXTS[SHOP]
    assert question.expected == "sum(price_of(item, 2) for item in items)"


def test_the_repository_is_shown_without_the_file_that_is_completed_in(root: Path) -> None:
    question = _question(root, "repository")
    assert question.contexts[WITHOUT] == ()
    assert _said(question.contexts[WITH]) == [(PRICES, "base", NEW)]
    tokens = sum(segment.tokens(_count) for segment in question.contexts[WITH])
    assert tokens <= ROOM


def test_a_changed_file_stands_in_its_older_version_with_the_change_behind_it(root: Path) -> None:
    question = _question(root, "overlay")
    assert question.touched
    assert _said(question.contexts[COMPACTED]) == [(PRICES, "base", NEW)]
    assert _said(question.contexts[STALE]) == [(PRICES, "base", OLD)]
    for name, text_of in FORMATS.items():
        assert _said(question.contexts[f"older, then {name}"]) == [
            (PRICES, "base", OLD),
            (PRICES, "overlay", text_of(PRICES, OLD, NEW)),
        ]


def test_a_deleted_line_is_asked_for_at_its_place(root: Path) -> None:
    question = _question(root, "deletion")
    assert question.expected == LINE.strip()
    assert question.prefix.endswith("    tax = 2\n    ")
    assert question.suffix.startswith("\n    return result\n")
    assert question.contexts[WITHOUT] == ()
    assert _said(question.contexts[COMPACTED])[-1] == (
        SHOP,
        "base",
        TEXTS[SHOP].replace(f"{LINE}\n", ""),
    )
    assert _said(question.contexts[STALE])[-1] == (SHOP, "base", TEXTS[SHOP])


def test_without_history_or_with_a_secret_in_it_there_is_no_older_version(
    root: Path, tmp_path: Path
) -> None:
    assert version_before(root, PRICES, NEW) == OLD
    assert version_before(root, SHOP, TEXTS[SHOP]) is None
    key = "AKIA" + "Q3EGXN5VTHZ7PL2M"
    for text in (f'KEY = "{key}"\n', "KEY = None\n"):
        (root / "keys.py").write_text(text)
        _git(root, "add", "--all")
        _git(root, "commit", "--quiet", "--message", "x")
    assert version_before(root, PurePosixPath("keys.py"), "KEY = None\n") is None
    assert is_in_git(root)


def test_a_folder_outside_git_has_no_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert not is_in_git(tmp_path)

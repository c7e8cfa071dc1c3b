"""Every format of a change says the newer text: who has the older one can work it out."""

import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_reader import applied
from sampling import examples

from qcn_lsp.evaluation.formats import FORMATS, blocks, unified_diff, whole_file

PATH = PurePosixPath("some/file.py")
LINES = st.lists(st.sampled_from(["a = 1", "b = 2", "", "c", "    d\r", "\x0ce"]), max_size=30)
TEXT = st.tuples(LINES, st.sampled_from(["", "\n"])).map(
    lambda parts: "first\n" + "\n".join(parts[0]) + parts[1]
)


@pytest.mark.long
@examples(sample=60, full=2000)
@given(older=TEXT, newer=TEXT)
def test_git_applies_the_unified_diff(tmp_path: Path, older: str, newer: str) -> None:
    file = tmp_path / PATH
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(older.encode())
    diff = unified_diff(PATH, older, newer)
    if older == newer:
        assert diff == ""
        return
    subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"],
        input=diff.encode(),
        cwd=tmp_path,
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
        check=True,
    )
    assert file.read_bytes().decode() == newer


@pytest.mark.long
@examples(sample=200, full=5000)
@given(older=TEXT, newer=TEXT)
def test_replacing_the_blocks_gives_the_newer_text(older: str, newer: str) -> None:
    said = blocks(PATH, older, newer)
    assert said == newer or applied(said, older) == newer


def test_the_three_formats_of_one_change() -> None:
    older = "".join(f"line {number}\n" for number in range(20))
    newer = older.replace("line 9\n", "line nine\n")
    texts = {name: text_of(PATH, older, newer) for name, text_of in FORMATS.items()}
    assert list(texts) == ["whole file", "unified diff", "original/updated blocks"]
    assert texts["whole file"] == whole_file(PATH, older, newer) == newer
    assert "@@ -7,7 +7,7 @@\n" in texts["unified diff"]
    assert "\n-line 9\n+line nine\n" in texts["unified diff"]
    assert texts["original/updated blocks"].startswith("original:\nline 6\n")

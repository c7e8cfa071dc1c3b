"""`qcn fix`, as a process: what it prints, writes, and refuses."""

import json
import stat
from pathlib import Path

import pytest
from command_support import qcn

from qcn_lsp.cli import main
from qcn_lsp.fixes.write import NotWritten, SourceFile

TEXT = "import yaml\n\n\ndef load(text):\n    return yaml.load(text)\n"
FIXED = TEXT.replace("yaml.load", "yaml.safe_load")
RULE = "qcn.python.yaml-load-bare"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / ".git").mkdir(parents=True)
    (folder / "load.py").write_text(TEXT)
    return folder / "load.py"


def test_a_diff_is_printed_with_its_evidence_and_nothing_is_written(source: Path) -> None:
    done = qcn("fix", f"{source}:5:{RULE}")
    assert done.returncode == 0
    assert done.stdout.startswith("--- a/load.py\n+++ b/load.py\n@@ ")
    assert "-    return yaml.load(text)\n+    return yaml.safe_load(text)\n" in done.stdout
    assert "the finding is gone" in done.stderr
    assert "not checked: the project's tests: none were found" in done.stderr
    assert source.read_text() == TEXT


def test_a_finding_is_named_as_the_scan_prints_it(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["scan", str(source)])
    name = capsys.readouterr().out.partition(": ")[0]
    assert name.endswith("load.py:5:12")
    assert main(["fix", name]) == 0
    assert "yaml.safe_load" in capsys.readouterr().out


def test_json_says_level_and_what_was_not_checked(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fix", str(source), "--json"]) == 0
    [file] = json.loads(capsys.readouterr().out)
    [finding] = file["findings"]
    assert (finding["rule"], finding["line"], finding["level"]) == (RULE, 5, "gone")
    assert finding["by"] == "the rule's own fix"
    assert finding["unchecked"] == ["the project's tests: none were found"]
    assert file["written"] is False


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TEXT.encode(), FIXED.encode()),
        (TEXT.replace("\n", "\r\n").encode(), FIXED.replace("\n", "\r\n").encode()),
        (TEXT.rstrip().encode(), FIXED.rstrip().encode()),
        (b"\xef\xbb\xbf" + TEXT.encode(), b"\xef\xbb\xbf" + FIXED.encode()),
        ((TEXT + "# é🙂\n").encode(), (FIXED + "# é🙂\n").encode()),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), b"\xff\xfe" + FIXED.encode("utf-16-le")),
    ],
    ids=["plain", "crlf", "no final newline", "mark", "beyond ascii", "utf-16"],
)
def test_what_is_written_keeps_mode_line_ends_and_encoding(
    source: Path, before: bytes, after: bytes
) -> None:
    source.write_bytes(before)
    source.chmod(0o640)
    assert main(["fix", str(source), "--apply"]) == 0
    assert source.read_bytes() == after
    assert stat.S_IMODE(source.stat().st_mode) == 0o640
    assert sorted(one.name for one in source.parent.iterdir()) == [".git", "load.py"]


def test_a_folder_is_fixed_file_by_file_without_what_is_ignored(source: Path) -> None:
    for name in ("other.py", "ignored.py"):
        source.with_name(name).write_text(TEXT)
    source.with_name(".gitignore").write_text("ignored.py\n")
    assert main(["fix", str(source.parent), "--apply"]) == 0
    assert source.read_text() == source.with_name("other.py").read_text() == FIXED
    assert source.with_name("ignored.py").read_text() == TEXT


def test_what_has_no_acceptable_fix_is_told_and_is_exit_code_1(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text('import subprocess\n\nsubprocess.run("ls " + input(), shell=True)\n')
    assert main(["fix", str(source)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "No acceptable fix found." in told.err
    assert "a capable model" in told.err


def test_a_link_is_not_followed(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = source.with_name("link.py")
    link.symlink_to(source)
    assert main(["fix", str(link), "--apply"]) == 1
    assert "is a link" in capsys.readouterr().err
    assert source.read_text() == TEXT


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("{folder}/none.py", "no such file"),
        ("{folder}/none.py:5:rule", "No such file"),
        ("{file}:4:" + RULE, "no finding there"),
        ("{file}:5:1", "no finding there"),
        ("{file}:5", "no such file, and no finding"),
        ("{folder}/latin.py", "not UTF-8"),
    ],
)
def test_what_cannot_be_fixed_is_explained(
    source: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.with_name("latin.py").write_bytes(b"# caf\xe9\n")
    assert main(["fix", what.format(file=source, folder=source.parent)]) == 1
    assert message in capsys.readouterr().err


def test_a_file_in_a_test_folder_is_left_alone(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = source.parent / "tests" / "test_load.py"
    test.parent.mkdir()
    test.write_text(TEXT)
    assert main(["fix", str(test), "--apply"]) == 1
    assert "It edits a test" in capsys.readouterr().err
    assert test.read_text() == TEXT


def test_a_file_that_changed_meanwhile_is_left_as_it_is(source: Path) -> None:
    read = SourceFile.read(source)
    source.write_text("# somebody else's\n")
    with pytest.raises(NotWritten, match="has changed meanwhile"):
        read.replace(FIXED)
    assert source.read_text() == "# somebody else's\n"
    assert sorted(one.name for one in source.parent.iterdir()) == [".git", "load.py"]

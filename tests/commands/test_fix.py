"""`qcn fix`, as a process: what it prints, writes, and refuses."""

import asyncio
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command_support import qcn, qcn_with_errors_on_a_terminal
from deadlines import DEADLINE_SECONDS
from scripted_model import scripted_model

from qcn_lsp.cli import main
from qcn_lsp.commands import fix
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
    for named in (name, name.rpartition(":")[0]):  # the line alone means all its findings
        assert main(["fix", named]) == 0
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
    assert told.err.splitlines()[-1].startswith("Found fixes of 0 of 1 finding. ")
    assert told.err.count("a capable model") == 1


def test_at_the_end_it_says_how_much_has_a_fix_and_whether_it_is_written(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text(f"{TEXT}\n\ndef again(text):\n    return yaml.load(text)\n")
    assert main(["fix", str(source)]) == 0
    assert capsys.readouterr().err.endswith(
        "Found fixes of 2 of 2 findings; --apply writes them.\n"
    )
    assert main(["fix", str(source), "--apply"]) == 0
    assert capsys.readouterr().err.endswith("\nFixed 2 of 2 findings.\n")
    assert main(["fix", str(source), "--apply"]) == 0
    assert capsys.readouterr().err == "no findings\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no such terminals there")
def test_on_a_terminal_progress_leaves_the_diff_alone(source: Path) -> None:
    diff, shown = qcn_with_errors_on_a_terminal("fix", "load.py", cwd=source.parent)
    assert diff == qcn("fix", "load.py", cwd=source.parent).stdout
    assert "Looking for findings" in shown
    assert "Fixed" not in shown


def test_a_model_named_on_the_command_line_is_asked(source: Path) -> None:
    text = 'import subprocess\n\n\ndef run(name):\n    subprocess.run("ls " + name, shell=True)\n'
    source.write_text(text)

    async def answered() -> tuple["subprocess.CompletedProcess[str]", list[str]]:
        async with scripted_model() as model:
            model.text = '```python\ndef run(name):\n    subprocess.run(["ls", name])\n```'
            command = ("fix", source, "--apply", "--engine-url", model.url)
            return await asyncio.to_thread(qcn, *command), model.prompts

    done, prompts = asyncio.run(answered())
    assert done.returncode == 0, done.stderr
    assert "fixed by the model's answer 1: the finding is gone" in done.stderr
    assert 'subprocess.run(["ls", name])' in source.read_text()
    assert len(prompts) == 1


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
        ("{file}:4", "no finding there (the whole line)"),
        ("{file}:x", "no such file, and no finding"),
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


# --- Several findings ---------------------------------------------------------------------------

SHELL = 'import subprocess\n\n\ndef {0}(name):\n    subprocess.run("ls " + name, shell=True)\n'
SAFE = '```python\ndef {0}(name):\n    subprocess.run(["ls", name])\n```'


def test_files_are_fixed_side_by_side_and_told_in_their_order(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ask the model before either has an answer; the later one is answered first."""
    monkeypatch.setattr(fix, "SIDE_BY_SIDE", 2)
    source.unlink()
    first, second = (source.with_name(f"{name}.py") for name in ("first", "second"))
    for path in (first, second):
        path.write_text(SHELL.format(path.stem))

    async def answered() -> int:
        async with scripted_model() as model:
            wanted = fix.Wanted(source.parent, None, apply=True, model="scripted")
            options = {"engine": {"url": model.url}}
            running = asyncio.create_task(fix.fixed(wanted, options, as_json=False))
            asked = {}
            for _ in range(2):
                one = await asyncio.wait_for(model.asked.get(), DEADLINE_SECONDS)
                asked["first" if "first.py" in one.prompt else "second"] = one
            for name in ("second", "first"):
                asked[name].answer(SAFE.format(name))
            return await running

    assert asyncio.run(answered()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [one for one in lines if one.startswith("+++")] == ["+++ b/first.py", "+++ b/second.py"]
    for path in (first, second):
        assert '["ls", name]' in path.read_text()


def test_a_second_finding_of_a_file_is_fixed_in_what_the_first_fix_made(source: Path) -> None:
    source.write_text(SHELL.format("first") + SHELL.format("second").partition("\n")[2])

    async def answered() -> int:
        async with scripted_model() as model:
            command = ("fix", source, "--apply", "--engine-url", model.url)
            running = asyncio.create_task(asyncio.to_thread(qcn, *command))
            for name in ("first", "second"):
                (await model.asked.get()).answer(SAFE.format(name))
            return (await running).returncode

    assert asyncio.run(answered()) == 0
    assert source.read_text().count('["ls", name]') == 2
    assert "shell=True" not in source.read_text()


def test_what_stands_before_a_file_that_cannot_be_read_is_fixed(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.with_name("zz.py").write_bytes(b"# caf\xe9\n")
    assert main(["fix", str(source.parent), "--apply"]) == 1
    assert "not UTF-8" in capsys.readouterr().err
    assert source.read_text() == FIXED


def test_a_folder_that_cannot_be_read_is_told(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = source.parent / "zz"
    closed.mkdir()
    (closed / ".gitignore").write_text("a/**/b/**/c/**/d/**/e\n")  # too costly to follow
    assert main(["fix", str(source.parent), "--apply"]) == 1
    assert f"qcn: {closed}: its rules in" in capsys.readouterr().err
    assert source.read_text() == FIXED

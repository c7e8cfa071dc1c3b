"""`qcn fix`, as a process: what it prints, writes, and refuses."""

import asyncio
import errno
import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command_support import obeying_modes, qcn, qcn_with_errors_on_a_terminal
from deadlines import DEADLINE_SECONDS
from scripted_model import scripted_model

from qcn_lsp.cli import main
from qcn_lsp.commands import fix
from qcn_lsp.fixes.write import NotWritten, SourceFile

TEXT = "import yaml\n\n\ndef load(text):\n    return yaml.load(text)\n"
FIXED = TEXT.replace("yaml.load", "yaml.safe_load")
LATIN = "# coding: latin-1\n# café\n"
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
        (TEXT.encode("utf-32"), FIXED.encode("utf-32")),
        (LATIN.encode("latin-1") + TEXT.encode(), LATIN.encode("latin-1") + FIXED.encode()),
        (TEXT.replace("\n", "\r").encode(), FIXED.replace("\n", "\r").encode()),
    ],
    ids=[
        *("plain", "crlf", "no final newline", "mark", "beyond ascii", "utf-16", "utf-32"),
        *("declared", "cr"),
    ],
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
        ("{folder}/latin.py", "latin.py was not scanned: it is not UTF-8"),
        ("{folder}/binary.py", "binary.py was not scanned: it is binary"),
    ],
)
def test_what_cannot_be_fixed_is_explained(
    source: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.with_name("latin.py").write_bytes(b"# caf\xe9\n")
    source.with_name("binary.py").write_bytes(b"\0" + TEXT.encode())
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


@pytest.mark.parametrize("fixed", [LATIN + "'→'\n", LATIN.partition("\n")[2]])
def test_a_text_that_its_files_encoding_would_not_give_back_is_not_written(
    source: Path, fixed: str
) -> None:
    source.write_text(LATIN, encoding="latin-1")
    with pytest.raises(NotWritten, match="in latin-1, in which the fix cannot be written"):
        SourceFile.read(source).replace(fixed)
    assert source.read_text(encoding="latin-1") == LATIN


def test_lines_that_end_as_on_old_macs_are_called_as_the_scan_calls_them(source: Path) -> None:
    source.write_bytes(TEXT.replace("\n", "\r").encode() * 2)
    folder = source.parent
    assert "load.py:10:12: error" in qcn("scan", "load.py", cwd=folder).stdout
    for asked in ("load.py:10", "load.py:10:12"):
        told = qcn("fix", asked, cwd=folder).stderr
        assert f"\nload.py:10:{RULE}: fixed" in told


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written: No space left"),
        (NotWritten("load.py has changed meanwhile"), "load.py has changed meanwhile"),
    ],
    ids=["disk full", "changed"],
)
def test_a_file_that_cannot_be_written_is_told_and_the_others_are_fixed(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    why: str,
) -> None:
    source.with_name("other.py").write_text(TEXT)
    replace = SourceFile.replace

    def written(file: SourceFile, text: str) -> None:
        if file.path.name == source.name:
            raise error
        replace(file, text)

    monkeypatch.setattr(SourceFile, "replace", written)
    assert main(["fix", str(source.parent), "--apply"]) == 1
    told = capsys.readouterr().err
    assert why in told
    assert told.endswith("\nFixed 1 of 2 findings.\n")
    assert (source.read_text(), source.with_name("other.py").read_text()) == (TEXT, FIXED)


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


def test_lines_are_those_of_the_text_that_was_asked_about(source: Path) -> None:
    """The first fix adds a line above; equal lines, and two findings of one line, stay apart."""
    source.write_text(
        "import random\n\nimport yaml\n\n\ndef token():\n    return random.choice('abc')\n\n\n"
        "def load(text):\n    yaml.load(text)\n    yaml.load(text)\n"
        "    return yaml.load(text), yaml.load(text)\n"
    )
    done = qcn("fix", source)
    assert "+import secrets\n" in done.stdout
    assert [line for _, line in places(done.stderr)] == [7, 11, 12, 13, 13]
    assert places(done.stderr) == places(qcn("scan", source).stdout)


# --- Places, and what cannot be read ------------------------------------------------------------


def places(printed: str) -> list[tuple[str, int]]:
    """The file and line of each finding that `qcn scan` or `qcn fix` has printed."""
    found = re.findall(r"^(\S+?):(\d+):\S+: (?:error|warning|fixed)", printed, re.MULTILINE)
    return [(name, int(line)) for name, line in found]


@pytest.mark.parametrize("in_git", [True, False])
@pytest.mark.parametrize(
    ("here", "asked", "called"),
    [
        (".", ".", "pkg/load.py"),
        (".", "pkg", "pkg/load.py"),
        (".", "pkg/load.py", "pkg/load.py"),
        (".", "other/../pkg", "pkg/load.py"),
        (".", "way/pkg", "way/pkg/load.py"),
        ("pkg", ".", "load.py"),
        ("pkg", "load.py", "load.py"),
        ("other", "../pkg", "{top}/pkg/load.py"),
        ("other", "{top}/pkg/load.py", "{top}/pkg/load.py"),
    ],
)
def test_places_are_those_of_the_scan_and_can_be_asked_for(
    tmp_path: Path,
    here: str,
    asked: str,
    called: str,
    in_git: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    top = tmp_path / "top"
    for name in ("pkg", "other", *[".git"] * in_git):
        (top / name).mkdir(parents=True)
    (top / "pkg" / "load.py").write_text(TEXT)
    (top / "way").symlink_to(top)
    asked, called = asked.format(top=top), called.format(top=top)
    monkeypatch.chdir(top / here)
    assert main(["scan", asked]) == 1
    assert places(capsys.readouterr().out) == [(called, 5)]
    assert main(["fix", asked]) == 0
    told = capsys.readouterr().err
    assert places(told) == [(called, 5)]
    [finding] = re.findall(r"^(\S+): fixed by", told, re.MULTILINE)
    assert main(["fix", finding]) == 0
    assert "+    return yaml.safe_load(text)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("in_git", "here", "asked", "applied_in"),
    [
        (True, ".", "pkg", "."),
        (True, "pkg", "load.py", "."),
        (True, "pkg", "load.py", "pkg"),  # git counts from the repository's top there, too
        (False, ".", ".", "."),
        (False, ".", "pkg", "pkg"),
        (False, ".", "pkg/load.py", "pkg"),
    ],
)
def test_a_diff_counts_from_the_top_of_the_repository_or_else_from_the_folder(
    tmp_path: Path, in_git: bool, here: str, asked: str, applied_in: str
) -> None:
    source = tmp_path / "pkg" / "load.py"
    source.parent.mkdir()
    source.write_text(TEXT)
    if in_git:
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    diff = qcn("fix", asked, cwd=tmp_path / here).stdout
    subprocess.run(["git", "apply"], input=diff.encode(), cwd=tmp_path / applied_in, check=True)
    assert source.read_text() == FIXED


def test_no_file_name_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2Jb.py").write_text(TEXT)
    assert "\na\\x1b[2Jb.py:5:" in f"\n{qcn('fix', '.', cwd=tmp_path).stderr}"


def test_what_cannot_be_read_is_told_and_the_rest_is_fixed(source: Path) -> None:
    folder = source.parent
    (folder / "aa.py").write_bytes(b"# caf\xe9\n")
    (folder / "bb.py").write_bytes(b"\xff\xfex")
    for name in ("closed", "open"):
        (folder / name).mkdir()
        (folder / name / "last.py").write_text(TEXT)
    rules = "a/**/b/**/c/**/d/**/e\n"  # too costly to follow
    (folder / "closed" / ".gitignore").write_text(rules)
    done = qcn("fix", "shop", "--apply", cwd=folder.parent)
    assert done.returncode == 3
    assert source.read_text() == (folder / "open" / "last.py").read_text() == FIXED
    told = [line for line in done.stderr.splitlines() if line.startswith("qcn: ")]
    assert [line.partition(" was not scanned: it")[0] for line in told] == [
        "qcn: shop/aa.py",
        "qcn: shop/bb.py",
        "qcn: shop/closed",
    ]
    scanned = qcn("scan", "shop", cwd=folder.parent)
    assert scanned.returncode == 3
    assert sorted(told) == sorted(scanned.stderr.splitlines())
    assert done.stderr.endswith("\nFixed 2 of 2 findings.\n")


@pytest.mark.parametrize("asked", ["shop", "shop/sub"])
def test_a_folder_that_is_named_and_cannot_be_gone_through_is_told(
    source: Path, asked: str
) -> None:
    (source.parent / "sub").mkdir()
    (source.parent / ".gitignore").write_text("a/**/b/**/c/**/d/**/e\n")
    done = qcn("fix", asked, cwd=source.parent.parent)
    assert done.returncode == 3
    told = qcn("scan", asked, cwd=source.parent.parent).stderr
    assert told.startswith(f"qcn: {asked} was not scanned: its rules in .gitignore cannot be read")
    assert done.stderr == f"{told}no findings\n"


def test_what_the_system_does_not_let_it_read_is_told_and_the_rest_is_fixed(source: Path) -> None:
    closed = source.with_name("closed.py")
    closed.write_text(TEXT)
    closed.chmod(0)
    done = qcn("fix", ".", "--apply", cwd=source.parent, by=obeying_modes())
    assert done.returncode == 3
    assert "qcn: closed.py was not scanned: it cannot be read: Permission denied" in done.stderr
    assert source.read_text() == FIXED


@pytest.mark.parametrize(
    "content",
    [
        b"\0\xff" + TEXT.encode(),
        b"# Code generated by a program. DO NOT EDIT.\n" + TEXT.encode(),
        TEXT.encode() + b"x = '" + b"a" * 2_000 + b"'\n",
        b"# \n" * 100_000 + TEXT.encode(),
    ],
    ids=["binary", "generated", "data", "long"],
)
def test_what_the_scan_of_a_folder_skips_is_skipped(source: Path, content: bytes) -> None:
    source.write_bytes(content)
    assert qcn("scan", ".", cwd=source.parent).stdout == "0 findings in 0 files.\n"
    done = qcn("fix", ".", "--apply", cwd=source.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no findings\n")
    assert source.read_bytes() == content

"""`qcn complete FILE:LINE:COL`, through the real language server."""

import json
import os
from pathlib import Path

import pytest
from command_support import qcn
from link_support import StandInModel, processes_of
from standin_endpoint import COMPLETION, endpoint
from starlette.responses import JSONResponse

from qcn_lsp.cli import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file with an emoji before the cursor's column, and all three kinds of line end."""
    file = tmp_path / "shop" / "price.py"
    file.parent.mkdir()
    file.write_bytes('a = 1\r\nb = 2\rprint("🙂é", total(\n'.encode())
    return file


def test_the_suggestion_alone_is_printed(standin: StandInModel, source: Path) -> None:
    done = qcn("complete", f"{source}:3:19")
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer\n", "")


def test_columns_count_characters_and_lines_end_as_in_editors(
    embedded: StandInModel, source: Path
) -> None:
    done = qcn("complete", f"{source}:3:13", "--json")
    answer = json.loads(done.stdout)
    assert answer.pop("milliseconds") > 0
    place = {"file": str(source), "line": 3, "column": 13}
    assert answer == {**place, "suggestion": "answer", "reason": None}
    [event] = embedded.events("infill")
    assert event["body"]["input_prefix"].endswith('print("🙂é", ')
    assert event["body"]["input_suffix"] == "total(\n"
    assert event["body"]["filename"] == "price.py"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{file}", "expected FILE:LINE:COL"),
        ("{file}:3", "expected FILE:LINE:COL"),
        ("{file}:three:1", "two numbers"),
        ("{file}:0:1", "count from 1"),
        ("{file}:5:1", "has 4 lines; there is no line 5"),
        ("{file}:3:20", "columns 1 to 19, not 20"),
        ("{folder}/none.py:1:1", "No such file"),
        ("{folder}:1:1", "no ordinary file"),
        ("{folder}/fifo:1:1", "no ordinary file"),
        ("/dev/zero:1:1", "no ordinary file"),
        ("{folder}/large.py:1:1", "larger than 64 MiB"),
        ("{folder}/latin.py:1:1", "not UTF-8"),
        ("{folder}/binary.py:1:1", "binary"),
    ],
)
def test_a_place_that_is_none_is_explained(
    source: Path, place: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (source.parent / "latin.py").write_bytes(b"# caf\xe9")
    (source.parent / "binary.py").write_bytes(b"a\0b")
    os.mkfifo(source.parent / "fifo")
    with (source.parent / "large.py").open("wb") as large:
        large.truncate((64 << 20) + 1)
    assert main(["complete", place.format(file=source, folder=source.parent)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("qcn: ")
    assert message in printed.err


def test_an_engine_that_cannot_serve_is_an_error_with_its_reason(
    embedded: StandInModel, source: Path
) -> None:
    embedded.behave(state="errored", error="model.safetensors is cut short: download it again.")
    done = qcn("complete", f"{source}:1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "qcn: model.safetensors is cut short: download it again.\n"


def test_another_server_is_asked_with_the_token_of_a_file(runtime: Path, source: Path) -> None:
    token = runtime / "token"
    token.write_text("s3cret\n")
    with endpoint() as model:
        where = ("--engine-url", model.url, "--engine-token-file", token)
        done = qcn("complete", f"{source}:3:19", *where)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x, y\n", "")
    assert {headers["authorization"] for _, headers, _ in model.requests} == {"Bearer s3cret"}
    assert processes_of(runtime) == []


def test_where_nothing_is_suggested_stderr_says_so(runtime: Path, source: Path) -> None:
    nothing = {"index": 0, "text": "", "finish_reason": "stop"}
    with endpoint() as model:
        model.answers["/v1/completions"] = JSONResponse({**COMPLETION, "choices": [nothing]})
        done = qcn("complete", f"{source}:3:19", "--engine-url", model.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "no suggestion: the model offers nothing that fits here\n"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (".env", "PASSWORD=hunter2", ".env is a usual name for secrets"),
        ("deploy.py", "key = 'AKIAQ3EGRV2XLN5T7WZB' # hunter2", "it holds "),
        ("data.js", "hunter2 " * 300, "the line is longer than 2000 characters"),
    ],
)
def test_why_a_file_is_not_completed_in_is_told_without_its_text(
    embedded: StandInModel, tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    place = f"{tmp_path / name}:1:2"
    done = qcn("complete", place)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"no suggestion: {reason}")
    answer = json.loads(qcn("complete", place, "--json").stdout)
    assert answer["suggestion"] is None
    assert done.stderr == f"no suggestion: {answer['reason']}\n"
    assert "hunter2" not in done.stderr
    assert embedded.events("infill") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine-token-file", "{file}"), "goes with --engine-url"),
        (("--engine-url", "http://user:s3cret@localhost"), "without user name or password"),
        (("--engine-url", "http://h", "--engine-token-file", "{file}.no"), "No such file"),
        (("--engine-url", "http://h", "--engine-token-file", "{file}"), "must hold one word"),
    ],
)
def test_a_server_that_cannot_be_meant_is_explained(
    source: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text("two words")
    given = [option.format(file=source) for option in options]
    for command in (["complete", f"{source}:1:1"], ["demo", str(source.parent)]):
        assert main([*command, *given]) == 1
        said = capsys.readouterr().err
        assert message in said
        assert "s3cret" not in said

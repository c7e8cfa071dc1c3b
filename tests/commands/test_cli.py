"""`qcn` as a whole: usage, version, and what it leaves unloaded."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from command_support import qcn

from qcn_lsp.cli import main


def test_the_version_is_the_packages() -> None:
    assert qcn("--version").stdout == f"qcn {metadata.version('qcn-lsp')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-command",),
        ("engine",),
        ("engine", "explode"),
        ("complete",),
        ("doctor", "--no-such-option"),
        *[("bench", "--lengths", tokens) for tokens in ("many", "0", "-1")],
        *[("engine", "start", "--port", port) for port in ("many", "0", "65536", "-1", "9" * 5000)],
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_right(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert "usage: qcn" in printed.err
    assert printed.out == ""


def test_help_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys\n"
        "from qcn_lsp.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'httpx', 'rich', 'pygls', 'pydantic'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("command", ["scan", "fix"])
def test_what_asks_no_language_server_does_not_load_its_protocol(command: str) -> None:
    """Its types take longer to import than a file takes to be scanned."""
    code = f"import sys, qcn_lsp.commands.{command}; sys.exit('lsprotocol' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_output_that_cannot_be_written_is_one_sentence(
    runtime: Path, options: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qcn_lsp.cli", "engine", "status", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "qcn: No space left on device\n")

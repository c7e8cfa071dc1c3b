"""Helix in a terminal of the test's own, set up by the snippet of the page (utf-8)."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS
from neovim_support import answers
from setup_pages import snippet
from standin_endpoint import endpoint
from unpacked_editors import unpacked

pytestmark = pytest.mark.editors

BIN = Path(sys.executable).parent
ASK_FOR_MENU = "\x18"  # C-x
NEXT = "\x0e"  # C-n
ENTER, ESCAPE = "\r", "\x1b"


class Helix:
    """A running Helix, by what it writes to its terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._written = b""

    def type(self, keys: str) -> None:
        """Type keys; what was written before is seen no more."""
        self._written = b""
        os.write(self._terminal, keys.encode())

    def until(self, text: str, asking: str = "") -> None:
        """Wait until Helix writes a text to its terminal, and ask for it every now and then.

        The first time there may be nothing yet: the server only looks for its engine then.
        """
        end = time.monotonic() + DEADLINE_SECONDS
        while text.encode() not in self._written:
            assert time.monotonic() < end, f"never: {text}; but {self._written!r}"
            if select.select([self._terminal], [], [], 1)[0]:
                self._written += os.read(self._terminal, 1 << 16)
            else:
                os.write(self._terminal, asking.encode())


@contextmanager
def helix(file: Path, home: Path) -> Iterator[tuple[Helix, Path]]:
    """Run Helix on a file while the block runs, which must end it; gives its log as well."""
    log = home / "helix.log"
    terminal, inner = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    process = subprocess.Popen(
        [unpacked("hx"), "-vv", "--log", log, file],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=file.parent,
        start_new_session=True,
        env=os.environ
        | {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(home), "TERM": "xterm-256color"}
        | {"XDG_CONFIG_HOME": str(home / "config")},
    )
    os.close(inner)
    try:
        yield Helix(terminal), log
        process.wait(DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def set_up(home: Path, engine_url: str) -> None:
    """Configure Helix by the page, and the server to ask this engine."""
    settings = home / "config" / "helix" / "languages.toml"
    settings.parent.mkdir(parents=True)
    ours = snippet("helix", "toml").replace('"pylsp", ', "")
    engine = f'[language-server.qcn.config.qcn.engine]\nurl = "{engine_url}"\n'
    settings.write_text(f"{ours}\n{engine}")
    # Only the server's completions, so that the first is known.
    settings.with_name("config.toml").write_text("editor.word-completion.enable = false\n")


def test_what_is_completed_lands_behind_an_emoji(runtime: Path, project: Path) -> None:
    file = project / "a.py"
    file.write_text("a = '🙂'\n", encoding="utf-8")
    with endpoint() as model:
        answers(model, "len(a)")
        set_up(runtime, model.url)
        with helix(file, runtime) as (editor, log):
            editor.until("a.py")
            editor.type("o" + "s = '👋🏽🙂é'; n = ")
            editor.until("len(a)", asking=ASK_FOR_MENU)
            answers(model, "max(s)")
            editor.type(NEXT + ENTER + "  # 🙂" + ENTER + "t = '🙂'; u = ")
            editor.until("max(s)", asking=ASK_FOR_MENU)
            editor.type(NEXT + ENTER + ESCAPE)
            editor.until("NOR")  # read together, escape and a colon would be another key
            editor.type(":write-quit" + ENTER)
        prompts = [asked["prompt"] for asked in model.sent_to("/v1/completions")]
    assert file.read_text(encoding="utf-8") == (
        "a = '🙂'\ns = '👋🏽🙂é'; n = len(a)  # 🙂\nt = '🙂'; u = max(s)\n"
    )
    assert '"positionEncoding":"utf-8"' in log.read_text(encoding="utf-8")
    # The server's text was Helix's, behind each of those characters.
    assert any("n = len(a)  # 🙂\nt = '🙂'; u = <|fim_suffix|>" in prompt for prompt in prompts)


def test_a_finding_is_shown_where_it_stands(runtime: Path, project: Path) -> None:
    file = project / "load.py"
    file.write_text("import pickle, sys\ns = '🙂'; d = pickle.loads(sys.stdin.buffer.read())\n")
    set_up(runtime, "http://127.0.0.1:9")
    with helix(file, runtime) as (editor, _):
        editor.until("A pickle runs code when it is read.")
        editor.type("]d" + "i#" + ESCAPE)  # in front of the next finding
        editor.until("NOR")
        editor.type(":write-quit" + ENTER)
    assert "d = #pickle.loads" in file.read_text(encoding="utf-8")

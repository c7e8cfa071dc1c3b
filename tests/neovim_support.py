"""Neovim without a screen, driven from outside through its own socket.

Keys are typed as by a user, and what is seen is what Neovim has in its buffer and on its extmarks.
"""

import json
import os
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
from standin_endpoint import COMPLETION, Endpoint
from starlette.responses import JSONResponse
from unpacked_editors import unpacked

BIN = Path(sys.executable).parent
PLUGIN = Path(__file__).parents[1] / "editors" / "nvim"
WAIT_MS = int(1000 * DEADLINE_SECONDS)
VERSIONS = ["0.11", "0.12"]

# What the tests look at, the same in every version of Neovim.
LOOK = """
local answered
local function place()
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  return { vim.api.nvim_get_current_buf(), vim.b.changedtick, row, column }
end
local asked = {}
vim.api.nvim_create_autocmd('LspRequest', { callback = function(event)
  local request = event.data.request
  if request.method ~= 'textDocument/inlineCompletion' then return end
  if request.type == 'pending' then asked[event.data.request_id] = place() end
  if request.type == 'complete' then answered = asked[event.data.request_id] end
end })
local status = {}
vim.api.nvim_create_autocmd('User', { pattern = 'QcnStatus', callback = function(event)
  status = event.data
end })
qcn_test = {
  messages = {},
  place = place,
  status = function() return status end,
  -- A ready engine has answered for the place where the cursor is.
  settled = function()
    return status.kind == 'Normal' and status.message == '' and not status.busy
      and vim.deep_equal(answered, place())
  end,
  -- What is drawn at the cursor and is not in the buffer; nil where nothing is.
  ghost = function()
    local spaces = vim.api.nvim_get_namespaces()
    local space = spaces['nvim.lsp.inline_completion'] or spaces['qcn.ghost']
    local mark = space and vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true })[1]
    if not mark then return nil end
    local row, column = unpack(vim.api.nvim_win_get_cursor(0))
    assert(mark[2] == row - 1 and mark[3] == column, 'drawn elsewhere than at the cursor')
    local lines = { mark[4].virt_text, unpack(mark[4].virt_lines or {}) }
    return table.concat(vim.tbl_map(function(line)
      return table.concat(vim.tbl_map(function(chunk) return chunk[1] end, line))
    end, lines), '\\n')
  end,
  ours = function()
    return vim.tbl_filter(function(said) return vim.startswith(said, 'qcn:') end, qcn_test.messages)
  end,
  -- 0.11 does not tell a server's messages by `vim.notify`.
  said = function()
    return vim.fn.execute('messages') .. table.concat(qcn_test.messages, '\\n')
  end,
  served = function() return #vim.lsp.get_clients({ name = 'qcn', bufnr = 0 }) == 1 end,
}
-- Kept, not shown: an error's message would fail the remote call during which it comes.
vim.notify = function(message)
  table.insert(qcn_test.messages, message)
end
"""


def program(version: str) -> Path:
    """Return the Neovim of a version; skips the test where it is not there."""
    return BIN / "nvim" if version == "0.11" else unpacked("nvim")


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

    def edit(self, name: str) -> None:
        """Edit a file; returns when the server serves it."""
        self.type(f"<Esc>:edit! {name}<CR>")
        self.until(f"vim.fn.expand('%:t') == '{Path(name).name}' and qcn_test.served()")

    def lines(self) -> list[str]:
        lines = self.lua("vim.api.nvim_buf_get_lines(0, 0, -1, true)")
        assert isinstance(lines, list)
        return lines

    def cursor(self) -> tuple[int, int]:
        row, column = self.lua("vim.api.nvim_win_get_cursor(0)")
        return row, column

    def press(self, key: str) -> None:
        """Press a key that changes the buffer; returns when it has."""
        tick = self.lua("vim.b.changedtick")
        self.type(key)
        self.until(f"vim.b.changedtick > {tick}")

    def ghost_text(self) -> str | None:
        """Return what is drawn at the cursor but is not in the buffer."""
        text = self.lua("qcn_test.ghost()")
        assert text is None or isinstance(text, str)
        return text

    def until_ghost(self, text: str) -> None:
        """Wait until just this is drawn at the cursor."""
        self.until(f"qcn_test.ghost() == {json.dumps(text, ensure_ascii=False)}")

    def _ask(self, how: str, what: str) -> str:
        done = subprocess.run(
            [BIN / "nvim", "--server", self._socket, how, what],
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def started(
    version: str, runtime: Path, project: Path, *, setup: str = "{}", path: str = "", lua: str = ""
) -> Iterator[Neovim]:
    """Run a Neovim set up as its help says, with folders of its own, while the block runs.

    `setup` is what `require('qcn').setup` is called with, `lua` what stands before it in
    `init.lua`, `path` the folder in which the server is looked for first.
    """
    environment = os.environ | {
        f"XDG_{name}_HOME": str(runtime / name.lower()) for name in ("CONFIG", "DATA")
    }
    environment["PATH"] = f"{path or BIN}:/usr/bin:/bin"
    init = runtime / "init.lua"
    init.write_text(
        f"vim.opt.runtimepath:append({json.dumps(str(PLUGIN))})\n"
        f"{LOOK}{lua}\nrequire('qcn').setup({setup})\n"
    )
    socket = runtime / "nvim.sock"
    process = subprocess.Popen(
        [program(version), "--headless", "--clean", "-u", init, "--listen", socket, "-n"],
        cwd=project,
        stdin=subprocess.DEVNULL,
        env=environment,
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


def asking(model: Endpoint) -> str:
    """Return the options that have the server ask `model`."""
    return f"{{ settings = {{ engine = {{ url = '{model.url}' }} }} }}"


def answers(model: Endpoint, text: str) -> None:
    """Have the stand-in endpoint answer every request with `text`."""
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    model.answers["/v1/completions"] = JSONResponse({**COMPLETION, "choices": [choice]})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / ".git").mkdir(parents=True)
    return folder

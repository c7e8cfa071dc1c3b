-- Insert-mode keys that do something where there is a suggestion, and else what they did before.
--
-- "Before" is another plugin's mapping (nvim-cmp's or blink.cmp's, Neovim's own for snippets) or the
-- key's own meaning. A plugin that maps the key later, for the buffer, stands in front of ours and
-- falls back on it: blink.cmp and nvim-cmp do.

local M = {}

--- Return the keys to feed, and how, for what `key` meant before it was mapped.
local function meaning(key, before)
  if vim.tbl_isempty(before) then
    return key, 'n'
  end
  local keys = before.rhs
  if before.callback then
    keys = before.callback()
    if before.expr ~= 1 then
      return '', 'n'
    end
  elseif before.expr == 1 then
    keys = vim.api.nvim_eval(before.rhs)
  end
  return type(keys) == 'string' and keys or '', before.noremap == 1 and 'n' or 'm'
end

--- Map `key` to `action`, which returns whether there was anything to do.
---@param key string
---@param name string
---@param action fun(otherwise: fun()): boolean
function M.map(key, name, action)
  local before = vim.fn.maparg(key, 'i', false, true)
  if before.desc == 'qcn: ' .. name then
    return -- `setup()` was called again
  end
  local function as_before()
    local keys, mode = meaning(key, before)
    keys = vim.api.nvim_replace_termcodes(keys, true, true, true)
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

-- What a user's configuration calls; `:help qcn` describes it.

local M = {}

--- The version of qcn-lsp that this plugin comes with.
M.version = '0.1.0'

local ACTIONS = { 'accept', 'accept_word', 'accept_line', 'next', 'previous', 'dismiss' }

---@class qcn.Options
local defaults = {
  ---@type string[]? the server's command line; nil: `qcn-lsp` from the PATH
  cmd = nil,
  ---@type table section `qcn` of the server's settings: docs/settings.md
  settings = {},
  ---@type table<string, string|false> keys of insert mode; false: none
  keys = {
    accept = '<Tab>',
    accept_word = '<C-Right>',
    accept_line = '<C-End>',
    next = '<M-]>',
    previous = '<M-[>',
    dismiss = '<C-]>',
  },
}

-- 0.12 shows ghost text itself; before, this plugin does.
local function shows()
  return require(vim.lsp.inline_completion and 'qcn.builtin' or 'qcn.ghost')
end

--- Raise an error that names what is not an option, as it is written in `setup()`.
local function refuse_unknown(options, known, where)
  for name in pairs(options) do
    if not vim.tbl_contains(known, name) then
      local listed = table.concat(known, ', ')
      error(("qcn.setup: no such option: %s%s. There are: %s"):format(where, name, listed), 0)
    end
  end
end

--- Configure and start the server in every file, and map the keys. Call it once, in `init.lua`.
---@param options qcn.Options?
function M.setup(options)
  options = options or {}
  vim.validate('options', options, 'table')
  vim.validate('cmd', options.cmd, 'table', true)
  vim.validate('settings', options.settings, 'table', true)
  vim.validate('keys', options.keys, 'table', true)
  refuse_unknown(options, { 'cmd', 'settings', 'keys' }, '')
  refuse_unknown(options.keys or {}, ACTIONS, 'keys.')
  local chosen = vim.tbl_deep_extend('force', defaults, options)
  vim.lsp.config('qcn', { cmd = chosen.cmd, settings = { qcn = chosen.settings } })
  for _, action in ipairs(ACTIONS) do
    if chosen.keys[action] then
      require('qcn.keys').map(chosen.keys[action], action, M[action])
    end
  end
  vim.lsp.enable('qcn')
end

--- Show what `client` suggests while text is inserted into `buffer`; called when it attaches.
function M.attach(client, buffer)
  vim.api.nvim_set_hl(0, 'QcnGhost', { link = 'NonText', default = true })
  shows().attach(client, buffer)
  -- The user may have been waiting at the cursor until the server was there.
  vim.schedule(function()
    M.refresh(client)
  end)
end

--- Ask anew at the cursor.
function M.refresh(client)
  shows().refresh(client)
end

--- Put the suggestion into the buffer. Returns false when there is none, so that a mapping can fall
--- back on the key's own meaning; `otherwise` is called where that turns out only afterwards.
---@param otherwise fun()?
---@return boolean
function M.accept(otherwise)
  return shows().accept(require('qcn.parts').whole, otherwise)
end

--- The same with its first word.
function M.accept_word(otherwise)
  return shows().accept(require('qcn.parts').word, otherwise)
end

--- The same with its first line.
function M.accept_line(otherwise)
  return shows().accept(require('qcn.parts').line, otherwise)
end

--- Show the next suggestion for this place, if there are several.
---@return boolean
function M.next()
  return shows().cycle(1)
end

--- Show the one before.
---@return boolean
function M.previous()
  return shows().cycle(-1)
end

--- Take the suggestion away until something is typed.
---@return boolean whether there was one
function M.dismiss()
  return shows().dismiss()
end

--- Return a short text for the status line: empty where the server does not serve the buffer.
---@return string
function M.statusline()
  return require('qcn.status').statusline()
end

return M

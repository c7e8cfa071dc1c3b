-- The command `:Qcn`.

local M = {}

local function client()
  local found = vim.lsp.get_clients({ name = 'qcn', bufnr = 0 })[1]
    or vim.lsp.get_clients({ name = 'qcn' })[1]
  if not found then
    vim.notify('qcn: the server does not run: :checkhealth qcn', vim.log.levels.WARN)
  end
  return found
end

--- Turn all that the servers offer on or off, until Neovim is left.
local function enable(on)
  -- Also of those that start later, in other projects or after a crash.
  vim.lsp.config('qcn', { settings = { qcn = { enable = on } } })
  for _, one in ipairs(vim.lsp.get_clients({ name = 'qcn' })) do
    local section = vim.tbl_extend('force', (one.settings or {}).qcn or {}, { enable = on })
    one.settings = vim.tbl_extend('force', one.settings or {}, { qcn = section })
    one:notify('workspace/didChangeConfiguration', { settings = one.settings })
  end
end

--- Show lines in a window of their own, which `q` closes.
local function show(name, lines)
  vim.cmd('botright new')
  local buffer = vim.api.nvim_get_current_buf()
  vim.api.nvim_buf_set_lines(buffer, 0, -1, false, lines)
  vim.bo[buffer].buftype = 'nofile'
  vim.bo[buffer].bufhidden = 'wipe'
  vim.bo[buffer].modifiable = false
  vim.b[buffer].qcn_shows = name
  vim.keymap.set('n', 'q', '<Cmd>close<CR>', { buffer = buffer })
end

--- Return the engine's view of a context as lines, in the order in which the model reads it.
local function described(context)
  local lines = { ('%d tokens'):format(context.tokens or 0), '' }
  for _, segment in ipairs(context.segments or {}) do
    lines[#lines + 1] = ('%-8s %8d  %s'):format(segment.zone, segment.tokens, segment.path)
  end
  return lines
end

--- Return what the server says of itself as a text.
local function stated(state)
  local status = state.status
  local doing = status.message ~= '' and status.message or status.busy and 'working' or 'ready'
  local lines = { ('qcn-lsp %s: %s'):format(state.version, doing), 'model: ' .. state.model }
  for _, root in ipairs(state.roots) do
    local tokens = type(root.tokens) == 'number' and root.tokens .. ' tokens' or 'not read'
    lines[#lines + 1] = ('%s: %s'):format(root.name, tokens)
  end
  return table.concat(lines, '\n')
end

local commands = {
  status = function()
    local one = client()
    if one then
      one:request('qcn/state', vim.empty_dict(), function(problem, state)
        vim.notify(problem and 'qcn: ' .. problem.message or stated(state))
      end)
    end
  end,
  pause = function()
    enable(false)
  end,
  resume = function()
    enable(true)
  end,
  restart = function()
    require('qcn.server').restart()
  end,
  log = function()
    vim.cmd.tabedit(vim.fn.fnameescape(vim.lsp.log.get_filename()))
  end,
  context = function()
    local one = client()
    local folder = one and (one.workspace_folders or {})[1]
    if one and not folder then
      vim.notify('qcn: this file is in no project folder', vim.log.levels.WARN)
    elseif one then
      one:request('qcn/context', { uri = folder.uri }, function(problem, context)
        if problem then
          vim.notify('qcn: ' .. problem.message, vim.log.levels.WARN)
        else
          show('context', described(context))
        end
      end)
    end
  end,
  accept = function(part)
    local qcn = require('qcn')
    local action = ({ word = qcn.accept_word, line = qcn.accept_line })[part] or qcn.accept
    action()
  end,
  next = function()
    require('qcn').next()
  end,
  previous = function()
    require('qcn').previous()
  end,
}

--- Run `:Qcn NAME …`.
---@param arguments string[]
function M.run(arguments)
  local name = arguments[1] or 'status'
  if not commands[name] then
    local known = table.concat(vim.fn.sort(vim.tbl_keys(commands)), ', ')
    vim.notify(('qcn: no such command: %s. There are: %s'):format(name, known), vim.log.levels.ERROR)
    return
  end
  commands[name](unpack(arguments, 2))
end

--- Return the names that fit a command line typed so far.
---@param line string
---@return string[]
function M.complete(line)
  local words = vim.split(line, '%s+')
  local names = #words <= 2 and vim.fn.sort(vim.tbl_keys(commands))
    or (words[2] == 'accept' and { 'line', 'word' } or {})
  return vim.tbl_filter(function(name)
    return vim.startswith(name, words[#words])
  end, names)
end

return M

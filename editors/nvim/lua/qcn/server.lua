-- Starting the server, and what is said where it cannot be started or does not stay.

local M = {}

local MAX_CRASHES, WITHIN_MS = 5, 3 * 60 * 1000
local ROOT_MARKERS = { '.git', '.hg', 'pyproject.toml', 'package.json', 'Cargo.toml', 'go.mod' }

local crashes = {} ---@type integer[] when, in milliseconds
local given_up = false
local told = {} ---@type table<string, true>

local function tell_once(message, level)
  if not told[message] then
    told[message] = true
    vim.notify(message, level)
  end
end

--- Return the name of the program that is not there, or nil.
---@return string?
function M.missing()
  local command = vim.lsp.config.qcn.cmd
  local program = type(command) == 'table' and command[1]
  return program and vim.fn.executable(program) == 0 and program or nil
end

--- Say, once, that there is no server where one is wanted: Neovim only logs it.
function M.check()
  local program = vim.lsp.is_enabled('qcn') and M.missing()
  if program then
    local message = 'qcn: %s is not on the PATH. Install it: :help qcn-install'
    tell_once(message:format(program), vim.log.levels.WARN)
  end
end

--- Name the folder a buffer's server works in, unless the server is left alone.
function M.root_dir(buffer, on_dir)
  if not given_up then
    on_dir(vim.fs.root(buffer, ROOT_MARKERS))
  end
end

--- Compare the server's version with the plugin's: what both promise may change with the minor one.
function M.on_init(client)
  local function minor(version)
    return (version or 'none'):match('^%d+%.%d+')
  end
  local ours, theirs = require('qcn').version, (client.server_info or {}).version
  if minor(theirs) ~= minor(ours) then
    local message = 'qcn: the server is version %s, this plugin %s: update the older one'
    tell_once(message:format(theirs or 'unknown', ours), vim.log.levels.WARN)
  end
end

--- Start a server anew that has crashed; not for ever.
function M.on_exit(code, signal, client_id)
  vim.schedule(function()
    require('qcn.status').forget(client_id)
    local exiting = vim.v.exiting ~= vim.NIL
    if exiting or (code == 0 and signal == 0) or not vim.lsp.is_enabled('qcn') then
      return
    end
    local now = vim.uv.now()
    table.insert(crashes, now)
    crashes = vim.tbl_filter(function(at)
      return now - at < WITHIN_MS
    end, crashes)
    if #crashes < MAX_CRASHES then
      vim.lsp.enable('qcn')
    elseif not given_up then
      given_up = true
      local message = 'qcn: the server crashed %d times within 3 minutes and is left alone. '
        .. 'Why: :Qcn log. Again: :Qcn restart'
      vim.notify(message:format(#crashes), vim.log.levels.ERROR)
    end
  end)
end

--- Stop the server and start it anew, whatever became of it before.
function M.restart()
  given_up, crashes, told = false, {}, {}
  local clients = vim.lsp.get_clients({ name = 'qcn' })
  for _, client in ipairs(clients) do
    client:stop()
  end
  vim.wait(5000, function()
    return #vim.lsp.get_clients({ name = 'qcn' }) == 0
  end, 20)
  for _, client in ipairs(vim.lsp.get_clients({ name = 'qcn' })) do
    client:stop(true)
  end
  vim.lsp.enable('qcn')
end

return M

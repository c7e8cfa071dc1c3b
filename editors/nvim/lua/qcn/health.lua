-- `:checkhealth qcn`

local M = {}

local function check_server()
  local health, server = vim.health, require('qcn.server')
  local program = server.missing()
  if program then
    health.error(program .. ' is not on the PATH', { ':help qcn-install' })
    return
  end
  local command = vim.lsp.config.qcn.cmd
  if type(command) ~= 'table' then
    health.info('the server is started by a function of yours')
    return
  end
  local asking = vim.list_extend(vim.list_slice(command), { '--version' })
  local asked = vim.system(asking, { text = true }):wait(10000)
  local version = (asked.stdout or ''):match('^qcn%-lsp (%S+)')
  if asked.code ~= 0 or not version then
    health.error(command[1] .. ' does not run', { vim.trim(asked.stderr or ''), ':help qcn-install' })
  elseif version:match('^%d+%.%d+') ~= require('qcn').version:match('^%d+%.%d+') then
    local message = 'the server is version %s, this plugin %s'
    health.warn(message:format(version, require('qcn').version), { 'Update the older one.' })
  else
    health.ok(('qcn-lsp %s (%s)'):format(version, vim.fn.exepath(command[1])))
  end
end

local function check_running()
  local health = vim.health
  local clients = vim.lsp.get_clients({ name = 'qcn' })
  if not vim.lsp.is_enabled('qcn') then
    health.warn('not enabled', { "Call require('qcn').setup() or vim.lsp.enable('qcn')" })
  elseif #clients == 0 then
    health.info('enabled; it starts in the first file of a type')
  end
  for _, client in ipairs(clients) do
    local buffer = next(client.attached_buffers)
    local status = buffer and require('qcn.status').of(buffer)
    local folder = client.root_dir or 'single files'
    if status and status.kind == 'Error' then
      health.error(('%s: %s'):format(folder, status.message), { 'Run: qcn doctor' })
    elseif status and status.kind == 'Warning' then
      health.warn(('%s: %s'):format(folder, status.message), { 'Run: qcn doctor' })
    else
      local message = status and status.message ~= '' and status.message or 'running'
      health.ok(('%s: %s'):format(folder, message))
    end
  end
end

function M.check()
  local health = vim.health
  health.start('qcn: Neovim')
  if vim.fn.has('nvim-0.11') == 0 then
    health.error('Neovim 0.11 or newer is needed')
    return
  end
  local by = vim.lsp.inline_completion and 'vim.lsp.inline_completion' or 'this plugin'
  health.ok(('Neovim %s; ghost text by %s'):format(vim.version(), by))
  health.start('qcn: server')
  check_server()
  check_running()
end

return M

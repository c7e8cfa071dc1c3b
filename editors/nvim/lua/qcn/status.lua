-- What the server says of itself (`didChangeStatus`), for the status line and the commands.

local M = {}

---@class qcn.Status
---@field busy boolean
---@field kind 'Normal'|'Warning'|'Error'|'Inactive'
---@field message string

local NOTHING = { busy = false, kind = 'Normal', message = '' }
local said = {} ---@type table<integer, qcn.Status> by client id

--- Take note of what a server says; tells it on as the event `User QcnStatus`.
function M.on_status(client_id, status)
  local before = said[client_id] or NOTHING
  said[client_id] = status
  vim.cmd.redrawstatus({ bang = true })
  vim.api.nvim_exec_autocmds('User', { pattern = 'QcnStatus', data = status, modeline = false })
  -- The user may have been waiting at the cursor until the model was loaded.
  local ready = status.kind == 'Normal' and status.message == ''
  local client = vim.lsp.get_client_by_id(client_id)
  if client and ready and not (before.kind == 'Normal' and before.message == '') then
    require('qcn').refresh(client)
  end
end

--- Forget a server that has ended.
function M.forget(client_id)
  said[client_id] = nil
end

--- Return what the server of a buffer says; nil where there is none.
---@return qcn.Status?
function M.of(buffer)
  local client = vim.lsp.get_clients({ name = 'qcn', bufnr = buffer })[1]
  return client and (said[client.id] or NOTHING)
end

--- Return a short text for the status line of the current buffer.
---@return string
function M.statusline()
  local status = M.of(0)
  if not status then
    return ''
  end
  local signs = { Error = ' ✗', Warning = ' !', Inactive = ' off' }
  return 'qcn' .. (signs[status.kind] or status.busy and ' …' or '')
end

return M

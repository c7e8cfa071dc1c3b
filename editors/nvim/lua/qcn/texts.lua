-- Documents whose text the server has, as an explanation that is still being written: asked for
-- when one is opened, and again whenever the server says that there is more.

local M = {}

local owners = {} ---@type table<string, integer> the client that has a document's text

local function read(uri)
  local buffer, client = vim.fn.bufnr(uri), vim.lsp.get_client_by_id(owners[uri] or -1)
  if buffer == -1 or not client then
    return
  end
  client:request('workspace/textDocumentContent', { uri = uri }, function(problem, found)
    if problem or not vim.api.nvim_buf_is_loaded(buffer) then
      return
    end
    local lines = vim.split((found.text:gsub('\n+$', '')), '\n')
    vim.bo[buffer].modifiable = true
    vim.api.nvim_buf_set_lines(buffer, 0, -1, false, lines)
    vim.bo[buffer].modifiable = false
  end)
end

--- Fill the buffer of a document that is opened; it is no file, and no server looks at it.
function M.open(buffer)
  vim.bo[buffer].buftype = 'nofile'
  vim.bo[buffer].swapfile = false
  vim.bo[buffer].modifiable = false
  vim.bo[buffer].filetype = 'markdown'
  read(vim.api.nvim_buf_get_name(buffer))
end

--- Show a document, and note whose it is.
function M.on_show(problem, params, context)
  if vim.startswith(params.uri, 'qcn:') then
    owners[params.uri] = context.client_id
  end
  return vim.lsp.handlers['window/showDocument'](problem, params, context)
end

--- Hear that there is more of a text.
function M.on_refresh(_, params)
  read(params.uri)
  return vim.NIL
end

return M

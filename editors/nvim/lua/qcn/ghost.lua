-- Ghost text for Neovim 0.11, which has no inline completion of its own.
--
-- A suggestion is shown only for the very text and cursor it was asked for: any change or movement
-- takes it away and asks again (the server answers from its cache where what was typed agrees with
-- what it suggested). Accepting replaces the range the server named, which ends at the cursor.

local M = {}

local METHOD = 'textDocument/inlineCompletion'
local AUTOMATIC = 2
local namespace = vim.api.nvim_create_namespace('qcn.ghost')

---@class qcn.Shown What stands on the screen and is not yet in the buffer.
---@field buffer integer
---@field tick integer the buffer's changedtick it was made for
---@field row integer 0-based
---@field from integer first byte of the replaced range
---@field to integer byte after it: the cursor
---@field text string what to put there

local shown ---@type qcn.Shown?
local cancel_request ---@type fun()?
local loading = {} ---@type table<integer, boolean> by client id

--- Return the lines of a text, which ends them as the document does; a buffer's lines hold no CR.
local function split_lines(text)
  return vim.split(text, '\r?\n')
end

local function clear()
  if cancel_request then
    cancel_request()
    cancel_request = nil
  end
  if shown and vim.api.nvim_buf_is_valid(shown.buffer) then
    vim.api.nvim_buf_clear_namespace(shown.buffer, namespace, 0, -1)
  end
  shown = nil
end

--- Draw an item behind the cursor, if it continues what stands before it.
local function show(buffer, client, item)
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  row = row - 1
  local line = vim.api.nvim_get_current_line()
  local range = item.range
  if not range or range.start.line ~= row or range['end'].line ~= row then
    return
  end
  local from = vim.str_byteindex(line, client.offset_encoding, range.start.character, false)
  local to = vim.str_byteindex(line, client.offset_encoding, range['end'].character, false)
  local typed = line:sub(from + 1, to)
  if to ~= column or not vim.startswith(item.insertText, typed) then
    return
  end
  local lines = split_lines(item.insertText:sub(#typed + 1))
  local below = {}
  for index = 2, #lines do
    below[#below + 1] = { { lines[index], 'QcnGhost' } }
  end
  vim.api.nvim_buf_set_extmark(buffer, namespace, row, column, {
    virt_text = { { lines[1], 'QcnGhost' } },
    virt_text_pos = 'inline',
    virt_lines = below,
    hl_mode = 'combine',
  })
  shown = {
    buffer = buffer,
    tick = vim.api.nvim_buf_get_changedtick(buffer),
    row = row,
    from = from,
    to = to,
    text = item.insertText,
  }
end

--- Ask for a suggestion at the cursor.
local function request(client, buffer)
  clear()
  if vim.api.nvim_get_current_buf() ~= buffer or not vim.startswith(vim.fn.mode(), 'i') then
    return
  end
  local tick = vim.api.nvim_buf_get_changedtick(buffer)
  local cursor = vim.api.nvim_win_get_cursor(0)
  local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
  params.context = { triggerKind = AUTOMATIC }
  local sent, id = client:request(METHOD, params, function(problem, answer)
    cancel_request = nil
    local same = vim.api.nvim_get_current_buf() == buffer
      and vim.api.nvim_buf_get_changedtick(buffer) == tick
      and vim.deep_equal(vim.api.nvim_win_get_cursor(0), cursor)
      and vim.startswith(vim.fn.mode(), 'i')
    if problem or not answer or not same then
      return
    end
    local item = (answer.items or answer)[1]
    if item and type(item.insertText) == 'string' then
      show(buffer, client, item)
    end
  end, buffer)
  if sent and id then
    cancel_request = function()
      client:cancel_request(id)
    end
  end
end

--- Show suggestions of `client` while text is inserted into `buffer`.
function M.attach(client, buffer)
  vim.api.nvim_set_hl(0, 'QcnGhost', { link = 'NonText', default = true })
  local group = vim.api.nvim_create_augroup('qcn.ghost.' .. buffer, {})
  vim.api.nvim_create_autocmd({ 'TextChangedI', 'CursorMovedI', 'InsertEnter' }, {
    group = group,
    buffer = buffer,
    callback = vim.schedule_wrap(function() -- at InsertEnter the mode is still the old one
      if vim.api.nvim_get_current_buf() ~= buffer then
        return
      end
      -- Typing a character moves the cursor too: both events mean one request.
      local tick = vim.api.nvim_buf_get_changedtick(buffer)
      local place = { tick, unpack(vim.api.nvim_win_get_cursor(0)) }
      if not vim.deep_equal(place, vim.b[buffer].qcn_asked_at) then
        vim.b[buffer].qcn_asked_at = place
        request(client, buffer)
      end
    end),
  })
  vim.api.nvim_create_autocmd({ 'InsertLeave', 'BufLeave' }, {
    group = group,
    buffer = buffer,
    callback = function()
      vim.b[buffer].qcn_asked_at = nil
      clear()
    end,
  })
  vim.api.nvim_create_autocmd('LspDetach', {
    group = group,
    buffer = buffer,
    callback = function(event)
      if event.data.client_id == client.id then
        clear()
        vim.api.nvim_del_augroup_by_id(group)
      end
    end,
  })
end

--- Ask again once the model is loaded: the user may be waiting at the cursor for it.
function M.on_status(client_id, status)
  local ready = status.kind == 'Normal' and status.message == ''
  if loading[client_id] and ready then
    loading[client_id] = nil
    local client, buffer = vim.lsp.get_client_by_id(client_id), vim.api.nvim_get_current_buf()
    if client and vim.lsp.buf_is_attached(buffer, client_id) and not vim.lsp.inline_completion then
      request(client, buffer)
    end
  elseif not ready then
    loading[client_id] = true
  end
end

--- Return what is suggested at the cursor, or nil.
---@return string?
function M.suggestion()
  return shown and shown.text:sub(shown.to - shown.from + 1)
end

--- Put the suggestion into the buffer. Returns false when there is none, so that a mapping can fall
--- back on the key's own meaning.
---@return boolean
function M.accept()
  local taken = shown
  if not taken then
    return false
  end
  -- An expression mapping must not change the buffer itself.
  vim.schedule(function()
    if taken ~= shown or vim.api.nvim_buf_get_changedtick(taken.buffer) ~= taken.tick then
      return
    end
    clear()
    local lines = split_lines(taken.text)
    vim.api.nvim_buf_set_text(taken.buffer, taken.row, taken.from, taken.row, taken.to, lines)
    local column = #lines[#lines] + (#lines == 1 and taken.from or 0)
    vim.api.nvim_win_set_cursor(0, { taken.row + #lines, column })
  end)
  return true
end

return M

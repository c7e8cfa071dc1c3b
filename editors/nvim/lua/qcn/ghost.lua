-- Ghost text for Neovim 0.11, which has no inline completion of its own.
--
-- A suggestion is a text to insert at the place where the cursor was. While what is typed is how it
-- begins, and nothing else in the buffer has changed, the rest of it stays on the screen, within the
-- same event as the keystroke: nothing flickers, and nobody is asked. Anything else takes it away
-- and asks again (the server waits for a pause in the typing). An answer is shown only for the very
-- text and cursor it was asked for.

local M = {}

local METHOD = 'textDocument/inlineCompletion'
local AUTOMATIC = 2
local namespace = vim.api.nvim_create_namespace('qcn.ghost')

---@class qcn.Shown
---@field buffer integer
---@field row integer 0-based line it begins on
---@field column integer byte it begins at
---@field items string[] texts to insert there, lines ended by "\n"
---@field index integer of the one shown
---@field typed string how much of it has been typed
---@field before string what stands before it on its line
---@field after string what stands behind it on its last line
---@field lines integer how many the buffer had
---@field changed_elsewhere boolean?

local shown ---@type qcn.Shown?
local cancel_request ---@type fun()?
local asked ---@type { buffer: integer, tick: integer, row: integer, column: integer }?

local function take_away()
  if shown and vim.api.nvim_buf_is_valid(shown.buffer) then
    vim.api.nvim_buf_clear_namespace(shown.buffer, namespace, 0, -1)
  end
  shown = nil
end

local function clear()
  if cancel_request then
    cancel_request()
    cancel_request = nil
  end
  take_away()
end

local function place(buffer)
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  local tick = vim.api.nvim_buf_get_changedtick(buffer)
  return { buffer = buffer, tick = tick, row = row - 1, column = column }
end

--- Return what is left of the suggestion behind the cursor; nil where it no longer fits.
local function rest()
  if not shown or shown.changed_elsewhere then
    return nil
  end
  local buffer, here = shown.buffer, place(shown.buffer)
  local is_behind = here.row > shown.row or (here.row == shown.row and here.column >= shown.column)
  if not is_behind or vim.api.nvim_get_current_buf() ~= buffer then
    return nil
  end
  local first = vim.api.nvim_buf_get_lines(buffer, shown.row, shown.row + 1, false)[1]
  local last = vim.api.nvim_get_current_line()
  if not first or #first < shown.column or first:sub(1, shown.column) ~= shown.before then
    return nil
  end
  local between =
    vim.api.nvim_buf_get_text(buffer, shown.row, shown.column, here.row, here.column, {})
  local typed, text = table.concat(between, '\n'), shown.items[shown.index]
  local fits = vim.startswith(text, typed)
    and vim.startswith(typed, shown.typed) -- what was deleted is not offered again
    and last:sub(here.column + 1) == shown.after
    and vim.api.nvim_buf_line_count(buffer) == shown.lines + #between - 1
  local left = fits and text:sub(#typed + 1) or ''
  return left:find('%S') and left or nil, typed
end

--- Draw what is left of the suggestion behind the cursor.
local function draw(text)
  local here, lines = place(shown.buffer), vim.split(text, '\n')
  local below = {}
  for index = 2, #lines do
    below[#below + 1] = { { lines[index], 'QcnGhost' } }
  end
  vim.api.nvim_buf_clear_namespace(shown.buffer, namespace, 0, -1)
  vim.api.nvim_buf_set_extmark(shown.buffer, namespace, here.row, here.column, {
    virt_text = { { lines[1], 'QcnGhost' } },
    virt_text_pos = 'inline',
    virt_lines = below,
    hl_mode = 'combine',
  })
end

--- Return the texts of those items that continue what stands before the cursor.
local function continuations(client, items)
  local here, line = place(0), vim.api.nvim_get_current_line()
  local texts = {}
  for _, item in ipairs(items) do
    local range, text = item.range, item.insertText
    if
      type(text) == 'string'
      and range
      and range.start.line == here.row
      and range['end'].line == here.row
    then
      local from = vim.str_byteindex(line, client.offset_encoding, range.start.character, false)
      local to = vim.str_byteindex(line, client.offset_encoding, range['end'].character, false)
      local typed = line:sub(from + 1, to)
      if to == here.column and vim.startswith(text, typed) then
        -- The document's line ends; a buffer's lines hold none.
        texts[#texts + 1] = (text:sub(#typed + 1):gsub('\r\n', '\n'))
      end
    end
  end
  return texts
end

local function show(client, buffer, items)
  local texts = continuations(client, items)
  local here, line = place(buffer), vim.api.nvim_get_current_line()
  if #texts == 0 then
    return
  end
  shown = {
    buffer = buffer,
    row = here.row,
    column = here.column,
    items = texts,
    index = 1,
    typed = '',
    before = line:sub(1, here.column),
    after = line:sub(here.column + 1),
    lines = vim.api.nvim_buf_line_count(buffer),
  }
  draw(texts[1])
end

--- Whether text is being inserted into `buffer` and no menu of Neovim's own is in the way.
local function is_inserting(buffer)
  return vim.api.nvim_get_current_buf() == buffer
    and vim.startswith(vim.fn.mode(), 'i')
    and vim.fn.pumvisible() == 0
    and vim.bo[buffer].modifiable
end

local function request(client, buffer)
  clear()
  if not is_inserting(buffer) then
    return
  end
  local here = place(buffer)
  asked = here
  local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
  params.context = { triggerKind = AUTOMATIC }
  local sent, id = client:request(METHOD, params, function(problem, answer)
    if asked ~= here then
      return
    end
    cancel_request = nil
    local same = is_inserting(buffer) and vim.deep_equal(place(buffer), here)
    if same and answer and not problem then
      show(client, buffer, answer.items or answer)
    end
  end, buffer)
  if sent and id then
    cancel_request = function()
      client:cancel_request(id)
    end
  end
end

--- Keep what still fits, else ask; for a place that was asked about, do nothing.
local function follow(client, buffer)
  if not is_inserting(buffer) then
    clear()
    return
  end
  local left, typed = rest()
  if left then
    shown.typed = typed
    draw(left)
  elseif not vim.deep_equal(asked, place(buffer)) then
    request(client, buffer)
  end
end

--- Show suggestions of `client` while text is inserted into `buffer`.
function M.attach(client, buffer)
  local group = vim.api.nvim_create_augroup('qcn.ghost.' .. buffer, {})
  local function on(events, callback)
    vim.api.nvim_create_autocmd(events, { group = group, buffer = buffer, callback = callback })
  end
  on({ 'TextChangedI', 'TextChangedP', 'CursorMovedI' }, function()
    follow(client, buffer)
  end)
  -- At these events the mode, or the menu, is still the old one.
  on(
    { 'InsertEnter', 'CompleteDone' },
    vim.schedule_wrap(function()
      if vim.api.nvim_get_current_buf() == buffer then
        follow(client, buffer)
      end
    end)
  )
  on({ 'InsertLeave', 'BufLeave' }, function()
    asked = nil
    clear()
  end)
  on('LspDetach', function(event)
    if event.data.client_id == client.id then
      asked = nil
      clear()
      vim.api.nvim_del_augroup_by_id(group)
    end
  end)
  vim.api.nvim_buf_attach(buffer, false, {
    on_lines = function(_, _, _, first, last)
      if not client.attached_buffers[buffer] then
        return true -- ends this
      end
      if shown and shown.buffer == buffer then
        local end_row = shown.row + select(2, shown.typed:gsub('\n', ''))
        if first < shown.row or last > end_row + 1 then
          shown.changed_elsewhere = true
        end
      end
    end,
  })
end

--- Ask again at the cursor, if `client` serves the buffer there.
function M.refresh(client)
  local buffer = vim.api.nvim_get_current_buf()
  if vim.lsp.buf_is_attached(buffer, client.id) and not rest() then
    request(client, buffer)
  end
end

--- Return what is suggested at the cursor, or nil.
---@return string?
function M.suggestion()
  return (rest())
end

--- Put a part of the suggestion into the buffer; false when there is none.
---@param part fun(text: string): string
---@return boolean
function M.accept(part)
  local text = rest()
  if not text or not is_inserting(shown.buffer) then
    return false
  end
  local here, lines = place(shown.buffer), vim.split(part(text), '\n')
  vim.api.nvim_buf_set_text(here.buffer, here.row, here.column, here.row, here.column, lines)
  local column = #lines[#lines] + (#lines == 1 and here.column or 0)
  vim.api.nvim_win_set_cursor(0, { here.row + #lines, column })
  local left, typed = rest()
  if left then
    shown.typed = typed
    draw(left)
  else
    clear()
  end
  return true
end

--- Show another of the suggestions for this place, `count` further on.
---@return boolean
function M.cycle(count)
  if not rest() or #shown.items == 1 then
    return false
  end
  local before = shown.index
  repeat
    shown.index = (shown.index - 1 + count) % #shown.items + 1
  until rest()
  draw(rest())
  return shown.index ~= before
end

--- Take the suggestion away until something is typed.
---@return boolean
function M.dismiss()
  local was_there = rest() ~= nil
  clear()
  return was_there
end

return M

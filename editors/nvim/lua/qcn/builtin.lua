-- Ghost text by `vim.lsp.inline_completion`, which Neovim has from 0.12 on.
--
-- It shows and asks by itself. Accepting goes through here: Neovim replaces the range that was named
-- when it asked, so that what has been typed since would stand there twice. We insert what is left of
-- the suggestion behind what is typed, and nothing where it does not fit.

local M = {}

--- Show suggestions of `client` in `buffer`.
function M.attach(client, buffer)
  vim.lsp.inline_completion.enable(true, { bufnr = buffer, client_id = client.id })
end

--- Ask again at the cursor, which Neovim does when it moves.
function M.refresh(client)
  local buffer = vim.api.nvim_get_current_buf()
  if vim.lsp.buf_is_attached(buffer, client.id) and vim.startswith(vim.fn.mode(), 'i') then
    vim.api.nvim_exec_autocmds('CursorMovedI', { buffer = buffer, modeline = false })
  end
end

--- Return what is left of an item behind the cursor; nil where it does not fit.
---@param item vim.lsp.inline_completion.Item
local function rest(item)
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  if type(item.insert_text) ~= 'string' or not item.range then
    return nil
  end
  local start_row, start_column = item.range:to_extmark()
  local is_behind = row - 1 > start_row or (row - 1 == start_row and column >= start_column)
  if not is_behind or start_row >= vim.api.nvim_buf_line_count(0) then
    return nil
  end
  local between = vim.api.nvim_buf_get_text(0, start_row, start_column, row - 1, column, {})
  local typed, text = table.concat(between, '\n'), item.insert_text:gsub('\r\n', '\n')
  local left = vim.startswith(text, typed) and text:sub(#typed + 1) or ''
  return left:find('%S') and left or nil
end

--- Put a part of the suggestion into the buffer; false when there is none.
---@param part fun(text: string): string
---@param otherwise fun()? called when what is shown no longer fits
---@return boolean
function M.accept(part, otherwise)
  return vim.lsp.inline_completion.get({
    on_accept = function(item)
      local text = rest(item)
      if not text then
        return otherwise and otherwise()
      end
      local row, column = unpack(vim.api.nvim_win_get_cursor(0))
      local lines = vim.split(part(text), '\n')
      vim.api.nvim_buf_set_text(0, row - 1, column, row - 1, column, lines)
      local last = #lines[#lines] + (#lines == 1 and column or 0)
      vim.api.nvim_win_set_cursor(0, { row + #lines - 1, last })
    end,
  })
end

--- Show another of the suggestions for this place.
---@return boolean
function M.cycle(count)
  vim.lsp.inline_completion.select({ count = count })
  return true
end

--- Take the suggestion away until something is typed.
---@return boolean
function M.dismiss()
  return vim.lsp.inline_completion.get({ on_accept = function() end })
end

return M

-- The beginning of a suggestion that one key accepts.

local M = {}

---@param text string
---@return string
function M.whole(text)
  return text
end

--- Return the first line; with the line end before it, where the suggestion begins with one.
function M.line(text)
  return text:match('^\n*[^\n]*')
end

--- Return the first word, or run of other characters, with the space before it. Characters beyond
--- ASCII count as letters: none is cut in two.
function M.word(text)
  return text:match('^%s*[%w_\128-\255]+') or text:match('^%s*[^%w_%s\128-\255]+') or text
end

return M

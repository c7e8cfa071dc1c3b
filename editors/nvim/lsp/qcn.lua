-- The configuration that `vim.lsp.enable('qcn')` starts. Settings go into `settings.qcn`
-- (docs/settings.md): vim.lsp.config('qcn', { settings = { qcn = { … } } })

---@type vim.lsp.Config
return {
  cmd = { 'qcn-lsp' },
  root_markers = { '.git', '.hg', 'pyproject.toml', 'package.json', 'Cargo.toml', 'go.mod' },
  -- True of 0.11 too, with the ghost text of this plugin.
  capabilities = { textDocument = { inlineCompletion = { dynamicRegistration = false } } },
  handlers = {
    didChangeStatus = function(_, status, context)
      require('qcn.ghost').on_status(context.client_id, status)
    end,
  },
  on_attach = function(client, buffer)
    if vim.lsp.inline_completion then -- Neovim 0.12 shows ghost text itself
      vim.lsp.inline_completion.enable(true, { bufnr = buffer, client_id = client.id })
    else
      require('qcn.ghost').attach(client, buffer)
    end
  end,
}

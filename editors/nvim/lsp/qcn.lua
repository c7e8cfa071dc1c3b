-- The configuration that `vim.lsp.enable('qcn')` starts. Settings go into `settings.qcn`
-- (docs/settings.md): vim.lsp.config('qcn', { settings = { qcn = { … } } })

---@type vim.lsp.Config
return {
  cmd = { 'qcn-lsp' },
  root_dir = function(buffer, on_dir)
    require('qcn.server').root_dir(buffer, on_dir)
  end,
  -- True of 0.11 too, with the ghost text of this plugin.
  capabilities = {
    textDocument = { inlineCompletion = { dynamicRegistration = false } },
    workspace = { textDocumentContent = { dynamicRegistration = false } },
  },
  handlers = {
    didChangeStatus = function(_, status, context)
      require('qcn.status').on_status(context.client_id, status)
    end,
    ['window/showDocument'] = function(...)
      return require('qcn.texts').on_show(...)
    end,
    ['workspace/textDocumentContent/refresh'] = function(...)
      return require('qcn.texts').on_refresh(...)
    end,
  },
  on_init = function(client)
    require('qcn.server').on_init(client)
  end,
  on_exit = function(code, signal, client_id)
    require('qcn.server').on_exit(code, signal, client_id)
  end,
}

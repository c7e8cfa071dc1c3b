-- What is there without `setup()`: the command `:Qcn`, and ghost text wherever the server attaches.

if vim.g.loaded_qcn or vim.fn.has('nvim-0.11') == 0 then
  return
end
vim.g.loaded_qcn = true

local group = vim.api.nvim_create_augroup('qcn', {})
-- Not `on_attach` of the configuration, which a user's own would replace.
vim.api.nvim_create_autocmd('LspAttach', {
  group = group,
  callback = function(event)
    local client = vim.lsp.get_client_by_id(event.data.client_id)
    if client and client.name == 'qcn' then
      require('qcn').attach(client, event.buf)
    end
  end,
})
vim.api.nvim_create_autocmd('FileType', {
  group = group,
  callback = function(event)
    if vim.bo[event.buf].buftype == '' then
      require('qcn.server').check()
    end
  end,
})

vim.api.nvim_create_autocmd('BufReadCmd', {
  group = group,
  pattern = 'qcn://*',
  callback = function(event)
    require('qcn.texts').open(event.buf)
  end,
})

vim.api.nvim_create_user_command('Qcn', function(command)
  require('qcn.commands').run(command.fargs)
end, {
  nargs = '*',
  desc = 'qcn-lsp: status, pause, resume, restart, context, log, accept, next, previous',
  complete = function(_, line)
    return require('qcn.commands').complete(line)
  end,
})

"""The language server: protocol, features, settings, the `qcn` command. Never imports torch."""

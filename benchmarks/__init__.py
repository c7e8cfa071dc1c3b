"""Speed of qcn-lsp beside its peers; README.md tells how to run and read it."""

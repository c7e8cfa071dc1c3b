"""What `qcn eval` asks of a model, and how the answers are scored."""

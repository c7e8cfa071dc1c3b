"""The repository as the model reads it: built once, kept up to date, named in completions."""

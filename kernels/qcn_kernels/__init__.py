"""One folder per operation of the model; each has a plain-torch reference."""

"""Checkpoints as others publish them: GGUF, GPTQ and AWQ, read as if they were ours."""

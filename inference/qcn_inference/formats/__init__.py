"""Checkpoints as others publish them: GGUF, GPTQ and AWQ, read as if they were ours."""

from qcn_inference.formats.opening import open_source
from qcn_inference.formats.source import Source

__all__ = ["Source", "open_source"]

"""Causal grouped-query attention over a KV cache. See README.md."""

from qcn_kernels.attention.cpu import attention, attention_step

__all__ = ["attention", "attention_step"]

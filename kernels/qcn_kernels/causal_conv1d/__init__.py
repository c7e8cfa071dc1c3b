"""Depthwise causal convolution over time with a carried state. See README.md."""

from qcn_kernels.causal_conv1d.reference import causal_conv1d, causal_conv1d_step

__all__ = ["causal_conv1d", "causal_conv1d_step"]

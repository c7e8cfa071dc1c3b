"""Root mean square norms, plain and gated. See README.md."""

from qcn_kernels.rms_norm.reference import gated_rms_norm, l2_norm, rms_norm

__all__ = ["gated_rms_norm", "l2_norm", "rms_norm"]

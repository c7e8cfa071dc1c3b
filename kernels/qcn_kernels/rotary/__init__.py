"""Rotary position embedding of the first dimensions of a head. See README.md."""

from qcn_kernels.rotary.reference import apply_rotary, rotary_tables

__all__ = ["apply_rotary", "rotary_tables"]

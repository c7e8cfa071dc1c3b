"""Weights of few bits in groups, in all published layouts. See README.md."""

from qcn_kernels.groupwise.matrices import PARTS, GroupwiseMatrices, concatenate, from_parts
from qcn_kernels.groupwise.quantise import quantise
from qcn_kernels.groupwise.reference import pack, pack_halves, unpack

__all__ = [
    "PARTS",
    "GroupwiseMatrices",
    "concatenate",
    "from_parts",
    "pack",
    "pack_halves",
    "quantise",
    "unpack",
]

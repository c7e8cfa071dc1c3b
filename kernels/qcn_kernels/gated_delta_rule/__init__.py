"""The gated delta rule: chunks for prefill, a step for decode, drafts verified. See README.md."""

from qcn_kernels.gated_delta_rule.chunked import CHUNK_SIZE, chunk_gated_delta_rule
from qcn_kernels.gated_delta_rule.grid import ChunkGrid, chunk_grid
from qcn_kernels.gated_delta_rule.on_grid import gated_delta_rule_on_grid
from qcn_kernels.gated_delta_rule.step import gated_delta_rule_step
from qcn_kernels.gated_delta_rule.verify import (
    Verified,
    commit_gated_delta_rule,
    verify_gated_delta_rule,
)

__all__ = [
    "CHUNK_SIZE",
    "ChunkGrid",
    "Verified",
    "chunk_gated_delta_rule",
    "chunk_grid",
    "commit_gated_delta_rule",
    "gated_delta_rule_on_grid",
    "gated_delta_rule_step",
    "verify_gated_delta_rule",
]

"""The gated delta rule: chunked for prefill, one step for decode. See README.md."""

from qcn_kernels.gated_delta_rule.chunked import CHUNK_SIZE, chunk_gated_delta_rule
from qcn_kernels.gated_delta_rule.step import gated_delta_rule_step

__all__ = ["CHUNK_SIZE", "chunk_gated_delta_rule", "gated_delta_rule_step"]

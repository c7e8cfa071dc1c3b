"""The gated delta rule over a chunk grid, the state kept behind chosen chunks, on any device.

On a GPU the result is that of the grid alone, bit for bit. On the CPU runs of whole chunks are read
at once, and agree with other runs of the same grid to rounding.
"""

from itertools import pairwise

import torch
from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.gated_delta_rule.chunked import CHUNK_SIZE, chunk_gated_delta_rule
from qcn_kernels.gated_delta_rule.grid import ChunkGrid


def gated_delta_rule_on_grid(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    grid: ChunkGrid,
    checkpoints: Tensor,
) -> Tensor:
    """Read T tokens into `state`; return what each reads out.

    Args:
        q, k: [T, key_heads, key_dim], l2-normalised, q scaled.
        v: [T, value_heads, value_dim].
        g, beta: [T, value_heads] fp32.
        state: [value_heads, key_dim, value_dim] fp32, updated in place.
        grid: of the T tokens, on their device.
        checkpoints: [slots, value_heads, key_dim, value_dim] fp32; slot n takes the state behind
            the chunk for which the grid says n.

    Returns:
        [T, value_heads, value_dim] in v's dtype.
    """
    if uses_triton(v):
        from qcn_kernels.gated_delta_rule import triton

        return triton.chunk_gated_delta_rule(
            q=q, k=k, v=v, g=g, beta=beta, state=state, grid=grid, checkpoints=checkpoints
        )
    q, k, dtype, v = q.float(), k.float(), v.dtype, v.float()
    outputs = []
    for start, end, slot in _runs(grid):
        run = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
        run = {name: x[start:end] for name, x in run.items()}
        outputs.append(chunk_gated_delta_rule(**run, state=state))
        if slot >= 0:
            checkpoints[slot] = state
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).to(dtype)


def _runs(grid: ChunkGrid) -> list[tuple[int, int, int]]:
    """Start and end of the tokens that can be read at once, and the slot behind them or -1."""
    runs = []
    starts: list[int] = grid.starts.tolist()
    begin = starts[0]
    for (start, end), slot in zip(pairwise(starts), grid.slots.tolist(), strict=True):
        if slot >= 0 or end - start < CHUNK_SIZE or end == starts[-1]:
            runs.append((begin, end, slot))
            begin = end
    return runs

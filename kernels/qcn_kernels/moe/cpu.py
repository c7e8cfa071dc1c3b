"""The mixture on the CPU: only chosen experts run, and each reads its weights once per block."""

import torch
from torch import Tensor
from torch.nn import functional

from qcn_kernels.groupwise import GroupwiseMatrices

# One matrix for each expert; groupwise ones are dequantised when they are taken out.
Matrices = Tensor | GroupwiseMatrices

# An expert's rows are padded to a multiple of this: torch's bf16 products compile a kernel for each
# number of rows they meet, which takes ten times as long as running it.
ROWS = 16


def route(logits: Tensor, *, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Choose experts.

    Args:
        logits: [..., experts] fp32.
        top_k: experts per token.
        normalise: whether the chosen probabilities are scaled to sum to 1.

    Returns:
        Weights [..., top_k] fp32 and expert numbers [..., top_k] int64.
    """
    if normalise:  # the softmax over the chosen is the softmax over all, scaled to sum to 1
        values, chosen = logits.topk(top_k, dim=-1)
        return values.softmax(-1), chosen
    return logits.softmax(-1).topk(top_k, dim=-1)


def experts(
    x: Tensor, *, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices
) -> Tensor:
    """Run T tokens through their experts, sorted by expert.

    Args:
        x: [T, hidden] of the weights' dtype.
        weights: [T, top_k] fp32, from `route`.
        chosen: [T, top_k] int64, from `route`.
        gate_up: [experts, 2 · intermediate, hidden], the gate's rows first.
        down: [experts, hidden, intermediate].

    Returns:
        [T, hidden] fp32. The sum over a token's experts runs in the order of their numbers,
        whatever else is in the block.
    """
    tokens, top_k = chosen.shape
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=len(gate_up))
    padded = (counts + ROWS - 1) // ROWS * ROWS
    # Where each chosen (token, expert) pair stands among the padded rows of all experts.
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    rows = torch.arange(len(flat)) + shift[flat[order]]
    # Padding reads and feeds one more token, of zeros, which is cut off at the end.
    source = torch.full((int(padded.sum()),), tokens)
    source[rows] = order // top_k
    scale = torch.zeros(len(source), 1)
    scale[rows, 0] = weights.flatten()[order]

    gathered = torch.cat((x, x.new_zeros(1, x.shape[1]))).index_select(0, source)
    sizes = [(expert, size) for expert, size in enumerate(padded.tolist()) if size]
    projected = _product_by_expert(gathered, gate_up, sizes)
    gate, up = projected.chunk(2, dim=1)
    # The weight goes in before the last product, which is linear: there are fewer columns here.
    hidden = functional.silu(gate).mul_(up).mul_(scale.to(x.dtype))
    outputs = _product_by_expert(hidden, down, sizes)
    summed = torch.zeros(tokens + 1, x.shape[1])
    return summed.index_add_(0, source, outputs.to(torch.float32))[:tokens]


def _product_by_expert(x: Tensor, matrices: Matrices, sizes: list[tuple[int, int]]) -> Tensor:
    """Multiply each expert's rows of x, which follow each other, by its matrix."""
    out = x.new_empty(len(x), matrices.shape[1])
    start = 0
    for expert, size in sizes:
        torch.mm(x[start : start + size], matrices[expert].T, out=out[start : start + size])
        start += size
    return out


def experts_step(
    x: Tensor, *, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices
) -> Tensor:
    """Run one token through its experts.

    Copying the chosen experts side by side and multiplying them at once takes about half the time
    of a product for each: what a product of one row costs is mostly its call and the first reading.

    Args:
        x: [hidden] of the weights' dtype.
        weights: [top_k] fp32, from `route`.
        chosen: [top_k] int64, from `route`.
        gate_up: [experts, 2 · intermediate, hidden], the gate's rows first.
        down: [experts, hidden, intermediate].

    Returns:
        [hidden] fp32.
    """
    rows = gate_up.index_select(0, chosen).flatten(0, 1)
    gate, up = functional.linear(x, rows).view(len(chosen), -1).chunk(2, dim=1)
    hidden = functional.silu(gate).mul_(up)
    outputs = torch.bmm(down.index_select(0, chosen), hidden.unsqueeze(2)).squeeze(2)
    return weights @ outputs.to(torch.float32)

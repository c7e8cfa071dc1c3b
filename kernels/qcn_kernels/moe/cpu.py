"""The mixture on the CPU: only chosen experts run, and each reads its weights once per block."""

import torch
from torch import Tensor
from torch.nn import functional

from qcn_kernels.groupwise import GroupwiseMatrices

# One matrix for each expert; those in groups are dequantised when they are taken out.
Matrices = Tensor | GroupwiseMatrices

# An expert's rows are padded to a multiple of this: torch's bf16 products compile a kernel for each
# number of rows they meet, which takes ten times as long as running it.
ROWS = 16
# With as many rows for each expert, all are multiplied in one call. On two cores a call with 16 to
# 64 rows for each of 16 experts of qcn-nano takes 70 to 190 us, one with 16 rows of one expert 25.
MOST_WASTE = 3


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
        [T, hidden] fp32. The sum over a token's experts runs in the order in which they were
        chosen, whatever else is in the block.
    """
    tokens, top_k = chosen.shape
    plain = isinstance(gate_up, Tensor) and isinstance(down, Tensor)
    if plain and tokens <= ROWS and len(gate_up) <= MOST_WASTE * chosen.numel():
        return _experts_unsorted(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=len(gate_up))
    room = _room(counts) if plain else _padded(counts)  # no expert is dequantised for nothing
    # Where each chosen (token, expert) pair stands among the rows of all experts.
    shift = (room.cumsum(0) - room) - (counts.cumsum(0) - counts)
    rows = torch.empty_like(order)
    rows[order] = torch.arange(len(flat), device=flat.device) + shift[flat[order]]
    sizes = room.tolist()

    gathered = x.new_zeros(sum(sizes), x.shape[1])  # rows to spare are of zeros
    gathered[rows] = x.repeat_interleave(top_k, dim=0)
    gate, up = _product_by_expert(gathered, gate_up, sizes).chunk(2, dim=1)
    outputs = _product_by_expert(functional.silu(gate).mul_(up), down, sizes)
    chosen_outputs = outputs.index_select(0, rows).view(tokens, top_k, -1)
    return torch.bmm(weights.unsqueeze(1), chosen_outputs.to(torch.float32)).squeeze(1)


def _experts_unsorted(
    x: Tensor, *, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices
) -> Tensor:
    """`experts` where all see all tokens, and what was not asked for is left lying.

    For so few tokens and experts it is the same products as sorted, without the sorting: on one
    core of a busy machine 8 tokens through qcn-nano's 16 experts take 350 us, sorted 600.
    """
    assert isinstance(gate_up, Tensor)
    assert isinstance(down, Tensor)
    gate, up = torch.matmul(x, gate_up.mT).chunk(2, dim=2)  # [experts, T, intermediate]
    outputs = torch.bmm(functional.silu(gate).mul_(up), down.mT)
    chosen_outputs = outputs[chosen, torch.arange(len(x), device=x.device).unsqueeze(1)]
    return torch.bmm(weights.unsqueeze(1), chosen_outputs.to(torch.float32)).squeeze(1)


def _room(counts: Tensor) -> Tensor:
    """How many rows each expert gets for so many tokens: as many for all, where few go to waste."""
    padded = _padded(counts)
    most = padded.max()
    return most.expand_as(padded) if most * len(padded) <= MOST_WASTE * padded.sum() else padded


def _padded(counts: Tensor) -> Tensor:
    return (counts + ROWS - 1) // ROWS * ROWS


def _product_by_expert(x: Tensor, matrices: Matrices, sizes: list[int]) -> Tensor:
    """Multiply each expert's rows of x, which follow each other, by its matrix."""
    if isinstance(matrices, Tensor) and min(sizes) == max(sizes):
        return torch.bmm(x.view(len(sizes), -1, x.shape[1]), matrices.mT).flatten(0, 1)
    out = x.new_empty(len(x), matrices.shape[1])
    start = 0
    for expert, size in enumerate(sizes):
        if size:
            rows = slice(start, start + size)
            torch.mm(x[rows], matrices[expert].T, out=out[rows])
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

"""The chunk grid of a prefill: where chunks are cut, and behind which the state is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from qcn_kernels.gated_delta_rule.chunked import CHUNK_SIZE


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """Chunks of a run of tokens. `chunk_grid` makes one; every layer may share it."""

    starts: Tensor  # [chunks + 1] int32: the first token of each chunk, then the number of tokens
    slots: Tensor  # [chunks] int32: the checkpoint that takes the state behind a chunk, or -1

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self.slots.shape[0]


def chunk_grid(
    parts: Sequence[int],
    *,
    checkpoints: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> ChunkGrid:
    """Cut parts that follow each other into chunks, the grid beginning anew at each part.

    Args:
        parts: tokens of each part, at least one; the state is carried from part to part.
        checkpoints: numbers of tokens behind which the state is kept, rising; each must be the end
            of a chunk. The n-th is kept in slot n.
        device: of the tensors.

    Raises:
        ValueError: an empty part or none, or a checkpoint inside a chunk.
    """
    if not parts or min(parts) < 1:
        raise ValueError("a chunk grid needs parts of at least one token")
    starts = [0]
    for part in parts:
        begin = starts[-1]
        starts += range(begin + CHUNK_SIZE, begin + part, CHUNK_SIZE)
        starts.append(begin + part)
    slots = [-1] * (len(starts) - 1)
    ends = {end: chunk for chunk, end in enumerate(starts[1:])}
    for slot, end in enumerate(checkpoints):
        if end not in ends:
            raise ValueError(f"token {end} is not the end of a chunk: no state is kept there")
        slots[ends[end]] = slot
    if any(after <= before for before, after in pairwise(checkpoints)):
        raise ValueError("checkpoints must rise")
    return ChunkGrid(
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(slots, dtype=torch.int32, device=device),
    )

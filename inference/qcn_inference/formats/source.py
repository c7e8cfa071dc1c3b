"""What a conversion needs of a checkpoint, whatever its format.

A checkpoint is read in parts: part 0 is what belongs to no layer, part n is layer n - 1. Names are
those of transformers' `Qwen3NextForCausalLM`. Nothing is kept of a part once it was read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from qcn_kernels.moe.cpu import Matrices
from torch import Tensor


class Source(Protocol):
    """A checkpoint in parts. Every method raises CheckpointError where the files are at fault."""

    files: list[Path]  # that hold weights
    values: dict[str, Any]  # what config.json says, without quantization_config
    weight_block_size: list[int] | None  # of FP8 weights among the tensors
    texts: dict[str, bytes]  # other files of the copy, such as tokenizer.json, by name
    lossless: bool  # whether experts are kept as they were published

    def part_bytes(self) -> list[int]:
        """Return the bytes of each part."""
        ...

    def tensors(self, part: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a part but for the experts, each with its name."""
        ...

    def experts(self, part: int) -> Iterator[tuple[str, Matrices]]:
        """Yield a layer's `experts.gate_up_proj` and `experts.down_proj`, if it has experts."""
        ...

"""A folder of bf16, fp16, fp32 or FP8 safetensors: experts are quantised, all else is kept."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from qcn_kernels.groupwise import GroupwiseMatrices, concatenate
from qcn_kernels.moe.cpu import Matrices
from torch import Tensor

from qcn_inference.config import load_config
from qcn_inference.errors import CheckpointError
from qcn_inference.formats.folder import FolderSource
from qcn_inference.formats.quantised import quantise_experts

EXPERTS_PER_THREAD = 4  # read before they are quantised


class SafetensorsSource(FolderSource):
    """See `Source`."""

    lossless = False

    def __init__(self, folder: Path, read: Callable[[int], None], threads: int) -> None:
        """Open a folder; `read` is told the bytes taken, `threads` quantise."""
        super().__init__(folder, load_config(folder), read)
        self._threads = threads
        if any(name.endswith(".codes") for name in self._tensors.names):
            raise CheckpointError(folder, "holds experts in groups already", "Serve it as it is")

    def tensors(self, part: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a part but for the experts, as they are stored."""
        for name in self._others(part):
            yield name, self._stored(name)

    def experts(self, part: int) -> Iterator[tuple[str, Matrices]]:
        """A layer's experts, quantised."""
        prefix = self._prefix(part)
        if prefix is None:
            return
        count, hidden = self._config.num_experts, self._config.hidden_size
        size = self._config.moe_intermediate_size
        gate_up, down = f"{prefix}.gate_up_proj", f"{prefix}.down_proj"
        if gate_up in self._tensors:
            for name, rows, columns in ((gate_up, 2 * size, hidden), (down, hidden, size)):
                yield name, self._quantised(self._floats(name, count, rows, columns))
            return
        at_once = self._threads * EXPERTS_PER_THREAD
        ups, downs = [], []
        for first in range(0, count, at_once):
            numbers = range(first, min(first + at_once, count))
            taken = [self._expert(f"{prefix}.{number}") for number in numbers]
            ups.append(self._quantised([up for up, _ in taken]))
            downs.append(self._quantised([down for _, down in taken]))
        yield gate_up, concatenate(ups, dim=0)
        yield down, concatenate(downs, dim=0)

    def _expert(self, prefix: str) -> tuple[Tensor, Tensor]:
        hidden, size = self._config.hidden_size, self._config.moe_intermediate_size

        def take(name: str, rows: int, columns: int) -> Tensor:
            return self._floats(f"{prefix}.{name}_proj.weight", rows, columns)

        gate_up = torch.cat((take("gate", size, hidden), take("up", size, hidden)))
        return gate_up, take("down", hidden, size)

    def _quantised(self, matrices: list[Tensor] | Tensor) -> GroupwiseMatrices:
        try:
            return quantise_experts(matrices, self._threads)
        except ValueError as error:
            problem = f"holds experts that cannot be quantised: {error}"
            raise CheckpointError(self.files[0], problem, "Serve it as it is") from error

"""What sources in a folder of safetensors have in common."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.loading import Loader
from qcn_inference.tensors import TensorFiles

LAYER = re.compile(r"(?:model|model\.language_model)\.layers\.(\d+)\.")
EXPERTS = re.compile(r"(.*\.layers\.\d+\.mlp\.experts)\.")
TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)


class FolderSource:
    """The parts of a checkpoint's folder; see `Source`."""

    def __init__(self, folder: Path, config: ModelConfig, read: Callable[[int], None]) -> None:
        """Open a folder; `read` is told the bytes taken."""
        self._config = config
        self._tensors = TensorFiles(folder)
        self._loader = Loader(
            self._tensors, fp8_block=config.fp8_block, dtype=None, device="cpu", progress=None
        )
        self._read = read
        self.files = self._tensors.paths
        self.values: dict[str, Any] = config_values(folder)
        self.values.pop("quantization_config", None)
        self.weight_block_size = list(config.fp8_block) if config.fp8_block else None
        self.texts = {
            name: (folder / name).read_bytes() for name in TEXTS if (folder / name).is_file()
        }
        self._parts: list[list[str]] = [[] for _ in range(1 + len(config.layer_types))]
        for name in sorted(self._tensors.names):
            match = LAYER.match(name)
            number = int(match[1]) + 1 if match else 0
            self._parts[number if number < len(self._parts) else 0].append(name)

    def part_bytes(self) -> list[int]:
        """The bytes of each part."""
        return [sum(self._tensors[name].nbytes for name in part) for part in self._parts]

    def _stored(self, name: str) -> Tensor:
        """Read a tensor that is there, as it is stored."""
        tensor = self._loader.stored(name)
        self._read(tensor.nbytes)
        return tensor

    def _floats(self, name: str, *shape: int) -> Tensor:
        """Read a tensor as fp32, dequantised if it is FP8."""
        tensor = self._loader.take(name, *shape)
        for read in (name, f"{name}_scale_inv"):
            self._read(self._tensors[read].nbytes if read in self._tensors else 0)
        return tensor

    def _prefix(self, part: int) -> str | None:
        """Return what the names of a layer's experts begin with, None where it has none."""
        found = {match[1] for name in self._parts[part] if (match := EXPERTS.match(name))}
        return found.pop() if part and found else None

    def _others(self, part: int) -> list[str]:
        return [name for name in self._parts[part] if part == 0 or not EXPERTS.match(name)]


def config_values(folder: Path) -> dict[str, Any]:
    """Return `config.json`, which was found sound."""
    values: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return values

"""GPTQ and AWQ: a folder of safetensors whose linear layers are 4-bit codes in groups of inputs.

For a layer of N outputs and K inputs (arXiv 2210.17323 and 2306.00978, in the layouts of AutoGPTQ
and AutoAWQ), each int32 holding eight codes, lowest first:

    GPTQ  qweight [K/8, N] along K   qzeros [K/group, N/8]   scales [K/group, N]   g_idx [K]
    AWQ   qweight [K, N/8] along N   qzeros [K/group, N/8]   scales [K/group, N]

    w[n, k] = scales[g, n] · (code - zero[g, n])     g = g_idx[k], or k / group

GPTQ's first format stores zero - 1, which its second ("gptq_v2") does not. AWQ deals out the eight
columns of an int32 in the order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from qcn_kernels.groupwise import GroupwiseMatrices, concatenate, pack
from qcn_kernels.moe.cpu import Matrices
from torch import Tensor

from qcn_inference.config import parse_config
from qcn_inference.errors import CheckpointError
from qcn_inference.formats.folder import FolderSource, config_values

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where column i of eight stands in an int32
PARTS = ("qweight", "qzeros", "scales", "g_idx")
METHODS = ("gptq", "awq")  # by name in a `quantization_config`
REMEDY = "Use a checkpoint of GPTQ or AWQ (GEMM) with 4 bits, the bf16 or FP8 one, or a GGUF file"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the codes of a folder are laid out, from its `quantization_config`."""

    method: Literal["gptq", "awq"]
    zero_offset: int  # added to stored zeros, modulo 16

    @classmethod
    def read(cls, path: Path, given: Mapping[str, Any]) -> "Layout":
        """Raises CheckpointError for what is not implemented."""
        method, bits = given.get("quant_method"), given.get("bits", given.get("w_bit"))
        version = str(given.get("version", "gemm")).lower()
        if bits != 4 or method not in METHODS or (method == "awq" and version != "gemm"):
            problem = f'"quantization_config" says {method!r}, {bits!r} bits, {version!r}'
            raise CheckpointError(path, problem, REMEDY)
        first = method == "gptq" and given.get("checkpoint_format", "gptq") != "gptq_v2"
        return cls("gptq" if method == "gptq" else "awq", int(first))

    def matrix(self, parts: Mapping[str, Tensor]) -> GroupwiseMatrices:
        """Repack one layer, without loss.

        Raises:
            ValueError: shapes that do not fit each other, or inputs that are out of order.
        """
        codes, zeros, scales = self._integers(parts)
        outputs, inputs = codes.shape
        groups = scales.shape[0]
        if inputs % groups or zeros.shape != (outputs, groups) or scales.itemsize != 2:
            shapes = [(tuple(part.shape), part.dtype) for part in (codes, zeros, scales)]
            raise ValueError(f"codes, zeros and scales are {shapes}")
        order = parts.get("g_idx")
        if order is not None and not torch.equal(order.long(), _in_order(inputs, groups)):
            raise ValueError("inputs are reordered (desc_act)")
        block_scales = scales.T.contiguous().unsqueeze(0)
        return GroupwiseMatrices(
            codes=pack(codes).unsqueeze(0),
            scales=torch.ones(1, outputs, groups, dtype=torch.uint8),
            mins=zeros.unsqueeze(0),
            block_scales=block_scales,
            block_mins=block_scales,
            dtype=torch.bfloat16,
        )

    def floats(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return one layer [outputs, inputs] in fp32, whatever the order of its inputs."""
        codes, zeros, scales = self._integers(parts)
        order = parts.get("g_idx", _in_order(codes.shape[1], scales.shape[0])).long()
        levels = codes.to(torch.float32) - zeros.to(torch.float32)[:, order]
        return scales.to(torch.float32).T[:, order] * levels

    def _integers(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes [N, K] and zeros [N, groups] uint8, and scales [groups, N]."""
        places = AWQ_PLACES if self.method == "awq" else tuple(range(8))
        qweight, qzeros, scales = (parts[name] for name in PARTS[:3])
        if self.method == "awq":
            codes = _unpacked(qweight, places).T
        else:
            codes = _unpacked(qweight.T, places)
        zeros = (_unpacked(qzeros, places).T + self.zero_offset) & 15
        return codes.contiguous(), zeros.contiguous(), scales


def _unpacked(packed: Tensor, places: tuple[int, ...]) -> Tensor:
    """Return codes [rows, 8 · n] uint8 of int32 [rows, n]."""
    shifts = torch.tensor([4 * place for place in places], dtype=torch.int32)
    return ((packed.unsqueeze(-1) >> shifts) & 15).to(torch.uint8).flatten(1)


def _in_order(inputs: int, groups: int) -> Tensor:
    return torch.arange(inputs) // (inputs // groups)


class PackedSource(FolderSource):
    """See `Source`. Experts keep their codes; of all else, what is quantised becomes bf16."""

    lossless = True

    def __init__(self, folder: Path, read: Callable[[int], None]) -> None:
        """Open a folder; `read` is told the bytes taken."""
        values, path = config_values(folder), folder / "config.json"
        self._layout = Layout.read(path, values.pop("quantization_config"))
        super().__init__(folder, parse_config(path, values), read)

    def tensors(self, part: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a part but for the experts."""
        for name in self._others(part):
            base, _, kind = name.rpartition(".")
            if f"{base}.qweight" not in self._tensors or kind not in PARTS:
                yield name, self._stored(name)
            elif kind == "qweight":
                with self._repacking(base):
                    yield f"{base}.weight", self._layout.floats(self._packed(base)).bfloat16()

    def experts(self, part: int) -> Iterator[tuple[str, Matrices]]:
        """A layer's experts."""
        prefix = self._prefix(part)
        if prefix is None:
            return
        ups, downs = [], []
        for number in range(self._config.num_experts):
            with self._repacking(f"{prefix}.{number}"):
                gate, up, down = (
                    self._layout.matrix(self._packed(f"{prefix}.{number}.{name}_proj"))
                    for name in ("gate", "up", "down")
                )
                ups.append(concatenate([gate, up], dim=1))
                downs.append(down)
        with self._repacking(prefix):
            yield f"{prefix}.gate_up_proj", concatenate(ups, dim=0)
            yield f"{prefix}.down_proj", concatenate(downs, dim=0)

    def _packed(self, base: str) -> dict[str, Tensor]:
        names = [name for name in PARTS if f"{base}.{name}" in self._tensors]
        return {name: self._stored(f"{base}.{name}") for name in names}

    @contextmanager
    def _repacking(self, base: str) -> Iterator[None]:
        try:
            yield
        except (LookupError, ValueError, RuntimeError) as error:  # torch raises RuntimeError
            problem = f"{base} cannot be repacked ({error})"
            raise CheckpointError(self.files[0], problem, REMEDY) from error

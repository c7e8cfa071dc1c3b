"""GPTQ and AWQ folders of small checkpoints, packed as the formats say.

Written from the description of the formats, apart from what reads them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from random_checkpoints import Config, write_checkpoint
from torch import Tensor

Method = Literal["gptq", "gptq_v2", "awq"]
GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight columns, from the lowest bits of an int32 up


@dataclass(frozen=True, slots=True)
class Layer:
    """Codes of a linear layer: w[n, k] = scales[n, g] · (codes[n, k] - zeros[n, g])."""

    codes: Tensor  # [N, K], 0 to 15
    zeros: Tensor  # [N, groups], 0 to 15
    scales: Tensor  # [N, groups] fp16 or bf16
    order: Tensor  # [K]: the group of each input

    def weights(self) -> Tensor:
        """Return [N, K] fp32, the difference first, as the formats' own libraries do."""
        levels = self.codes - self.zeros[:, self.order]
        return self.scales.float()[:, self.order] * levels.float()


def draw_layer(like: Tensor, *, reordered: bool = False, dtype: torch.dtype) -> Layer:
    """Draw codes for a matrix; its weights are about as large."""
    outputs, inputs = like.shape
    groups = inputs // GROUP
    order = torch.arange(inputs) // GROUP
    return Layer(
        codes=torch.randint(0, 16, (outputs, inputs)),
        zeros=torch.randint(5, 11, (outputs, groups)).index_fill_(0, torch.tensor([0]), 0),
        scales=((0.5 + torch.rand(outputs, groups)) * like.std() / 5).to(dtype),
        order=order[torch.randperm(inputs)] if reordered else order,
    )


def rounded_layer(weights: Tensor, *, group: int) -> Layer:
    """Round a matrix [N, K] to nearest between the least and the greatest of each group."""
    outputs, inputs = weights.shape
    groups = weights.float().view(outputs, -1, group)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-6).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = (groups / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, 15)
    order = torch.arange(inputs) // group
    return Layer(codes.view(outputs, inputs).long(), zeros.long(), scales, order)


def packed(layer: Layer, method: Method) -> dict[str, Tensor]:
    """Return the tensors a folder holds of a layer, by the last part of their names."""
    codes, zeros = layer.codes.T, layer.zeros.T  # inputs first
    order = AWQ_ORDER if method == "awq" else tuple(range(8))
    if method == "gptq":
        zeros = (zeros - 1) % 16
    tensors = {
        "qweight": _eights(codes, order) if method == "awq" else _eights(codes.T, order).T,
        "qzeros": _eights(zeros, order),
        "scales": layer.scales.T,
    }
    if method != "awq":
        tensors["g_idx"] = layer.order.int()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _eights(codes: Tensor, order: tuple[int, ...]) -> Tensor:
    """Put eight columns into one int32, `order[i]` of them at bit 4 · i."""
    words = codes.reshape(len(codes), -1, 8)[..., order]
    return (words << (4 * torch.arange(8))).sum(-1).to(torch.uint32).view(torch.int32)


def quantisation_config(method: Method) -> Config:
    """Return what config.json says of it."""
    if method == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    given = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
    return given | {"checkpoint_format": method}


def write_packed(
    folder: Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    method: Method,
    spoil: Callable[[dict[str, Tensor]], object] = len,
) -> dict[str, Tensor]:
    """Write a folder with experts and attention quantised; return the weights it stands for.

    What is stored goes through `spoil` first.
    """
    stored: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        attention = "self_attn" in name and name.endswith("proj.weight")
        if ".experts." in name or (attention and tensor.shape[1] % GROUP == 0):
            layer = draw_layer(tensor, dtype=torch.float16)
            base = name.removesuffix(".weight")
            stored |= {f"{base}.{kind}": part for kind, part in packed(layer, method).items()}
            weights = layer.weights()
            after[name] = weights if ".experts." in name else weights.bfloat16().float()
        else:
            stored[name] = after[name] = tensor
    spoil(stored)
    quantised = dict(config) | {"quantization_config": quantisation_config(method)}
    write_checkpoint(folder, quantised, stored, shards=2)
    return after

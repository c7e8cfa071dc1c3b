"""GPTQ and AWQ folders of random checkpoints, packed integer by integer as the formats say.

Written from the description of the formats, apart from what reads them: loops over single codes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from random_checkpoints import Config
from torch import Tensor

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


def packed(layer: Layer, method: Literal["gptq", "gptq_v2", "awq"]) -> dict[str, Tensor]:
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
    rows = []
    for row in codes.tolist():
        words = [row[at : at + 8] for at in range(0, len(row), 8)]
        rows.append([sum(word[order[i]] << 4 * i for i in range(8)) for word in words])
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32).view(torch.int32)


def quantisation_config(method: Literal["gptq", "gptq_v2", "awq"]) -> Config:
    """Return what config.json says of it."""
    if method == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    given = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
    return given | {"checkpoint_format": method}

"""Random checkpoints in block FP8, and what they stand for; see `random_checkpoints.py`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from random_checkpoints import Config, write_checkpoint
from torch import Tensor

BLOCK = 128
LARGEST = 448.0  # of e4m3; what is larger becomes NaN in some versions of torch
KEPT = ("embed", "lm_head", "norm", "conv1d", "gate.weight", "in_proj_ba", "_log", "bias")
"""Parts of the names of what publishers do not quantise."""


def write_fp8(
    folder: Path, config: Config, tensors: Mapping[str, Tensor]
) -> tuple[Path, dict[str, Tensor]]:
    """Write the weights in FP8 with a scale for each 128 × 128; return them dequantised too."""
    stored: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or any(part in name for part in KEPT):
            stored[name] = plain[name] = tensor
            continue
        rows, columns = tensor.shape
        blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
        scale = 2.0 ** torch.randint(-12, -8, blocks).float()
        spread = torch.kron(scale, torch.ones(BLOCK, BLOCK))[:rows, :columns]
        stored[name] = (tensor / spread).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        plain[name] = stored[name].float() * spread
    quantisation = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}
    written = write_checkpoint(folder, config | {"quantization_config": quantisation}, stored)
    return written, plain

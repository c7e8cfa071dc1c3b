"""From a checkpoint folder to a model: config, tensors, identity."""

import hashlib
from contextlib import closing
from pathlib import Path

import torch
from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import BLOCK
from qcn_kernels.groupwise import PARTS

from qcn_inference.config import load_config
from qcn_inference.device import multiplies_bf16
from qcn_inference.loading import Loader, Progress
from qcn_inference.model import Model
from qcn_inference.offload.layers import Offload
from qcn_inference.tensors import TensorFiles, find_files
from qcn_inference.weights import build_model

SMALL = 1 << 30
"""Bytes of a checkpoint that may take twice as many in memory, where products in bf16 are slow."""


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    mtp: bool = False,
    progress: Progress | None = None,
    offload: Offload | None = None,
) -> Model:
    """Load the checkpoint in `folder`.

    Args:
        folder: holds `config.json` and the safetensors files.
        dtype: what matrix products run in. None: fp32 for a checkpoint stored in fp32, and on a CPU
            without instructions for bf16 for a small one; bf16 else.
        device: where the weights are put.
        mtp: whether to load the multi-token-prediction head too, where there is one.
        progress: called with (bytes done, bytes in all) as weights are read.
        offload: how experts lie in host memory, if they do.

    Raises:
        CheckpointError: the folder, a file or a tensor is missing, damaged or not as expected.
        DeviceMemoryError, torch.OutOfMemoryError: there is no room for it.
    """
    config = load_config(folder)
    files = TensorFiles(folder)
    if dtype is None and device == "cpu" and _is_faster_in_fp32(files):
        dtype = torch.float32
    loader = Loader(
        files,
        fp8_block=config.fp8_block,
        dtype=dtype,
        device=device,
        progress=progress,
    )
    with closing(loader):
        identity = fingerprint(folder, files.paths, loader.dtype)
        return build_model(config, loader, identity, mtp=mtp, offload=offload)


def _is_faster_in_fp32(files: TensorFiles) -> bool:
    """Whether torch on this CPU computes a checkpoint faster in fp32, and that is not large."""
    if multiplies_bf16() or uses_triton(torch.empty(0)):
        return False
    return sum(path.stat().st_size for path in files.paths) <= SMALL


def weight_bytes(folder: Path, *, head: bool = True) -> int:
    """Return about how many bytes the weights take on a GPU, with or without the head for drafts.

    Of FP8 in blocks of 128 a tenth more: matrices that leave no whole blocks are dequantised, as
    all are in other blocks.
    """
    config = load_config(folder)
    stored = sum(path.stat().st_size for path in find_files(folder))
    if not head:
        files = TensorFiles(folder)
        stored -= sum(files[name].nbytes for name in files.names if name.startswith("mtp."))
    if config.fp8_block is None:
        return stored
    return stored * 11 // 10 if config.fp8_block == (BLOCK, BLOCK) else 2 * stored


def stored_bits(folder: Path) -> int:
    """Return the bits of a weight that is loaded as it is stored: 32 or 16."""
    files = TensorFiles(folder)
    loader = Loader(files, fp8_block=None, dtype=None, device="cpu", progress=None)
    return 8 * loader.dtype.itemsize


def stored_expert_bits(folder: Path) -> float | None:
    """Return the bits of an expert's weight with its scales; None where none are in groups."""
    config, files = load_config(folder), TensorFiles(folder)
    stored = [
        files[name].nbytes
        for name in files.names
        if name.rpartition(".")[2] in PARTS and ".experts." in name and not name.startswith("mtp.")
    ]
    if not stored:
        return None
    layers = len(config.layer_types) - len(config.dense_layers)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    return 8 * sum(stored) / (layers * config.num_experts * expert)


def fingerprint(folder: Path, files: list[Path], dtype: torch.dtype) -> str:
    """Return an identity of the weights and the precision they run in, 32 hexadecimal digits.

    SHA-256 over `config.json`, each file's name, length and header (all names, shapes and offsets),
    and its contents: all of them up to 64 MiB, else evenly spaced pieces of 4 KiB, 1,024 of all
    files together. A change in place that spares every piece goes unnoticed.
    """
    pieces = max(16, 1024 // len(files))
    digest = hashlib.sha256(str(dtype).encode())
    digest.update((folder / "config.json").read_bytes())
    for path in files:
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= 64 << 20:
                digest.update(file.read())
                continue
            header = int.from_bytes(file.read(8), "little")
            digest.update(file.read(header))
            for piece in range(pieces):
                file.seek(piece * (size - 4096) // (pieces - 1))
                digest.update(file.read(4096))
    return digest.hexdigest()[:32]

"""From a checkpoint folder to a model: config, tensors, identity."""

import hashlib
from pathlib import Path

import torch

from qcn_inference.config import load_config
from qcn_inference.model import Model
from qcn_inference.tensors import Progress, TensorReader
from qcn_inference.weights import build_model


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Model:
    """Load the checkpoint in `folder`.

    Args:
        folder: holds `config.json` and the safetensors files.
        dtype: what matrix products run in. None: fp32 for a checkpoint stored in fp32, bf16 else.
        device: where the weights are put, each as it is read.
        progress: called with (bytes done, bytes in all) as tensors are read.

    Raises:
        CheckpointError: the folder, a file or a tensor is missing, damaged or not as expected.
    """
    config = load_config(folder)
    reader = TensorReader(folder, config.fp8_block, dtype, progress, device)
    return build_model(config, reader, fingerprint(folder, reader.files, reader.dtype))


def fingerprint(folder: Path, files: list[Path], dtype: torch.dtype) -> str:
    """Return an identity of the weights and the precision they run in, 32 hexadecimal digits.

    SHA-256 over `config.json`, each file's name, length and header (all names, shapes and offsets),
    and its contents: all of them up to 64 MiB, else 1,024 evenly spaced pieces of 4 KiB. So 80 GB
    cost some 160 MiB of reading; a change in place that spares every sampled piece goes unnoticed.
    """
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
            for piece in range(1024):
                file.seek(piece * (size - 4096) // 1023)
                digest.update(file.read(4096))
    return digest.hexdigest()[:32]

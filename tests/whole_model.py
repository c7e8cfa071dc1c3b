"""A whole model run by its kernels: interpreted, in a process that does so, or on a GPU.

What is called stands here, in a module of its own, because a process that interprets imports it
without pytest's.
"""

from pathlib import Path

import torch
from qcn_inference.checkpoint import load_model
from qcn_inference.model import Model
from torch import Tensor


def model_beside(ids: Tensor, folder: str) -> Model:
    """Load a checkpoint onto the device on which these ids lie."""
    model = load_model(Path(folder), device=str(ids.device))
    model.reserve(16 << 20)
    return model


def read_and_step(*, folder: str, ids: Tensor, prompt: int) -> tuple[Tensor, Tensor]:
    """Read a prompt, and behind it one token after the other.

    Returns:
        Logits of all ids of the prompt [prompt, V], and of each id behind it [T - prompt, V].
    """
    model = model_beside(ids, folder)
    state = model.new_state()
    read = model.prefill(ids[:prompt], state, all_logits=True)
    stepped = [model.decode(token, state) for token in ids[prompt:].tolist()]
    return read, torch.stack(stepped)

"""The checkpoint's multi-token-prediction head guesses what transformers' `MtpModel` guesses."""

from pathlib import Path

import pytest
import torch
from oracle import Oracle
from qcn_inference.checkpoint import load_model
from qcn_inference.model import Model
from qcn_inference.mtp import MtpDrafter, MtpHead
from random_checkpoints import (
    draw_config,
    draw_mtp_head,
    draw_qwen3_5,
    draw_tensors,
    pack_experts,
    wrap,
    write_checkpoint,
)
from torch import Tensor

IDS = torch.arange(40) % 37


def checkpoint(family: str, folder: Path) -> Path:
    """Write a model with a head, each family as it is published; like those it ends in attention.

    The head's experts are stored one by one, as only so transformers reads them.
    """
    moe = family != "qwen3_5"
    config = draw_config(7) if family == "qwen3_next" else draw_qwen3_5(7, dense=not moe)
    config |= {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    tensors = draw_tensors(config, 7, deviation=0.05)
    if family == "qwen3_5_moe":
        tensors = pack_experts(config, tensors)
    tensors |= draw_mtp_head(config, 8, deviation=0.05)
    if family != "qwen3_next":
        config, tensors = wrap(config, tensors)
    return write_checkpoint(folder, config, tensors)


def load(folder: Path) -> tuple[Model, MtpHead]:
    model = load_model(folder, mtp=True)
    assert model.mtp is not None
    return model, model.mtp


def hidden_states(model: Model, ids: Tensor) -> Tensor:
    steps = model.hidden_steps(ids, model.new_state(), all_tokens=True)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            hidden: Tensor = end.value
            return hidden


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5", "qwen3_5_moe"])
def test_it_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    folder = checkpoint(family, tmp_path)
    want, chained = Oracle(folder).guess_with_mtp(IDS, 5)
    model, head = load(folder)
    hidden = hidden_states(model, IDS[:-1])

    got = head.logits(head.read(hidden, IDS[1:], head.new_state(head.new_memory())))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)

    drafter = MtpDrafter(head, head.new_memory)
    drafter.see(hidden, IDS[1:].tolist())
    assert drafter.propose(5) == tuple(chained.argmax(-1).tolist())


def test_what_was_guessed_leaves_no_trace(tmp_path: Path) -> None:
    """A drafter that guessed in between goes on as one that only saw, in parts or at once."""
    model, head = load(checkpoint("qwen3_5", tmp_path))
    hidden, following = hidden_states(model, IDS[:-1]), IDS[1:].tolist()
    at_once, in_parts = (MtpDrafter(head, head.new_memory) for _ in range(2))
    assert in_parts.propose(3) == ()
    for start in range(0, len(following), 13):
        in_parts.see(hidden[start : start + 13], following[start : start + 13])
        in_parts.propose(4)
    at_once.see(hidden, following)
    assert in_parts.propose(4) == at_once.propose(4)


def test_a_model_is_loaded_with_it_only_when_asked(tmp_path: Path) -> None:
    folder = checkpoint("qwen3_5", tmp_path / "with")
    assert load_model(folder).mtp is None
    config = draw_qwen3_5(7, dense=True)
    without = write_checkpoint(
        tmp_path / "without", config, draw_tensors(config, 7, deviation=0.05)
    )
    assert load_model(without, mtp=True).mtp is None

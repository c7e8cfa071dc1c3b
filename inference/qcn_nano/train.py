"""The training loop: resumable, on one device, the same on a CPU and a GPU.

Sequences are drawn in an order that depends on the seed alone, and a checkpoint holds the model,
the optimizers and the number of steps done. A run that is stopped after any checkpoint and started
again therefore takes the very steps that it would have taken.

Started by `torchrun`, several processes share every step: each takes its part of the sequences and
the gradients are averaged. One-threaded processes meet once a step, threads at every operation,
which a busy CPU punishes.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor, distributed, nn
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from qcn_nano.forward import Trainable
from qcn_nano.model import new_model
from qcn_nano.optimizer import CLIP, make_optimizers

WARMUP_SHARE = 0.03
DECAY_SHARE = 0.45
MIDDLE_WEIGHT = 3.0  # of a token that fills a gap: what the product asks for is 3 % of the text
PADDING = -1  # in packed sequences


@dataclass(frozen=True)
class Plan:
    """What a run does: all its result depends on but the data and the number of processes."""

    steps: int
    batch: int  # sequences a step
    middle: int  # id of <|fim_middle|>
    end: int  # id of <|endoftext|>
    seed: int = 1
    checkpoint_every: int = 100  # steps
    compiled: bool = True
    compute: torch.dtype = torch.bfloat16


def learning_rate_share(step: int, steps: int) -> float:
    """Warm-up, plateau, linear decay to zero (arXiv 2405.18392), as a share of the peak."""
    warmup, decay = max(1, round(WARMUP_SHARE * steps)), max(1, round(DECAY_SHARE * steps))
    return min((step + 1) / warmup, 1.0, (steps - step) / decay)


def target_weights(ids: Tensor, middle: int, end: int) -> Tensor:
    """Weight of the target after each of ids [B, T]: 0 where there is none, more in a middle."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    last_middle = torch.where(ids == middle, places, -1).cummax(1).values
    last_end = torch.where(ids == end, places, -1).cummax(1).values
    weights = torch.where(last_middle > last_end, MIDDLE_WEIGHT, 1.0)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=PADDING)
    return weights.masked_fill(targets < 0, 0.0)


def pick_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Written beside and renamed: a run killed here resumes from the checkpoint before."""
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    beside.replace(path)


def worker() -> tuple[int, int]:
    """This process's rank and the number of processes; joins them on the first call."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return distributed.get_rank(), distributed.get_world_size()


def average_gradients(model: nn.Module, workers: int) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    means = torch.split(flat / workers, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def train(
    config: Qwen3NextConfig, sequences: numpy.ndarray, plan: Plan, folder: Path
) -> Qwen3NextForCausalLM:
    """Train a model, or go on with the run that `folder` holds.

    Args:
        config: the model's shape.
        sequences: [N, T] int16 token ids, `PADDING` where a sequence has ended.
        plan: the run.
        folder: for `checkpoint.pt` and `log.jsonl`.

    Raises:
        ValueError: there are fewer sequences than the plan needs.
    """
    if len(sequences) < plan.steps * plan.batch:
        wanted = f"{plan.steps} steps of {plan.batch}"
        raise ValueError(f"{wanted} need more than the {len(sequences)} sequences packed")
    folder.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    model = new_model(config, plan.seed).to(device)
    optimizers = make_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    order = numpy.random.default_rng(plan.seed).permutation(len(sequences))
    checkpoint, first, seconds = folder / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    rank, workers = worker()
    trainable = Trainable(model, plan.compute, plan.compiled)
    started = time.monotonic()
    for step in range(first, plan.steps):
        rows = sequences[numpy.sort(order[step * plan.batch : (step + 1) * plan.batch])]
        ids = torch.from_numpy(rows.astype(numpy.int64)).to(device)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_share(step, plan.steps)
        weights = target_weights(ids, plan.middle, plan.end)
        row = take_step(trainable, optimizers, ids, weights, rank, workers)
        if rank:
            continue
        spent = seconds + time.monotonic() - started
        row = {"step": step + 1, "seconds": round(spent, 1)} | row
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if (step + 1) % plan.checkpoint_every == 0 or step + 1 == plan.steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            save_checkpoint(checkpoint, state | {"step": step + 1, "seconds": spent})
    return model


def take_step(
    trainable: Trainable,
    optimizers: list[torch.optim.Optimizer],
    ids: Tensor,
    weights: Tensor,
    rank: int,
    workers: int,
) -> dict[str, float]:
    """One update from ids [B, T].

    Returns:
        for the log: of this process's part of the batch nats per token, overall and in middles, and
        the router's balance loss (at least the number of experts per token); the gradient's norm.
    """
    share = weights.sum() / workers
    part, weight = ids.tensor_split(workers)[rank], weights.tensor_split(workers)[rank].flatten()
    losses = trainable.losses(part)
    loss = (losses.tokens * weight).sum() / share
    (loss + trainable.model.config.router_aux_loss_coef * losses.balance).backward()
    if workers > 1:
        average_gradients(trainable.model, workers)
    norm = torch.nn.utils.clip_grad_norm_(trainable.model.parameters(), CLIP)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    nats, middles = losses.tokens.detach(), weight > 1
    figures = {"loss": nats[weight > 0].mean(), "middle": nats[middles].mean()}
    return {
        name: round(float(value), 4)
        for name, value in (figures | {"balance": losses.balance.detach(), "norm": norm}).items()
    }

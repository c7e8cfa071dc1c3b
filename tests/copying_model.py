"""A small model that copies a name, trained in the test session: some ten seconds of one core.

It reads what ours reads (layouts of `qcn_indexer`, prompts of `qcn_inference`) about one little
shop: a function is defined in one file, perhaps renamed since, and called in another. It is trained
to call it by the name that it was given last, among all that were ever given. Nothing tells it
which files, blocks or notes matter.
"""

import random
from pathlib import Path, PurePosixPath

import torch
from qcn_indexer.layout import Segment as Shown
from qcn_indexer.overlay import Limits, Overlay, Written
from qcn_inference.contexts import Segment
from qcn_inference.fim import InfillText, infill_prompt
from qcn_inference.tokenizer import FIM_MIDDLE, REPO_NAME, Tokenizer
from qcn_nano.export import export_model
from qcn_nano.forward import CHUNK, Trainable
from qcn_nano.model import nano_config, new_model
from qcn_nano.optimizer import CLIP, make_optimizers
from qcn_nano.tokenizer import save_tokenizer, train_tokenizer
from qcn_nano.train import PADDING, learning_rate_share
from torch import Tensor

VOCAB_SIZE = 448
CONTEXT_LENGTH = 8192
STEPS, BATCH = 120, 16
# The name alone is hard to know: what follows it is always the same.
NAME_WEIGHT = 6.0
DEFINED, CALLED = PurePosixPath("prices.py"), PurePosixPath("main.py")
NAMES = [
    "price",
    "cost",
    "total",
    "charge",
    "amount",
    "value",
    "worth",
    "rate",
    "fee",
    "sum",
    "levy",
    "quote",
    "tariff",
    "figure",
    "outlay",
    "expense",
    "payment",
    "bill",
    "tally",
    "count",
]


def definition(name: str) -> str:
    """What the one file says of the function."""
    return f"def {name}(item):\n    return item.paid\n"


def caller(name: str) -> str:
    """The other file, up to the call; the import is one that a rename forgot."""
    return f"from prices import {name}\n\ndue ="


def call(name: str) -> str:
    """What is to be completed there."""
    return f" {name}(item)"


def write_copying_model(folder: Path) -> Path:
    """Train it and write its checkpoint."""
    folder.mkdir(parents=True)
    texts = [definition(name) + caller(name) + call(name) for name in NAMES]
    bpe = train_tokenizer([*texts * 8, "original:\nupdated:\n" * 40], VOCAB_SIZE)
    save_tokenizer(bpe, folder, CONTEXT_LENGTH)
    tokenizer = Tokenizer(folder, VOCAB_SIZE)
    config = nano_config(
        VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=2,
        full_attention_interval=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        max_position_embeddings=CONTEXT_LENGTH,
    )
    model = new_model(config, seed=1)
    trainable = Trainable(model, torch.float32, compiled=False)
    optimizers = make_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    draw = random.Random(1)
    for step in range(STEPS):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_share(step, STEPS)
        ids = _batch([_example(draw, tokenizer) for _ in range(BATCH)])
        weights = _weights(ids, tokenizer.control_id(FIM_MIDDLE))
        losses = trainable.losses(ids)
        loss = (losses.tokens * weights.flatten()).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    export_model(model, bpe, folder)
    return folder


def _example(draw: random.Random, tokenizer: Tokenizer) -> list[int]:
    """The ids of one prompt and its completion."""
    names = draw.sample(NAMES, draw.choice([1, 2, 2, 3]))
    ids = [tokenizer.control_id(REPO_NAME), *tokenizer.encode_plain("shop\n")]
    for shown in _shop(draw, names, tokenizer).layout.segments:
        ids += Segment.of(tokenizer, str(shown.path), shown.text).ids
    here = InfillText(caller(draw.choice(names)), "\n", str(CALLED))
    prompt = infill_prompt(tokenizer, here, CONTEXT_LENGTH, "suffix_first", ids)
    end = tokenizer.control_id("<|endoftext|>")
    return [*prompt.ids, *tokenizer.encode_plain(call(names[-1])), end]


def _shop(draw: random.Random, names: list[str], tokenizer: Tokenizer) -> Overlay:
    """Where the function had these names one after another."""

    def count(text: str) -> int:
        return len(tokenizer.encode_plain(text))

    remarks = "".join(f"# {draw.choice(NAMES)}\n" for _ in range(draw.randint(0, 6)))
    texts = [remarks + definition(name) for name in names]
    base = [(DEFINED, texts[0]), (CALLED, caller(names[0]))]
    files = [Shown(path, text, "base", "file") for path, text in draw.sample(base, 2)]
    limits = Limits(budget=10_000, rewrite=draw.choice([0, 512]))
    overlay = Overlay.over(files, limits=limits, count=count)
    for text in texts[1:]:
        overlay = overlay.after(Written(DEFINED, text))
    return overlay


def _batch(rows: list[list[int]]) -> Tensor:
    """The rows as one tensor [B, T]."""
    length = -(-max(map(len, rows)) // CHUNK) * CHUNK
    ids = torch.full((len(rows), length), PADDING)
    for row, example in zip(ids, rows, strict=True):
        row[: len(example)] = torch.tensor(example)
    return ids


def _weights(ids: Tensor, middle: int) -> Tensor:
    """Of the target after each of ids [B, T]: only the completion counts."""
    opened = (ids == middle).long()
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=PADDING)
    weights = (opened.cumsum(1) + (NAME_WEIGHT - 1) * opened).float()
    return weights.masked_fill(targets < 0, 0.0)

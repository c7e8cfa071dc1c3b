"""How good a checkpoint folder is on packages that it never saw.

Two figures, both from the folder as it would ship (bf16 weights, computed in fp32):

* bits per byte of whole files read left to right, in windows of one training sequence;
* single-line exact match: at seeded positions, given what stands before and after the cursor, does
  the greedy completion's first line equal the original one, outer white space aside?

Positions are drawn package by package, then file, then line, so a large package does not decide.
The completion runs through transformers, not through our engine: the figure judges the model alone.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3NextForCausalLM

from qcn_nano.corpus import Source
from qcn_nano.documents import Cut, encode_cut, line_spans
from qcn_nano.forward import CHUNK, Trainable
from qcn_nano.tokenizer import PlainText
from qcn_nano.train import PADDING

SEED = 20_405
POSITIONS = 400
PREFIX_CHARACTERS = 3000
SUFFIX_CHARACTERS = 1200
MAX_LINE_TOKENS = 48
SAMPLES = 5
ORDERS = ("prefix_first", "suffix_first", "prefix_only")


@dataclass(frozen=True)
class Position:
    """A cursor in held-out code, and the text that stood there."""

    package: str
    path: str
    line: int  # 1-based
    kind: str  # "rest of line" or "whole line"
    cut: Cut  # its middle is the text of the line from the cursor on


def draw_positions(sources: list[Source]) -> list[Position]:
    """The same positions for the same files, whatever model is judged."""
    rng = random.Random(SEED)
    by_package: dict[str, list[Source]] = {}
    for source in sources:
        by_package.setdefault(source.package, []).append(source)
    positions: list[Position] = []
    while len(positions) < POSITIONS:
        source = rng.choice(by_package[rng.choice(sorted(by_package))])
        start, end = rng.choice(line_spans(source.text))
        line = source.text[start:end]
        start += len(line) - len(line.lstrip())
        kind = "whole line" if len(positions) % 2 else "rest of line"
        if kind == "rest of line":
            start = rng.randint(start + 1, end)
        answer = source.text[start:end]
        if not answer.strip():
            continue
        before = source.text[max(0, start - PREFIX_CHARACTERS) : start]
        if start > PREFIX_CHARACTERS:
            before = before[before.find("\n") + 1 :]
        after = source.text[end : end + SUFFIX_CHARACTERS]
        number = source.text.count("\n", 0, start) + 1
        positions.append(
            Position(source.package, source.path, number, kind, Cut(before, answer, after))
        )
    return positions


@torch.no_grad()
def bits_per_byte(
    model: Qwen3NextForCausalLM, plain: PlainText, sources: list[Source], window: int
) -> float:
    """Mean bits per byte of the sources; every window begins anew behind `<|endoftext|>`."""
    trainable = Trainable(model, torch.float32, compiled=False)
    opening = plain.control("<|endoftext|>")
    rows: list[list[int]] = []
    for source in sources:
        ids = plain.encode(source.text)
        rows += [[opening, *ids[at : at + window - 1]] for at in range(0, len(ids), window - 1)]
    rows.sort(key=len)
    nats = 0.0
    for at in range(0, len(rows), 8):
        batch = rows[at : at + 8]
        length = -(-max(map(len, batch)) // CHUNK) * CHUNK
        padded = torch.full((len(batch), length), PADDING)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        nats += float(trainable.losses(padded).tokens.double().sum())
    return nats / math.log(2) / sum(len(source.text.encode()) for source in sources)


@torch.no_grad()
def complete_line(
    model: Qwen3NextForCausalLM, tokenizer: Tokenizer, prompt: list[int], expected: str | None
) -> str:
    """Greedy completion up to the first line break that follows any text, or a control token.

    With an `expected` line the completion ends early, where it can no longer become that line.
    """
    vocabulary_end = tokenizer.get_vocab_size(with_added_tokens=False)
    cache, ids, answer, text = None, torch.tensor([prompt]), list[int](), ""
    for _ in range(MAX_LINE_TOKENS):
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, best = out.past_key_values, int(out.logits[0, -1].argmax())
        if best >= vocabulary_end:
            break
        answer.append(best)
        text = tokenizer.decode(answer).lstrip()
        so_far = text.rstrip().rstrip("\ufffd")  # a character may still be incomplete
        if "\n" in text or (expected is not None and not expected.startswith(so_far)):
            break
        ids = torch.tensor([[best]])
    return text.partition("\n")[0].strip()


def evaluate(
    folder: Path, held_out: list[Source], window: int
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """The figures of a checkpoint folder, and the completions they rest on, in the seed's order.

    Exact match is counted for each of `ORDERS`, the forms a prompt can take. Of the completions the
    first `SAMPLES` are whole, the others end where they left the original.
    """
    model = Qwen3NextForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = PlainText(tokenizer)
    completions: list[dict[str, object]] = []
    exact: dict[str, list[bool]] = {order: [] for order in ORDERS}
    for position in draw_positions(held_out):
        expected = position.cut.middle.strip()
        row: dict[str, object] = {
            "at": f"{position.package}/{position.path}:{position.line}",
            "kind": position.kind,
            "left": position.cut.prefix.rpartition("\n")[2],
            "expected": expected,
        }
        aim = expected if len(completions) >= SAMPLES else None
        prompts = (
            encode_cut(position.cut, plain),
            encode_cut(position.cut, plain, suffix_first=True),
            [plain.control("<|endoftext|>"), *plain.encode(position.cut.prefix)],
        )
        for order, prompt in zip(ORDERS, prompts, strict=True):
            row[order] = complete_line(model, tokenizer, prompt, aim)
            exact[order].append(row[order] == expected)
        completions.append(row)
    figures = {
        "bits_per_byte": round(bits_per_byte(model, plain, held_out, window), 4),
        "positions": len(completions),
    }
    shares = {f"exact_match_{order}": sum(hits) / len(hits) for order, hits in exact.items()}
    return figures | {name: round(share, 4) for name, share in shares.items()}, completions

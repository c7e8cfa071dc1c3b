"""The stages of the recipe; one whose result is in the work folder is not repeated."""

import json
import os
import random
from pathlib import Path
from typing import cast

import numpy
from tokenizers import Tokenizer

from qcn_nano import corpus, ship
from qcn_nano.documents import package_documents
from qcn_nano.evaluate import evaluate
from qcn_nano.export import export_model
from qcn_nano.model import nano_config
from qcn_nano.packing import best_fit
from qcn_nano.tokenizer import PlainText, train_tokenizer
from qcn_nano.train import PADDING, Plan, train

SEQUENCE = 2048  # tokens
BATCH = 4  # sequences a step
TOKENS = 10_000_000  # of the full run
SEED = 20_405
TOKENIZER_CHARACTERS = 40_000_000


def corpus_stage(work: Path) -> None:
    """`train.jsonl`, `held-out.jsonl` and the manifest of what they hold."""
    if (work / "held-out.jsonl").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    packages, training, held_out = corpus.collect(work / "archives")
    corpus.write_manifest(packages, corpus.MANIFEST)
    corpus.save_sources(training, work / "train.jsonl")
    corpus.save_sources(held_out, work / "held-out.jsonl")


def tokenizer_stage(work: Path) -> Tokenizer:
    """`tokenizer.json`, from a random part of the training files."""
    path = work / "tokenizer.json"
    if not path.exists():
        sources = corpus.load_sources(work / "train.jsonl")
        random.Random(SEED).shuffle(sources)
        texts, size = [], 0
        for source in sources:
            texts.append(source.text)
            size += len(source.text)
            if size > TOKENIZER_CHARACTERS:
                break
        train_tokenizer(texts).save(str(path))
    return Tokenizer.from_file(str(path))


def pack_stage(work: Path) -> numpy.ndarray:
    """`sequences.npy`: [N, SEQUENCE] int16, `PADDING` behind the last document of each."""
    path = work / "sequences.npy"
    if not path.exists():
        plain, rng = PlainText(tokenizer_stage(work)), random.Random(SEED)
        by_package: dict[str, list[corpus.Source]] = {}
        for source in corpus.load_sources(work / "train.jsonl"):
            by_package.setdefault(source.package, []).append(source)
        documents = [
            numpy.array(document, dtype=numpy.int16)
            for sources in by_package.values()
            for document in package_documents(sources, plain, SEQUENCE, rng)
        ]
        bins = best_fit([len(document) for document in documents], SEQUENCE)
        rng.shuffle(bins)
        sequences = numpy.full((len(bins), SEQUENCE), PADDING, dtype=numpy.int16)
        for row, members in zip(sequences, bins, strict=True):
            rng.shuffle(members)
            joined = numpy.concatenate([documents[index] for index in members])
            row[: len(joined)] = joined
        numpy.save(path, sequences)
        tokens = int((sequences != PADDING).sum())
        print(f"{len(documents)} documents, {tokens} tokens, {len(sequences)} sequences")
    return cast(numpy.ndarray, numpy.load(path, mmap_mode="r"))


def train_stage(work: Path, name: str, tokens: int) -> None:
    """The run `full` over `tokens`, or `tenth` over a tenth of them; its checkpoint folder."""
    folder = work / "runs" / name
    if (folder / "model" / "model.safetensors").exists():
        return
    tokenizer, sequences = tokenizer_stage(work), pack_stage(work)
    plain = PlainText(tokenizer)
    plan = Plan(
        steps=tokens // (10 if name == "tenth" else 1) // (BATCH * SEQUENCE),
        batch=BATCH,
        middle=plain.control("<|fim_middle|>"),
        end=plain.control("<|endoftext|>"),
    )
    model = train(nano_config(tokenizer.get_vocab_size()), sequences, plan, folder)
    if int(os.environ.get("RANK", "0")) == 0:
        export_model(model, tokenizer, folder / "model")


def evaluate_stage(work: Path, name: str) -> None:
    """`evaluation.json` of a run."""
    folder = work / "runs" / name
    if (folder / "evaluation.json").exists():
        return
    held_out = corpus.load_sources(work / "held-out.jsonl")
    figures, completions = evaluate(folder / "model", held_out, SEQUENCE)
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    run = {"tokens": last["step"] * BATCH * SEQUENCE, "seconds": round(last["seconds"])}
    result = run | figures | {"completions": completions}
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{name}: {run | figures}")


def ship_stage(work: Path) -> None:
    """The full run's folder becomes the package's data, with its card and its figures."""
    runs = {
        name: json.loads((work / "runs" / name / "evaluation.json").read_text())
        for name in ("tenth", "full")
    }
    ship.ship(work / "runs" / "full" / "model", runs)

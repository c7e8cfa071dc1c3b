"""Puts a trained model in its place: the package's data folder, the model card, the figures."""

import hashlib
import json
import os
import platform
import shutil
import textwrap
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qcn_nano.corpus import MANIFEST
from qcn_nano.evaluate import ORDERS, SAMPLES

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "inference" / "qcn_inference" / "data" / "qcn-nano"
CARD = Path(__file__).with_name("model_card.md.in")
RESULTS = ROOT / "benchmarks" / "results" / "qcn-nano.json"
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
)
FIM_ORDERS = ("prefix_first", "suffix_first")
SHORT_ANSWER = 3  # characters: a bracket, a quotation mark
LIBRARIES = ("torch", "transformers", "tokenizers")


def processor() -> str:
    """The processor's name and the number of cores."""
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        rows = [row for row in described.read_text().splitlines() if row.startswith("model name")]
        name = rows[0].partition(": ")[2] if rows else name
    return f"{name}, {os.cpu_count()} cores"


def ship(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Install `folder` as the embedded model.

    Args:
        folder: the full run's checkpoint folder.
        runs: `evaluation.json` of the runs `tenth` and `full`.

    Raises:
        ValueError: the full run is not better than its tenth.
    """
    tenth, full = runs["tenth"], runs["full"]
    better = full["bits_per_byte"] < tenth["bits_per_byte"]
    for order in FIM_ORDERS:
        better = better and full[f"exact_match_{order}"] > tenth[f"exact_match_{order}"]
    if not better:
        raise ValueError("the full run does not beat the tenth in every figure: it is not shipped")
    DATA.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(folder / name, DATA / f".{name}.new")
        (DATA / f".{name}.new").replace(DATA / name)
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "weights_sha256": hashlib.sha256((DATA / "model.safetensors").read_bytes()).hexdigest(),
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (DATA / "MODEL_CARD.md").write_text(model_card(results))


def model_card(results: dict[str, Any]) -> str:
    """The card of the shipped weights, from their figures and the manifest."""
    manifest = json.loads(MANIFEST.read_text())
    config = json.loads((DATA / "config.json").read_text())
    totals, full = manifest["totals"], results["runs"]["full"]
    held_out = [row["name"] for row in manifest["packages"] if row["held_out"]]
    versions = [f"{name} {number}" for name, number in results["versions"].items()]
    return CARD.read_text().format(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        experts=config["num_experts"],
        chosen=config["num_experts_per_tok"],
        vocabulary=config["vocab_size"],
        packages=totals["packages"],
        training_megabytes=round(totals["training_bytes"] / 1e6),
        licences=", ".join(sorted({row["licence"] for row in manifest["packages"]})),
        date=results["date"],
        held_out=", ".join(held_out),
        held_out_megabytes=round(totals["held_out_bytes"] / 1e6, 1),
        positions=full["positions"],
        table=figures_table(results["runs"]["tenth"], full),
        hardware=results["hardware"],
        versions=", ".join(versions),
        sha256=results["weights_sha256"],
        short=SHORT_ANSWER,
        long_matches=long_matches(full),
        count=SAMPLES,
        samples=samples(full["completions"][:SAMPLES]),
    )


def figures_table(tenth: dict[str, Any], full: dict[str, Any]) -> str:
    """The rows of the card's table."""
    rows = [
        ("tokens trained on", "tokens", "{:,}"),
        ("wall time, seconds", "seconds", "{:,}"),
        ("bits per byte (less is better)", "bits_per_byte", "{:.4f}"),
        ("single-line exact match, FIM, prefix first", "exact_match_prefix_first", "{:.2%}"),
        ("single-line exact match, FIM, suffix first", "exact_match_suffix_first", "{:.2%}"),
        ("single-line exact match, prefix alone", "exact_match_prefix_only", "{:.2%}"),
    ]
    return "\n".join(
        f"| {title} | {form.format(tenth[key])} | {form.format(full[key])} |"
        for title, key, form in rows
    )


def long_matches(run: dict[str, Any]) -> str:
    """How many of the answers that are more than a bracket or two were matched, in words."""
    rows = [row for row in run["completions"] if len(row["expected"]) > SHORT_ANSWER]
    hits = {order: sum(row[order] == row["expected"] for row in rows) for order in ORDERS}
    counts = ", ".join(f"{hits[order]} {order.replace('_', ' ')}" for order in ORDERS)
    return f"of the {len(rows)} longer answers the shipped model matched {counts}"


def samples(completions: list[dict[str, Any]]) -> str:
    """Completions as indented blocks: left of the cursor, the original, the suggestion."""
    parts = []
    for row in completions:
        block = (
            f"left of the cursor  {row['left']}\n"
            f"original            {row['expected']}\n"
            f"prefix first        {row['prefix_first']}\n"
            f"suffix first        {row['suffix_first']}\n"
            f"prefix alone        {row['prefix_only']}"
        )
        parts.append(f"`{row['at']}`, {row['kind']}\n\n{textwrap.indent(block, '    ')}")
    return "\n\n".join(parts)

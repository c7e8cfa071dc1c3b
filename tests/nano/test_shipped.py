"""The folder in the package: it loads, it is small, and its figures are of these very weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qcn_nano.corpus import MANIFEST, is_permissive
from qcn_nano.evaluate import ORDERS
from qcn_nano.ship import DATA, FIM_ORDERS, RESULTS, model_card
from qcn_nano.tokenizer import CONTROL_TOKENS
from transformers import AutoModelForCausalLM, AutoTokenizer

LIMIT = 40_000_000  # bytes


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())  # type: ignore[no-any-return]  # our own file


def test_it_fits_the_package() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= LIMIT


def test_it_loads_as_an_ordinary_checkpoint_and_knows_every_control_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATA)
    model, report = AutoModelForCausalLM.from_pretrained(DATA, output_loading_info=True)

    assert model.config.model_type == "qwen3_next"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(report.values())
    ids = [tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS]
    assert len(set(ids)) == len(CONTROL_TOKENS)
    assert [tokenizer(token).input_ids for token in CONTROL_TOKENS] == [[number] for number in ids]
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.vocab_size % 64 == 0


def test_any_text_survives_its_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATA)
    text = "def f(x):\r\n\treturn {'é': 3.14159}  # 日本 \u2028 \U0001f600\n\n\n    pass  \n"

    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_figures_were_measured_on_the_weights_that_are_shipped(results: dict[str, Any]) -> None:
    weights = (DATA / "model.safetensors").read_bytes()

    assert hashlib.sha256(weights).hexdigest() == results["weights_sha256"]


def test_the_card_says_what_was_measured(results: dict[str, Any]) -> None:
    assert (DATA / "MODEL_CARD.md").read_text() == model_card(results)


def test_the_exact_matches_can_be_counted_again(results: dict[str, Any]) -> None:
    for run in results["runs"].values():
        rows = run["completions"]
        assert run["positions"] == len(rows) >= 300
        for order in ORDERS:
            hits = sum(row[order] == row["expected"] for row in rows)
            assert run[f"exact_match_{order}"] == round(hits / len(rows), 4)


def test_more_training_made_it_better(results: dict[str, Any]) -> None:
    tenth, full = results["runs"]["tenth"], results["runs"]["full"]

    assert full["tokens"] >= 9 * tenth["tokens"]
    assert full["bits_per_byte"] < tenth["bits_per_byte"]
    for order in FIM_ORDERS:
        assert full[f"exact_match_{order}"] > tenth[f"exact_match_{order}"]


def test_the_manifest_names_a_permissive_licence_for_every_package() -> None:
    manifest = json.loads(MANIFEST.read_text())
    rows = manifest["packages"]

    assert all(is_permissive(row["licence"]) and row["version"] for row in rows)
    assert sum(row["held_out"] for row in rows) >= 5
    trained = sum(row["bytes"] for row in rows if not row["held_out"])
    assert manifest["totals"]["training_bytes"] == trained


def test_no_machine_path_is_shipped() -> None:
    texts = [path for path in DATA.iterdir() if path.suffix in {".json", ".md"}]
    home = f"{Path.home()}/"
    named = [path.name for path in [*texts, MANIFEST] if home in path.read_text()]
    assert home == "//" or not named  # the home of who has none stands in every address

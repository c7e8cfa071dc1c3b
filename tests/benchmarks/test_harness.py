"""The harness runs on a toy shape, compares the same work, and writes a report of valid JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, report, results
from benchmarks.checkpoints import random_checkpoint
from benchmarks.contenders import REFERENCE, Contender
from benchmarks.floor import cost
from benchmarks.inference import Work, measure_model, random_prompt
from benchmarks.shapes import TOY

WORK = Work(prompt_tokens=80, steps=4, rounds=2, fewest_rounds=2, seconds=0)
OURS = Contender("ours", "fp32")
ABSENT = Contender("llama.cpp", "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.peers.NODE_MODULES", tmp_path_factory.mktemp("no-peers"))
        return measure_model(
            "toy",
            random_checkpoint(TOY),
            random_prompt(WORK.prompt_tokens),
            work=WORK,
            threads=1,
            contenders=(REFERENCE, OURS, ABSENT),
        )


def test_contenders_do_the_same_work_and_are_timed_in_every_round(model: dict[str, Any]) -> None:
    for contender in (REFERENCE, OURS):
        figures = model["contenders"][contender.name]
        assert figures["agreement"]["teacher_forced"] == "5 of 5"
        for phase in ("prefill", "decode"):
            assert figures[phase]["unit"] == "tokens/s"
            assert figures[phase]["samples"] == WORK.rounds
            assert 0 < figures[phase]["min"] <= figures[phase]["median"] <= figures[phase]["max"]


def test_a_peer_that_is_not_set_up_is_named_with_the_remedy(model: dict[str, Any]) -> None:
    assert list(model["not_measured"]) == [ABSENT.name]
    assert "python -m benchmarks peers" in model["not_measured"][ABSENT.name]


def test_results_are_valid_json_and_become_a_page(model: dict[str, Any], tmp_path: Path) -> None:
    result = {"benchmark": "inference"} | machine.describe(1) | {"models": [model]}

    written = json.loads(results.write(result, tmp_path).read_text())
    page = report.write(tmp_path).read_text()

    assert written == result
    for head in ("hardware", "versions", "date", "commit", "threads", "load_average_1min"):
        assert written[head] is not None
    assert "| ours fp32 |" in page
    assert ABSENT.name in page


def test_active_parameters_are_what_one_token_reads() -> None:
    from transformers import AutoModelForCausalLM

    folder = random_checkpoint(TOY)
    model = AutoModelForCausalLM.from_pretrained(folder)
    idle = TOY["num_experts"] - TOY["num_experts_per_tok"]
    idle_weights = sum(
        parameter[:idle].numel()
        for name, parameter in model.named_parameters()
        if "experts." in name and "shared" not in name
    )
    everything = sum(parameter.numel() for parameter in model.parameters())

    found = cost(folder, prompt_tokens=1, element_bytes=2)

    assert found.parameters == everything
    embedding = model.get_input_embeddings().weight.numel()
    assert found.active_parameters == everything - idle_weights - embedding

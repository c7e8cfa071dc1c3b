"""Texts of a history, carried to a machine without git, decoded with drafts and without there."""

import json
from pathlib import Path

import pytest
from one_file_history import NEW, OLD, repository_of
from qcn_inference.step_cost import ROWS

from benchmarks import gpu_lookup, lookup


def test_what_was_written_is_carried_as_tokens_and_decoded_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lookup, "MOST_TOKENS", 40)
    monkeypatch.setattr(gpu_lookup, "CASES", {"rewrite": 1, "unlike": 1})
    monkeypatch.setattr(gpu_lookup, "STEPS_BEHIND", 100)
    file = tmp_path / "carried" / "rewrites.json"
    folder = repository_of(tmp_path / "repository", OLD, NEW)

    assert gpu_lookup.main(["write", str(file), "--repository", str(folder)]) == 0
    asked = ["--synthetic", "qcn-nano-bf16", "--device", "cpu", "--rounds", "1"]
    assert gpu_lookup.main(["measure", str(file), *asked]) == 0

    *parts, last = map(json.loads, capsys.readouterr().out.splitlines())
    result = last["result"]
    assert parts == [{"step_seconds": result["step_seconds"]}] + [
        {kind: figures} for kind, figures in result["kinds"].items()
    ]
    assert set(result["step_seconds"]) == set(map(str, (1, *ROWS)))
    rewritten, unlike = result["kinds"]["rewrite"], result["kinds"]["unlike"]
    assert rewritten["tokens"] == unlike["tokens"] == 40
    assert rewritten["accepted_tokens"] > 10  # the old version stands in front
    assert unlike["drafted_tokens"] == 0
    for figures in (rewritten, unlike):
        assert figures["ratio"]["samples"] == 1


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["measure", str(tmp_path / "none.json"), "--synthetic", "qcn-nano-bf16"]
    assert gpu_lookup.main(asked) == 1
    assert "none.json" in capsys.readouterr().err

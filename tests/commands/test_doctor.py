"""`qcn doctor` looks at this machine and says what to do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import qcn_inference
from command_support import WITHOUT_TORCH, qcn
from link_support import StandInModel

from qcn_lsp.commands.doctor import check_folder, explained, rates, torch_findings

MODELS = ("Qwen3-Coder-Next", "Qwen3.5-35B-A3B", "Qwen3.5-9B")


def findings(done_stdout: str) -> dict[str, tuple[str, str, str]]:
    return {
        found["check"]: (found["level"], found["detail"], found["remedy"])
        for found in json.loads(done_stdout)["findings"]
    }


def test_a_sound_machine_passes(runtime: Path) -> None:
    done = qcn("doctor", "--json")
    found = findings(done.stdout)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)
    assert {level for level, _, _ in found.values()} <= {"ok", "warn"}
    assert sys.executable in found["Python"][1]
    assert found["runtime directory"][1] == f"{runtime}/qcn, yours alone"
    assert found["model qcn-nano"][0] == "ok"
    assert "not running" in found["engine"][1]
    assert re.search(r"the CPU reads [\d.]+ GB/s and multiplies [\d.]+ TFLOP/s", found["speed"][1])
    assert "as bf16 (0.03" in found["qcn-nano"][1]
    assert "a ghost text in" in found["qcn-nano"][1]
    assert {plan["model"] for plan in json.loads(done.stdout)["plans"]} == {*MODELS, "qcn-nano"}
    for model in MODELS:
        level, detail, _ = found[model]
        said = {"ok": "At best, behind", "warn": "not on this machine: as "}
        assert said[level] in detail
    assert found["proving ground"][0] == "ok" or "bubblewrap" in found["proving ground"][2]
    assert all(remedy for level, _, remedy in found.values() if level != "ok")


def test_without_torch_it_says_how_to_get_it_and_fails(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = qcn("doctor", "--json")
    assert done.returncode == 1
    level, detail, remedy = findings(done.stdout)["engine packages"]
    assert (level, detail) == ("fail", "missing: torch")
    # From where it was installed, never by its name alone, which an index may give to anybody.
    assert re.match(r".* -m pip install (-e )?'?/.*\[engine\]'?; or set qcn\.engine\.url", remedy)


def test_an_engine_in_trouble_is_a_failure(standin: StandInModel) -> None:
    standin.behave(state="errored", error="config.json is missing.")
    qcn("engine", "start", "--model", standin.folder)
    done = qcn("doctor", "--json")
    assert done.returncode == 1
    level, detail, remedy = findings(done.stdout)["engine"]
    assert (level, detail) == ("fail", "config.json is missing.")
    assert "qcn.models.completion" in remedy


def test_an_engine_that_is_on_the_cpu_though_there_is_a_gpu_is_told_with_the_reason(
    standin: StandInModel,
) -> None:
    standin.behave(device_problem="no kernel of ours runs on cuda:0.")
    qcn("engine", "start", "--model", standin.folder)
    done = qcn("doctor", "--json")
    level, detail, remedy = findings(done.stdout)["engine"]
    assert level == "warn"
    assert "not on the GPU: no kernel of ours runs on cuda:0." in detail
    assert "qcn engine stop" in remedy
    assert "no kernel of ours runs on cuda:0." in qcn("engine", "status").stdout


def test_a_model_folder_is_checked_without_loading_it(tmp_path: Path) -> None:
    missing = check_folder(tmp_path)
    assert missing.level == "fail"
    assert "config.json" in missing.detail
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    other = check_folder(tmp_path)
    assert other.level == "fail"
    assert "llama" in other.detail


def test_a_gpu_that_the_engine_cannot_use_is_told_with_the_reason() -> None:
    """An old driver, say: torch sees no device, and nothing is missing but a newer driver."""
    asked = {"version": "2.9", "built_for": "12.8", "threads": 2, "capability": "AVX512"}
    old = "CUDA cannot be started: the driver is too old"
    [_, gpu] = torch_findings(asked | {"devices": [], "problem": old})
    assert (gpu.check, gpu.level, gpu.detail) == ("GPU", "warn", f"not used: {old}")
    [_, gpu] = torch_findings(asked | {"devices": [], "problem": None})
    assert "install torch's CUDA build" in gpu.remedy
    [torch] = torch_findings(asked | {"devices": ["NVIDIA H200"], "problem": None})
    assert "runs on NVIDIA H200" in torch.detail


def test_of_several_gpus_it_says_which_is_taken_and_how_to_take_another() -> None:
    asked = {"version": "2.13", "built_for": "12.8", "threads": 2, "capability": "AVX512"}
    [torch] = torch_findings(asked | {"devices": ["RTX 3060", "RTX 4090"], "problem": None})
    assert "runs on RTX 3060, or by qcn.engine.device on cuda:1 RTX 4090" in torch.detail


def test_a_plan_for_a_small_card_is_explained() -> None:
    said = explained(
        {
            "format": "int4",
            "weight_bytes": 46_400_000_000,
            "placement": "gpu and host",
            "context": 65_536,
            "experts_on_gpu": 7_000,
            "experts": 24_576,
            "head": "not worth it",
            "missing_on_cpu": True,
            "host_bytes": 43_500_000_000,
            "position": 16_384,
            "decode_tokens_per_second": 98.4,
            "prefill_tokens_per_second": 5_123.0,
            "ghost_text_seconds": 1.31,
        }
    )
    assert said == (
        "as int4 (46 GB) on the GPU with 7,000 of 24,576 experts, all of them in 44 GB of host "
        "memory, missing ones computed on the CPU; room for a context of 65,536 tokens; its head "
        "for drafts would cost more than it brings. At best, behind 16,384 tokens: 98 tokens/s, a "
        "ghost text in 1,310 ms, slow while typing; reading 5,123 tokens/s"
    )


def test_a_gpu_that_multiplies_fp8_is_told_with_both_rates() -> None:
    gpu = {"name": "A GPU", "bandwidth": 4.2e12, "rate": 7.6e14, "link": 5e10, "free_bytes": 1e11}
    machine = {"bandwidth": 5e10, "rate": 1e12}
    assert "multiplies 760 TFLOP/s (1,448 in FP8) and is sent 50.0 GB/s" in rates(
        machine | {"gpu": gpu | {"fp8_rate": 1.448e15}}
    )
    assert "multiplies 760 TFLOP/s and is sent" in rates(
        machine | {"gpu": gpu | {"fp8_rate": None}}
    )


def test_the_planner_plans_a_folder_by_its_shape(tmp_path: Path) -> None:
    nano = Path(qcn_inference.__file__).parent / "data" / "qcn-nano"
    (tmp_path / "config.json").write_bytes((nano / "config.json").read_bytes())
    command = [sys.executable, "-m", "qcn_inference.planning", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["machine"]["bandwidth"] > 0
    for plan in report["plans"]:
        assert plan["placement"] == ("gpu" if report["machine"]["gpu"] else "cpu")
        assert plan["context"] == 8192
        assert plan["ghost_text_seconds"] > 0
    (tmp_path / "config.json").write_text("{")
    broken = subprocess.run(command, capture_output=True, text=True)
    assert broken.returncode == 1
    assert str(tmp_path / "config.json") in broken.stderr

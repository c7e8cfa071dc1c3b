"""`qcn bench` on the embedded model: what it measures, prints and writes; no speed is judged."""

import json
import signal
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
import torch
from command_support import qcn
from engine_support import write_model
from qcn_inference.bench import __main__ as bench_process
from qcn_inference.bench import measure as bench
from qcn_inference.bench import waiting
from qcn_inference.bench.measure import Figures, LeftOut, measure
from qcn_inference.bench.models import UnfitError, synthetic
from qcn_inference.bench.synthetic import SPREAD, RandomTensors, random_ids
from qcn_inference.checkpoint import load_model
from qcn_inference.config import load_config
from qcn_inference.device import multiplies_bf16
from qcn_inference.embedded import checkpoint_folder
from qcn_inference.offload.device import Experts
from qcn_inference.planning.footprint import FORMATS, Footprint, as_loaded
from qcn_inference.planning.machine import Gpu, Machine
from qcn_inference.planning.plan import CHECKPOINTS, Plan
from qcn_inference.weights import _moe, _stacked_experts
from qcn_kernels.fp8 import Fp8Matrices, dequantise
from qcn_kernels.groupwise import GroupwiseMatrices
from simulated_device import SimulatedDevice

from qcn_lsp.commands.plot import Line, plot


def test_every_figure_stands_beside_its_floor_and_the_peers(runtime: Path, tmp_path: Path) -> None:
    done = qcn("bench", "--lengths", "256", "512", "--output", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert json.loads((tmp_path / "bench.json").read_text()) == measured
    first, second = measured["prompts"]
    assert [first["tokens"], second["tokens"]] == [256, 512]
    assert first["edit_operations"] < second["edit_operations"]  # attention looks further back
    for one in (first, second):
        assert one["measured"]
        for what in ("prefill", "decode", "edit"):
            assert one[f"{what}_seconds"] > 0
            assert one[f"{what}_floor"] > 0
    assert 2 < second["prefill_operations"] / first["prefill_operations"] < 2.2
    # Weights of qcn-nano that a token reads, and what the longer prompt's KV adds.
    itemsize = 2 if multiplies_bf16() else 4
    assert 6.5e6 < first["decode_bytes"] / itemsize < 8e6
    assert second["decode_bytes"] - first["decode_bytes"] == 256 * 2 * 2 * 2 * 64 * 2
    assert measured["machine"]["bandwidth"] > 0
    assert measured["first_completion"]["first_milliseconds"] > 0
    assert not measured["first_completion"]["engine_was_running"]
    drawn = ElementTree.fromstring((tmp_path / "bench.svg").read_text())
    assert drawn.tag.endswith("svg")
    # transformers is installed for the tests.
    assert measured["peers"]["transformers"]["linear_attention"] == "torch"
    peers = measured["peers"]["transformers"]["prompts"]
    assert [one["tokens"] for one in peers] == [256, 512]
    assert all(one["decode_seconds"] > 0 for one in peers)


def test_random_weights_are_measured_without_a_checkpoint(runtime: Path) -> None:
    done = qcn("bench", "--synthetic", "qcn-nano-bf16", "--device", "cpu", "--lengths", "64")
    assert done.returncode == 0, done.stderr
    assert "qcn-nano-bf16, bf16, on cpu" in done.stdout
    assert "random weights have no checkpoint" in done.stdout
    (row,) = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["64"]]
    assert "tok/s" in row
    assert "GFLOP" in row


def test_what_is_known_is_said_at_once_with_the_command_that_gave_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--synthetic", "qcn-nano-bf16", "--device", "cpu", "--lengths", "40", "70"]
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python3", "-m", "qcn_inference.bench", *asked])
    assert bench_process.main(asked) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = said[-1]["result"]
    assert [line["prompt"] for line in said if "prompt" in line] == result["prompts"]
    assert result["command"] == "python -m qcn_inference.bench " + " ".join(asked)
    assert result["versions"]["torch"] == torch.__version__
    assert (result["placement"], result["experts_on_gpu"]) == ("cpu", 0)


def test_completions_are_asked_for_while_a_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one that counts came between the steps of the long text, and before its end."""
    monkeypatch.setattr(waiting, "BEHIND", 512)
    monkeypatch.setattr(waiting, "TAIL", 20)
    folder = write_model(tmp_path / "small", context_length=4096)
    engine = waiting.engine_of(load_model(folder), folder)
    said: list[str] = []
    found = waiting.waits(engine, 3000, tries=4, report=said.append)
    assert said[-1].startswith("completion 4 of 4 waited ")
    assert found.tokens == 3000
    assert found.wait.count == found.first_token.count == 4
    assert found.first_token_quiet.count == waiting.QUIET
    for one in (found.wait, found.first_token, found.first_token_quiet):
        assert 0 < one.median <= one.most
        assert one.p95 <= one.most
    assert found.wait.most < found.first_token.most
    assert found.refresh_seconds > 0
    assert len(engine.cache) == 1  # what stands in front of completions is read once


def test_a_completion_asked_for_when_nothing_is_read_does_not_count(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "small", context_length=4096)
    engine = waiting.engine_of(load_model(folder), folder)
    with waiting._working(engine) as scheduler:
        asking = waiting._Asking(engine, scheduler)
        refresh = asking.refresh(600)
        refresh.result()
        assert not asking.ask(refresh).counts
        assert asking.ask(Future()).counts  # one that is not over


def test_random_experts_lie_in_host_memory_where_a_gpu_has_room_for_some() -> None:
    """As on a card with room for a third of them, and 4,096 tokens beside."""
    config = load_config(checkpoint_folder("qcn-nano"))
    foot = Footprint(config, FORMATS[0])
    slots = foot.experts // 3
    free = foot.working_bytes + foot.resident_bytes + 4096 * foot.kv_bytes
    free += CHECKPOINTS * foot.checkpoint_bytes + slots * foot.expert_bytes
    found = Machine(2**40, 1e9, 1e15, Gpu("simulated", free, 1e15, 1e18, 1e9))
    devices = []

    def simulated(count: int, like: Experts, on: torch.device) -> SimulatedDevice:
        devices.append(SimulatedDevice(count, like, link=1e9))
        return devices[-1]

    on = torch.device("cpu")
    model, floor = synthetic("qcn-nano-bf16", on, found, longest=4096, slots=simulated)
    assert (floor.placement, floor.slots, floor.context) == ("gpu and host", slots, 4096)
    (device,) = devices
    ids = random_ids(config.vocab_size, 600)
    assert model.prefill(ids, model.new_state()).isfinite().all()
    assert device.copied_bytes >= (foot.experts - slots) * foot.expert_bytes


def test_a_gpu_that_no_plan_fits_is_refused_with_what_is_missing() -> None:
    small = Machine(2**30, 1e9, 1e12, Gpu("small", 2**30, 1e12, 1e14, 1e10))
    on = torch.device("cpu")
    with pytest.raises(UnfitError, match=r"of small's memory, of which 1\.1 GB are free"):
        synthetic("qwen3-coder-next-int4", on, small, longest=8192)


def test_what_takes_too_long_or_has_no_room_is_left_out_and_said_so() -> None:
    model = load_model(checkpoint_folder("qcn-nano"))
    foot = Footprint(model.config, as_loaded(model.config, 16))
    floor = Plan(foot, Machine(2**30, 1e9, 1e9), "cpu", 8192, 0, 0, 0)
    found = list(measure(model, floor, [32, 7000], patience=0.0, report=lambda _: None))
    assert isinstance(found[0], Figures)
    assert isinstance(found[1], LeftOut)
    assert "it would take about" in found[1].reason

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("there are 3 MiB too few")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench, "_at", full)
        (without,) = measure(model, floor, [32], patience=9.0, report=lambda _: None)
    assert without == LeftOut(32, "there are 3 MiB too few")


def test_an_interrupt_ends_it_at_once(runtime: Path) -> None:
    command = [sys.executable, "-m", "qcn_inference.bench", "--model", "qcn-nano"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "activity" in json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert "result" not in out
    assert "Traceback" not in err


def test_experts_in_fp8_are_made_as_a_checkpoint_has_them() -> None:
    nano = load_config(checkpoint_folder("qcn-nano"))
    shape = replace(nano, hidden_size=128, moe_intermediate_size=128, num_experts=4)
    tensors = RandomTensors("cpu", torch.bfloat16, "fp8")
    gate_up, down = _stacked_experts(shape, tensors, "layers.0.mlp.experts")
    assert isinstance(gate_up, Fp8Matrices)
    assert isinstance(down, Fp8Matrices)
    assert gate_up.shape == (4, 256, 128)
    weights = dequantise(gate_up.values, scale_inv=gate_up.scale_inv, block=(128, 128))
    assert weights.isfinite().all()
    assert weights.std() == pytest.approx(SPREAD, rel=0.1)


@pytest.mark.parametrize("in_host_memory", [False, True])
def test_experts_of_4_bits_are_made_as_a_converted_checkpoint_has_them(
    in_host_memory: bool,
) -> None:
    nano = load_config(checkpoint_folder("qcn-nano"))
    shape = replace(nano, hidden_size=256, moe_intermediate_size=256, num_experts=4)
    tensors = RandomTensors("cpu", torch.bfloat16, "int4")
    with tensors.experts_in_host_memory(in_host_memory):
        moe = _moe(shape, tensors, "layers.0.mlp")
    assert isinstance(moe.gate_up, GroupwiseMatrices)
    assert isinstance(moe.down, GroupwiseMatrices)
    assert moe.gate_up.shape == (4, 512, 256)
    counted = Footprint(shape, FORMATS[2]).expert_bytes
    assert (moe.gate_up.nbytes + moe.down.nbytes) / 4 == counted
    weights = torch.stack([moe.gate_up[number] for number in range(4)]).float()
    assert weights.std() == pytest.approx(SPREAD, rel=0.05)
    assert abs(weights.mean()) < SPREAD / 50


def test_what_does_not_fit_is_refused_before_memory_is_taken(runtime: Path) -> None:
    """On the CPU FP8 is not multiplied at all; on a GPU it is a matter of its memory."""
    on_cpu = qcn("bench", "--synthetic", "qwen3-coder-next-fp8", "--device", "cpu")
    assert on_cpu.returncode == 1
    assert "on a GPU only" in on_cpu.stderr
    if psutil.virtual_memory().available < 150e9:
        done = qcn("bench", "--synthetic", "qwen3-coder-next-bf16", "--device", "cpu")
        assert done.returncode == 1
        assert "its weights take 159 GB" in done.stderr
        assert "qcn-nano" in done.stderr


def test_a_shape_that_there_is_not_is_told_with_those_there_are(runtime: Path) -> None:
    done = qcn("bench", "--synthetic", "qwen9")
    assert done.returncode == 1
    assert "qcn: there is no qwen9. There are qcn-nano-bf16, " in done.stderr
    assert "usage:" not in done.stderr
    assert "measuring" not in done.stderr  # refused before


@pytest.mark.parametrize(
    ("option", "value"), [("--device-memory-mib", "24000"), ("--kv-cache-dtype", "fp8")]
)
def test_what_is_for_a_gpu_is_refused_where_there_is_none(
    runtime: Path, option: str, value: str
) -> None:
    done = qcn("bench", "--device", "cpu", option, value)
    assert done.returncode == 1
    assert f"{option} is for a GPU" in done.stderr


def test_a_folder_that_is_no_model_is_named(runtime: Path, tmp_path: Path) -> None:
    done = qcn("bench", "--model", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "measuring" not in done.stderr  # refused before


def test_a_plot_shows_its_lines_to_scale() -> None:
    drawn = ElementTree.fromstring(plot("a & b", [Line("up", [(1, 1), (4, 100)])]))
    texts = ["".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "a & b: tokens a second" in texts
    assert {"1", "2", "4", "10", "100", "up"} <= set(texts)
    (line,) = drawn.iter("{http://www.w3.org/2000/svg}polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x0 < x1
    assert y0 > y1
    with pytest.raises(ValueError, match="nothing to draw"):
        plot("empty", [Line("none", [])])

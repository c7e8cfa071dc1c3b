"""`python -m qcn_inference.planning`: with which GPU it plans. Machines are simulated."""

import json
from pathlib import Path

import pytest
import torch
from qcn_inference.embedded import EMBEDDED, checkpoint_folder
from qcn_inference.planning import __main__ as planning
from qcn_inference.planning.machine import Gpu, Machine

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 MiB")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One with a GPU of which all is free."""

    def measure(device: torch.device) -> Machine:
        gpu = Gpu("A GPU", 8 << 30, 3e11, 5e13, 1e10)
        return Machine(32 << 30, 3e10, 1e12, gpu if device == GPU else None)

    monkeypatch.setattr(planning, "choose", lambda _: (GPU, None))
    monkeypatch.setattr(planning, "describe", str)
    monkeypatch.setattr(planning, "measure", measure)
    return monkeypatch


def planned(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[str, str | None]:
    """Where the embedded model would be, and what is said of the GPU."""
    assert planning.main([folder]) == 0
    report = json.loads(capsys.readouterr().out)
    return report["plans"][0]["placement"], report["device_problem"]


def test_it_plans_with_the_gpu_that_an_engine_would_take(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch tells of GPUs too that no kernel runs on: AMD's, or old ones."""
    nano = checkpoint_folder(EMBEDDED)
    assert planned(capsys, nano) == ("gpu", None)
    machine.setattr(planning, "choose", lambda _: (CPU, "built for GPUs of AMD"))
    assert planned(capsys, nano) == ("cpu", None)  # `qcn doctor` has asked why by itself


def test_a_gpu_that_cannot_be_measured_is_left_out_and_told(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program has filled it, say."""

    def measured(device: torch.device) -> Machine:
        if device == GPU:
            raise FULL
        return Machine(32 << 30, 3e10, 1e12)

    machine.setattr(planning, "measure", measured)
    placement, problem = planned(capsys, checkpoint_folder(EMBEDDED))
    assert placement == "cpu"
    assert problem is not None
    assert problem.startswith("the memory of cuda:0 does not suffice")

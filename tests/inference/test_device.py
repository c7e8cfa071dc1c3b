"""Which device is taken, and what is said where it cannot be. Machines are simulated."""

import importlib.machinery
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from qcn_inference import device
from qcn_inference.checkpoint import load_model
from qcn_inference.config import load_config
from qcn_inference.device_memory import DeviceBudget
from qcn_inference.errors import DeviceError, DeviceMemoryError
from random_checkpoints import random_checkpoint

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update"


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with one H100 on which all is well; a test takes away what it is about."""
    found = importlib.machinery.ModuleSpec("triton", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(device, "find_spec", lambda _: found)
    monkeypatch.setattr(device, "_run_a_kernel", lambda _: None)
    return monkeypatch


def without_cuda(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.version, "cuda", None)


def with_an_old_driver(machine: pytest.MonkeyPatch) -> None:
    """Of which torch says that no GPU is available, and why only when it must start CUDA."""

    def refused() -> None:
        raise RuntimeError(OLD_DRIVER)

    machine.setattr(torch.cuda, "init", refused)
    machine.setattr(torch.cuda, "is_available", lambda: False)


def without_a_gpu(machine: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise RuntimeError("No CUDA GPUs are available")

    machine.setattr(torch.cuda, "init", refused)


def without_triton(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(device, "find_spec", lambda _: None)


def with_an_old_card(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))


def with_torch_for_amd(machine: pytest.MonkeyPatch) -> None:
    """Which tells of AMD's GPUs as if they were CUDA's."""
    machine.setattr(torch.version, "cuda", None)
    machine.setattr(torch.version, "hip", "7.1")
    machine.setattr(torch.cuda, "is_available", lambda: True)


def with_torch_for_intel(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.version, "cuda", None)
    machine.setattr(torch.version, "xpu", "20250301")


def on_windows(machine: pytest.MonkeyPatch) -> None:
    without_triton(machine)
    machine.setattr(sys, "platform", "win32")


def kernels_raise(machine: pytest.MonkeyPatch, error: Exception) -> None:
    def run(_: torch.device) -> None:
        raise error

    machine.setattr(device, "_run_a_kernel", run)


def without_a_c_compiler(machine: pytest.MonkeyPatch) -> None:
    def run(_: torch.device) -> None:
        from triton.runtime import build

        build._find_compiler.cache_clear()
        build._find_compiler("c")

    machine.setenv("PATH", "")
    machine.delenv("CC", raising=False)
    machine.setattr(device, "_run_a_kernel", run)


def with_kernels_that_have_a_defect(machine: pytest.MonkeyPatch) -> None:
    kernels_raise(machine, TypeError("launch() got an unexpected argument"))


def with_a_full_gpu(machine: pytest.MonkeyPatch) -> None:
    """Not even CUDA's own memory is there."""
    kernels_raise(machine, torch.AcceleratorError("CUDA error: out of memory"))


def with_a_gpu_that_slept(machine: pytest.MonkeyPatch) -> None:
    kernels_raise(machine, RuntimeError("Triton Error [CUDA]: unknown error"))


def with_torch_of_other_chips(machine: pytest.MonkeyPatch) -> None:
    kernels_raise(machine, torch.AcceleratorError("CUDA error: no kernel image is available"))


Lack = Callable[[pytest.MonkeyPatch], None]
LACKS: dict[Lack, str] = {
    without_cuda: "without CUDA",
    with_an_old_driver: r"driver on your system is too old .*driver for CUDA 12.8",
    without_a_gpu: r"No CUDA GPUs are available.*nvidia-smi",
    without_triton: "Triton, which is not installed.*pip install",
    on_windows: r"Triton, which is not installed.*none for this system: .*\(on Windows in WSL\)",
    with_torch_for_amd: "built for GPUs of AMD; our kernels run on GPUs of NVIDIA alone",
    with_torch_for_intel: "built for GPUs of Intel; our kernels run on GPUs of NVIDIA alone",
    without_a_c_compiler: r"no kernel .* on cuda:0 \(NVIDIA H100\): .* C compiler.*Install one",
    with_kernels_that_have_a_defect: r"no kernel .*TypeError: launch\(\).*report it",
    with_a_full_gpu: "memory of cuda:0 .*End them",
    with_torch_of_other_chips: "no kernel .*Update the NVIDIA driver.*build of torch",
    with_an_old_card: r"compute capability 7.5; our kernels need 8.0",
}


def test_a_gpu_that_is_asked_for_and_usable_is_taken(gpu_machine: pytest.MonkeyPatch) -> None:
    assert device.choose("cuda") == device.choose("cuda:0") == (torch.device("cuda", 0), None)
    assert device.choose("auto") == (torch.device("cuda", 0), None)
    assert device.choose("cpu") == (torch.device("cpu"), None)
    assert device.describe(torch.device("cuda", 0)) == "cuda:0 (NVIDIA H100)"


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: lack.__name__)
def test_a_gpu_that_cannot_be_used_is_refused_with_the_reason_and_the_remedy(
    gpu_machine: pytest.MonkeyPatch, lack: Lack
) -> None:
    lack(gpu_machine)
    with pytest.raises(
        DeviceError, match=LACKS[lack] + r'.*set "qcn.engine.device" to "cpu" .*--device cpu'
    ):
        device.choose("cuda")


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: lack.__name__)
def test_left_to_itself_it_takes_the_cpu_instead(
    gpu_machine: pytest.MonkeyPatch, lack: Lack
) -> None:
    lack(gpu_machine)
    chosen, problem = device.choose("auto")
    assert chosen == torch.device("cpu")
    if lack in (without_cuda, without_a_gpu):
        assert problem is None  # nobody thought of a GPU
    else:
        assert problem is not None
        assert re.search(LACKS[lack], problem)


def test_a_gpu_of_a_number_that_is_not_there_is_refused(gpu_machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="no GPU number 3; the machine shows 1"):
        device.choose("cuda:3")


def test_a_gpu_that_has_slept_is_told_as_lost(gpu_machine: pytest.MonkeyPatch) -> None:
    with_a_gpu_that_slept(gpu_machine)
    with pytest.raises(DeviceError, match=r"failed while it was made ready.*has slept, restart it"):
        device.choose("cuda")
    chosen, problem = device.choose("auto")
    assert chosen == torch.device("cpu")
    assert problem is not None


def test_weights_that_cannot_fit_are_refused_before_they_are_read(
    gpu_machine: pytest.MonkeyPatch,
) -> None:
    gpu_machine.setattr(torch.cuda, "mem_get_info", lambda _: (6 << 30, 8 << 30))
    device.require_room(torch.device("cuda", 0), 3 << 30, 2 << 30)
    with pytest.raises(DeviceMemoryError, match=r"weights take 5120 MiB.*8192 MiB 6144 are free"):
        device.require_room(torch.device("cuda", 0), 5 << 30, 2 << 30)


def test_an_engine_that_may_not_take_all_plans_with_its_part(
    gpu_machine: pytest.MonkeyPatch,
) -> None:
    """So that two have room on one GPU, whichever is started first."""
    gpu, fraction = torch.device("cuda", 0), [1.0]
    free = [7 << 30]

    def limit(to: float, _: torch.device) -> None:
        fraction[0] = to

    gpu_machine.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 8 << 30))
    gpu_machine.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    gpu_machine.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fraction[0])
    device.limit_memory(gpu, 4 << 30)
    assert device.memory(gpu) == (4 << 30, 8 << 30)
    with pytest.raises(DeviceMemoryError, match=r"4096 are free"):
        device.require_room(gpu, 3 << 30, 2 << 30)
    gpu_machine.setattr(torch.cuda, "memory_reserved", lambda _: 3 << 30)  # weights
    assert device.room_for_states(gpu, 1 << 29) == 1 << 29
    free[0] = 1 << 29  # another program has the rest
    assert device.memory(gpu)[0] == 1 << 29
    device.limit_memory(gpu, 99 << 30)
    assert fraction == [1.0]


def test_too_little_memory_for_states_is_refused(tmp_path: Path) -> None:
    config = load_config(random_checkpoint(tmp_path, 7))
    with pytest.raises(DeviceMemoryError, match=r"0 MiB of GPU memory are left .*smaller model"):
        DeviceBudget.of(config, torch.float32, 1000)


def test_a_checkpoint_is_loaded_onto_the_cpu_as_ever(tmp_path: Path) -> None:
    model = load_model(random_checkpoint(tmp_path, 7), device="cpu")
    assert model.device == torch.device("cpu")
    assert not model.runs_kernels


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (RuntimeError("Triton Error [CUDA]: unknown error"), True),
        (RuntimeError("Triton Error [CUDA]: the launch timed out and was terminated"), True),
        (RuntimeError("Triton Error [CUDA]: no CUDA-capable device is detected"), True),
        (RuntimeError("CUDA driver error: unknown error"), True),
        (RuntimeError("CUDA driver error: out of memory"), False),
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution"), False),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), False),
        (RuntimeError("Triton Error [CUDA]: invalid argument"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), False),
        (
            torch.AcceleratorError(
                "CUDA error: operation failed due to a previous error during capture"
            ),
            False,
        ),
        (DeviceMemoryError("the GPU has room for 1024 tokens"), False),
        (ValueError("token id 5"), False),
    ],
)
def test_a_lost_gpu_is_told_from_one_that_is_full(error: Exception, lost: bool) -> None:
    assert device.is_lost(error) is lost


def test_of_memory_that_is_not_given_half_is_taken_until_it_is_too_little() -> None:
    """Another engine took what was free when it was looked at."""
    asked: list[int] = []

    def take(given: int, nbytes: int) -> None:
        asked.append(nbytes)
        if nbytes < 100:
            raise DeviceMemoryError("too little")
        if nbytes > given:
            raise torch.OutOfMemoryError("CUDA out of memory")

    device.take_most(1600, lambda nbytes: take(500, nbytes))
    assert asked == [1600, 800, 400]
    with pytest.raises(DeviceMemoryError, match="too little"):
        device.take_most(1600, lambda nbytes: take(0, nbytes))
    assert asked[3:] == [1600, 800, 400, 200, 100, 50]

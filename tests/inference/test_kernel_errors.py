"""What is said where no kernel can be compiled or launched; each error is Triton's own."""

import stat
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from qcn_inference.kernel_errors import explained, is_of_kernels
from qcn_inference.service.errors import as_api_error

pytest.importorskip("triton")  # there is none for macOS and Windows

from ahead_of_time import compile_launches
from qcn_kernels.fp8.triton import quantise
from triton.backends.nvidia import driver
from triton.runtime import build
from triton_faults import take_more_than_there_is

Machine = pytest.MonkeyPatch
HOLDS_NO_MODULE = "int nothing;"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """One on which Triton has not built anything yet; a test takes away what it is about."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    build._find_compiler.cache_clear()
    driver.libcuda_dirs.cache_clear()
    return monkeypatch


def error_of(fails: Callable[[], object]) -> Exception:
    try:
        fails()
    except Exception as error:
        return error
    raise AssertionError("it went well")


def build_launcher() -> None:
    """As Triton does before the first launch, from other C."""
    build.compile_module_from_src(HOLDS_NO_MODULE, "launcher")


def test_without_a_c_compiler(machine: Machine, tmp_path: Path) -> None:
    machine.setenv("PATH", str(tmp_path))
    error = error_of(build_launcher)
    assert is_of_kernels(error)
    assert "Failed to find C compiler" in explained(error)
    assert "Install one (Debian, Ubuntu and Fedora: gcc), or set CC" in explained(error)
    answer = as_api_error(error)  # of a kernel that is first used in the middle of a request
    assert (answer.status, answer.kind) == (500, "internal_error")
    assert answer.message == f"a kernel does not run: {explained(error)}."


def test_with_a_compiler_that_is_not_there(machine: Machine) -> None:
    machine.setenv("CC", "no-such-compiler")
    told = explained(error_of(build_launcher))
    assert "no-such-compiler" in told
    assert "or set CC to yours" in told


@pytest.mark.parametrize("headers", [True, False])
def test_where_the_compiler_fails(machine: Machine, tmp_path: Path, headers: bool) -> None:
    """For want of Python's headers above all: many systems have them in a package of their own."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(stat.S_IRWXU)
    machine.setenv("CC", str(compiler))
    include = tmp_path / "include"
    include.mkdir()
    if headers:
        (include / "Python.h").touch()
    machine.setattr(sysconfig, "get_paths", lambda **_: {"include": str(include)})
    error = error_of(build_launcher)
    assert isinstance(error, subprocess.CalledProcessError)
    assert is_of_kernels(error)
    told = explained(error)
    if headers:
        assert f"{compiler} failed. Its own words are in the engine's log" in told
    else:
        assert f"{include / 'Python.h'} is not there. Install the headers of Python" in told
        assert "python3-dev" in told


def test_where_its_folder_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    machine.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    error = error_of(build_launcher)
    assert is_of_kernels(error)
    assert str(tmp_path / "file") in explained(error)
    assert "set TRITON_CACHE_DIR to another folder" in explained(error)


def test_where_what_it_built_cannot_be_loaded(machine: Machine) -> None:
    error = error_of(build_launcher)
    assert isinstance(error, ImportError)
    assert "cannot be loaded" in explained(error)
    assert "noexec" in explained(error)


def test_without_the_drivers_library(machine: Machine) -> None:
    machine.setattr(subprocess, "check_output", lambda _: b"")
    machine.delenv("LD_LIBRARY_PATH", raising=False)
    told = explained(error_of(driver.libcuda_dirs))
    assert "Set TRITON_LIBCUDA_PATH to the folder" in told


def compile_for_a_chip_without_fp8() -> None:
    compile_launches(80, lambda: quantise(torch.ones(1, 128)))


@pytest.mark.parametrize("fails", [compile_for_a_chip_without_fp8, take_more_than_there_is])
def test_a_kernel_that_is_not_for_this_chip(machine: Machine, fails: Callable[[], None]) -> None:
    error = error_of(fails)
    assert is_of_kernels(error)
    assert type(error).__name__ in explained(error)
    assert "report it with the GPU's name" in explained(error)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain.",
    ],
)
def test_code_that_the_driver_does_not_run(said: str) -> None:
    error = RuntimeError(f"{said}\nCompile with TORCH_USE_CUDA_DSA")
    assert is_of_kernels(error)
    assert said.rstrip(".") in explained(error)
    assert "Update the NVIDIA driver" in explained(error)


def test_an_error_from_elsewhere_is_none_of_a_kernel() -> None:
    assert not is_of_kernels(error_of(lambda: int("no number")))
    assert not is_of_kernels(error_of(lambda: Path("/no/such/file").read_text()))

"""What to do where our kernels cannot be compiled, loaded or launched on a machine.

Triton compiles them at their first launch. For that it has a C compiler build two small libraries,
against Python's headers, and it keeps all of it in a folder of the user's. None of that is checked
when it is installed; what fails comes as an error of whatever kind it happens to be.
"""

import subprocess
import sys
import sysconfig
import traceback
from pathlib import Path

_NO_IMAGE = (
    "no kernel image is available",
    "kernel image is invalid",
    "unsupported toolchain",
    "PTX JIT",
    "driver version is insufficient",
    "unsupported display driver",
)
"""In CUDA's words for code that was built for other GPUs, or for a newer driver."""
_COMPILER = "Triton builds what launches kernels with a C compiler, once, and"


def is_of_image(error: BaseException) -> bool:
    """Whether an error says that code is for other GPUs or drivers; the GPU is fit for other."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_IMAGE)


def is_of_kernels(error: BaseException) -> bool:
    """Whether an error came from compiling, loading or launching a kernel."""
    return (
        is_of_image(error)
        or "Triton Error" in str(error)
        or any(module.partition(".")[0] == "triton" for module in _modules(error))
    )


def explained(error: BaseException) -> str:
    """Say why a kernel does not run and what to do, as one passage without its full stop.

    Not for errors of lacking memory and of lost GPUs, which Triton tells as well.
    """
    modules, line = _modules(error), _first_line(error)
    if is_of_image(error):
        return (
            f"the driver, or this build of torch, has no code for it ({line}). Update the NVIDIA "
            "driver; where that does not help, install the build of torch for the newest CUDA that "
            "nvidia-smi shows"
        )
    if isinstance(error, OSError) and _is_of_writing(error, modules):
        return (
            f"Triton cannot write what it compiles ({line}). See to it that there is room and that "
            "you may write there, or set TRITON_CACHE_DIR to another folder"
        )
    if "triton.runtime.build" in modules:
        return _of_building(error)
    if "triton.backends.nvidia.driver" in modules and isinstance(
        error, (AssertionError, FileNotFoundError)
    ):
        return (
            f"Triton does not find the driver's libcuda.so.1 ({line}). Set TRITON_LIBCUDA_PATH to "
            "the folder that holds it"
        )
    return (
        f"Triton cannot compile or launch one ({type(error).__name__}: {line}). Update torch and "
        "Triton; if that does not help, report it with the GPU's name"
    )


def _is_of_writing(error: OSError, modules: set[str]) -> bool:
    """Whether a folder is meant, and not a program that is missing."""
    folders = {"triton.runtime.cache", "tempfile"}
    return not isinstance(error, FileNotFoundError) or not folders.isdisjoint(modules)


def _of_building(error: BaseException) -> str:
    """Of the libraries that a C compiler builds, and Python loads from Triton's folder."""
    if isinstance(error, ImportError):
        return (
            f"what Triton has built cannot be loaded ({_first_line(error)}). If its folder is on a "
            "disk without programs (noexec), set TRITON_CACHE_DIR to one elsewhere; else remove it"
        )
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if isinstance(error, subprocess.CalledProcessError) and not headers.is_file():
        python = ".".join(map(str, sys.version_info[:2]))
        return (
            f"{_COMPILER} {headers} is not there. Install the headers of Python {python} (Debian "
            "and Ubuntu: python3-dev, Fedora: python3-devel)"
        )
    if isinstance(error, subprocess.CalledProcessError):
        return f"{_COMPILER} {error.cmd[0]} failed. Its own words are in the engine's log"
    return (
        f"{_COMPILER} none was found ({_first_line(error)}). Install one (Debian, Ubuntu and "
        "Fedora: gcc), or set CC to yours"
    )


def _modules(error: BaseException) -> set[str]:
    """The modules that an error came through."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return {str(frame.f_globals.get("__name__")) for frame in frames}


def _first_line(error: BaseException) -> str:
    """Of CUDA or a compiler, about this program or machine."""
    return str(error).strip().partition("\n")[0].rstrip(".")

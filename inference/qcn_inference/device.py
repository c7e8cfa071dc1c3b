"""Which device the model runs on, whether it can, and what its errors mean.

Every reason against a GPU is told with what to do about it, before any weight is read.
"""

import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec

import torch
from qcn_kernels.rms_norm import rms_norm

from qcn_inference import kernel_errors
from qcn_inference.config import ModelConfig
from qcn_inference.errors import LOST_REMEDY, DeviceError, DeviceMemoryError
from qcn_inference.passes import ON_GPU

log = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)
"""Of our kernels: tensor cores with bf16, asynchronous copies."""
CPU = torch.device("cpu")
USE_CPU = 'or set "qcn.engine.device" to "cpu" (of commands: --device cpu)'
SPARE_BYTES = 512 << 20
"""For what nobody counts: workspaces of libraries, graphs, fragments."""
STATES_UNDER_WAY = 4
"""Requests that are being read or decoded at once, and copies on their way to the host."""
INTERPRETED_BYTES = 64 << 20
"""For the small models of tests, whose kernels are interpreted on the CPU."""

_NO_MEMORY = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)
_NO_GPU = ("Found no NVIDIA driver", "No CUDA GPUs are available")
"""In torch's words for a machine without one."""
_LASTING = (
    *("illegal", "misaligned", "launch failure", "timed out", "assert", "uncorrectable"),
    *("stack error", "address space", "program counter", "hardware error"),
    # Of a GPU that was switched off, fell off the bus, or slept with its laptop.
    *("unknown error", "no CUDA-capable device", "busy or unavailable"),
    *("invalid device context", "context is destroyed", "driver shutting down"),
)
"""In CUDA's words for what no later call of the process recovers from."""


def multiplies_bf16() -> bool:
    """Return whether torch's products of bf16 matrices use the CPU's vector instructions.

    On an x86 processor they do from AVX-512 on. With AVX2 alone they take six to ten times as long
    as those of fp32 (torch 2.13, measured on one AMD core), and those of single rows twice.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose(name: str) -> tuple[torch.device, str | None]:
    """Find the device that a setting names.

    Args:
        name: `cpu`; `cuda` or `cuda:N` for a GPU that must be usable; `auto` for the first GPU if
            it is, else the CPU.

    Returns:
        The device, and for `auto` why it is not the GPU that is there.

    Raises:
        DeviceError: the GPU that was asked for cannot be used.
    """
    if name == "cpu":
        return CPU, None
    if name != "auto":
        return _checked(int(name.partition(":")[2] or 0)), None
    if torch.version.cuda is None:
        vendor = _other_vendor()
        return CPU, None if vendor is None else _built_for(vendor)
    try:
        return _checked(0), None
    except DeviceError as error:
        # `torch.cuda.is_available` would not tell an old driver from a machine without a GPU.
        is_there = not any(text in str(error) for text in _NO_GPU)
        return CPU, str(error) if is_there else None


def _checked(number: int) -> torch.device:
    """A GPU by its number. Raises DeviceError, with the remedy, if our kernels cannot run on it."""
    if torch.version.cuda is None:
        raise DeviceError(_built_for(_other_vendor()))
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        slept = " Where the machine has slept, restart it." if "unknown error" in reason else ""
        raise DeviceError(
            f"CUDA cannot be started: {reason}.{slept} Check with nvidia-smi that the machine has "
            f"an NVIDIA GPU and a driver for CUDA {torch.version.cuda} or newer, {USE_CPU}."
        ) from error
    if number >= torch.cuda.device_count():
        raise DeviceError(
            f"there is no GPU number {number}; the machine shows {torch.cuda.device_count()}, "
            "counted from 0, without those that CUDA_VISIBLE_DEVICES hides. Choose another, "
            f"{USE_CPU}."
        )
    if find_spec("triton") is None:
        how = (
            "Run `pip install triton`"
            if sys.platform == "linux"
            else "There is none for this system: run qcn-lsp on Linux (on Windows in WSL)"
        )
        raise DeviceError(
            f"the kernels for the GPU need Triton, which is not installed. {how}, {USE_CPU}."
        )
    found = torch.cuda.get_device_capability(number)
    if found < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(number)
        raise DeviceError(
            f"{name} has compute capability {found[0]}.{found[1]}; our kernels need "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (RTX 30 or newer). Choose another GPU, "
            f"{USE_CPU}."
        )
    device = torch.device("cuda", number)
    try:
        _run_a_kernel(device)
    except Exception as error:
        name = describe(device)
        raise failed(name, error) or _without_kernels(name, error) from error
    return device


def _other_vendor() -> str | None:
    """Return for whose GPUs torch was built, where that is not NVIDIA."""
    if torch.version.hip is not None:
        return "AMD"
    return "Intel" if torch.version.xpu is not None else None


def _built_for(vendor: str | None) -> str:
    """Say why a build of torch without CUDA is of no use to the kernels."""
    built = "was built without CUDA" if vendor is None else f"was built for GPUs of {vendor}"
    return (
        f"torch {torch.__version__} {built}; our kernels run on GPUs of NVIDIA alone. Where there "
        f"is one, install a build of torch with CUDA (there is none for macOS), {USE_CPU}."
    )


def _run_a_kernel(device: torch.device) -> None:
    """Have one of ours compiled, loaded and launched, as all the others will be."""
    with torch.cuda.device(device):
        rms_norm(torch.ones(1, 16, device=device), scale=torch.ones(16, device=device), eps=1e-6)
        torch.cuda.synchronize(device)


def failed(name: str, error: Exception) -> DeviceError | None:
    """Say what an error means for a GPU of this name, and what to do.

    None where the GPU has no part in it.
    """
    if is_out_of_memory(error):
        return DeviceMemoryError(
            f"the memory of {name} does not suffice, of which other programs may have taken some. "
            f"End them, take a smaller or a quantised model, {USE_CPU}."
        )
    if is_lost(error):
        return DeviceError(
            f"{name} failed while it was made ready ({type(error).__name__}). {LOST_REMEDY}"
        )
    return _without_kernels(name, error) if kernel_errors.is_of_kernels(error) else None


def _without_kernels(name: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"no kernel of ours runs on {name}: {kernel_errors.explained(error)}, {USE_CPU}."
    )


def describe(device: torch.device) -> str:
    """Name a device for people: `cpu`, or `cuda:0 (NVIDIA H200)`."""
    if device.type == "cpu":
        return "cpu"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def make_current(device: torch.device) -> None:
    """Have this thread launch on a device from now on: Triton asks for the current one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def working_bytes(config: ModelConfig) -> int:
    """Count what the longest pass takes at its widest, beside weights and the states' pages."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention = 2 * (heads + kv_heads) * config.head_dim
    deltanet = config.linear_conv_dim + config.linear_value_dim + 2 * config.linear_num_value_heads
    # In 16 bits: a projection, its parts and its output; experts' outputs and what is between. In
    # 32: the residual stream, its norm and what is added to it.
    experts = config.num_experts_per_tok * (config.hidden_size + config.moe_intermediate_size)
    token = 2 * (3 * max(attention, deltanet) + experts) + 12 * config.hidden_size
    layers = config.layer_types.count("linear_attention")
    state = 4 * layers * config.linear_value_dim * config.linear_key_head_dim
    states = (ON_GPU.checkpoints + STATES_UNDER_WAY) * state
    return ON_GPU.tokens * token + states + SPARE_BYTES


def limit_memory(device: torch.device, nbytes: int) -> None:
    """Let this process take no more than this of a GPU, weights included.

    torch's allocator sees to it. What CUDA takes for itself comes on top, some 500 MB.
    """
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), device)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU that are free for this process, and all there are."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return max(0, min(free, allowed - torch.cuda.memory_reserved(device))), total


def require_room(device: torch.device, weights: int, working: int) -> None:
    """Refuse weights of so many bytes that cannot fit. Raises DeviceMemoryError."""
    if device.type == "cpu":
        return
    free, total = memory(device)
    if weights + working > free:
        raise DeviceMemoryError(
            f"the weights take {weights >> 20} MiB and the work some {working >> 20} MiB; of the"
            f" GPU's {total >> 20} MiB {free >> 20} are free. End other programs on the GPU, "
            f"take a smaller or a quantised model, {USE_CPU}."
        )


def room_for_states(device: torch.device, working: int) -> int:
    """Bytes that states may take once the weights are loaded."""
    if device.type == "cpu":
        return INTERPRETED_BYTES
    give_back()  # what loading took for a moment is free as well
    free, _ = memory(device)
    return free - working


def take_most(nbytes: int, take: Callable[[int], None]) -> None:
    """Take so much memory by `take`; where that is refused, half of it, and so on.

    What was free a moment ago another program may have by now, another engine, say.

    Args:
        nbytes: what is free.
        take: raises an error of lacking memory where it is refused, or where too little is left
            beside it; DeviceMemoryError for what is too little to be of use, which ends it.
    """
    while True:
        try:
            take(nbytes)
            return
        except RuntimeError as error:
            if nbytes <= 0 or not is_out_of_memory(error):
                raise
        # Behind the handler: the error holds the frames of what failed, and they its tensors.
        log.warning("%d MiB of GPU memory are not given: half of that is tried", nbytes >> 20)
        give_back()
        nbytes //= 2


def give_back() -> None:
    """Give what torch holds of a GPU in reserve to whoever wants it; does nothing without one."""
    torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; the GPU is fit for more.

    torch has an error of its own for what its allocator is refused. Locked host memory, libraries
    and Triton report the driver's.
    """
    if isinstance(error, (torch.OutOfMemoryError, DeviceMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_of_capture(error: BaseException) -> bool:
    """Whether an error says that something cannot be captured in a graph; the GPU is fit for more.

    CUDA's nine errors of captures all use the word, and torch raises them as it does any other.
    """
    return isinstance(error, RuntimeError) and "captur" in str(error).partition("\n")[0]


def is_lost(error: BaseException) -> bool:
    """Whether an error says that the GPU, or this process' use of it, is beyond repair.

    CUDA reports what went wrong in a kernel, or with the card, at some later call; every further
    call in the process fails in the same way. A launch by Triton may be that call, but may also
    be refused for reasons of its own.
    """
    if is_out_of_memory(error) or is_of_capture(error) or kernel_errors.is_of_image(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "CUDA error" in text
        or "CUDA driver error" in text
        or ("Triton Error [CUDA]" in text and any(word in text for word in _LASTING))
    )

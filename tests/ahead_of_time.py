"""Compile what a launcher would launch on a chip that is not there, and read the report.

The launcher itself is called, with tensors on the CPU, while Triton's launch is replaced by one
that notes the kernel and its arguments: what is compiled is what is shipped.
"""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import triton
from qcn_kernels import chip
from qcn_kernels.launch import Kernel
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

# Bytes one block may have, less the 1 KiB the driver keeps where it does (CUDA C++ Programming
# Guide, compute capabilities).
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
REGISTERS = 65_536  # of a multiprocessor, of every chip here
RESIDENT = {80: (164, 64, 32), 86: (100, 48, 16), 89: (100, 48, 24), 90: (228, 64, 32)}
RESIDENT[120] = RESIDENT[89]
"""What a multiprocessor holds at once at most: KiB of shared memory, warps, blocks (ibid.)."""
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
OPTIONS = ("num_warps", "num_stages", "launch_pdl", "maxnreg", "enable_fp_fusion")
WIDTH = re.compile(r"\bld\.global\S*?\.(?:v(\d)\.)?b(\d+)")
PRODUCT = re.compile(r"\bw?g?mma\.(?:sync|mma_async)\S*")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler says of one kernel on one chip."""

    name: str
    registers: int  # per thread
    spilled: int  # bytes, stores and loads
    stack: int  # bytes
    shared: int  # bytes per block
    products: frozenset[str]  # tensor-core instructions in the PTX
    loads_ahead: bool  # whether loads are asynchronous copies
    exponents: dict[str, int]  # of powers of 2 in the PTX: how many by what makes them
    stores: dict[str, int]  # to global memory in the PTX: how many of each width, `v4.b32` the most
    loaded: int  # bytes a thread loads from there into registers, as the PTX stands
    warps: int  # of a block
    stages: int  # of its loops: how many rounds' asynchronous copies share memory

    def blocks(self, chip: int) -> int:
        """How many blocks a multiprocessor of a chip holds at once."""
        shared, warps, blocks = RESIDENT[chip]
        registers = 32 * self.warps * -(-self.registers // 8) * 8  # given out by eights
        of_shared = (shared << 10) // (self.shared + 1024)  # the driver keeps some of each block's
        return min(REGISTERS // registers, of_shared, warps // self.warps, blocks)

    def in_flight(self, chip: int) -> int:
        """How many bytes its blocks have a multiprocessor load at once, at most.

        Of copies to shared memory all rounds but the one that is computed; of loads to registers
        all there are, as where none waits for another.
        """
        if self.loads_ahead:
            return self.blocks(chip) * self.shared * (self.stages - 1) // self.stages
        return self.blocks(chip) * 32 * self.warps * self.loaded

    def row(self, operation: str, chip: int) -> str:
        """Its row in a table of occupancy: see `test_compile.py`."""
        blocks = self.blocks(chip)
        warps = f"{blocks * self.warps} of {RESIDENT[chip][1]}"
        cells = (chip, operation, self.name, self.registers, self.shared, blocks, warps)
        return f"| {' | '.join(map(str, cells))} | {self.in_flight(chip) / 1024:.1f} |"


@dataclass(frozen=True, slots=True)
class _Launch:
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


def compile_launches(
    capability: int, launcher: Callable[[], object], *, but_for: int | None = None
) -> list[Compiled]:
    """Call `launcher` as if on a chip; compile each kernel it launches, in order.

    What it would launch in the same way on the chip `but_for` is left out. Results of the launcher
    are not computed.
    """
    elsewhere = [] if but_for is None else _sources(but_for, launcher)
    known = {(source.name, source.digest, source.options) for source in elsewhere}
    return [
        _compile(source)
        for source in _sources(capability, launcher)
        if (source.name, source.digest, source.options) not in known
    ]


def _sources(capability: int, launcher: Callable[[], object]) -> "list[_Source]":
    with pytest.MonkeyPatch.context() as patch:
        launches = list(_recorded(patch, capability, launcher))
    return [_source_of(launch, capability) for launch in launches]


def _recorded(
    patch: pytest.MonkeyPatch, capability: int, launcher: Callable[[], object]
) -> Iterator[_Launch]:
    launches: list[_Launch] = []

    def note(kernel: Any, grid: Any, *args: Any, **named: Any) -> None:
        del grid
        options = {str(name): named.pop(name) for name in OPTIONS if name in named}
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | named
        assert set(arguments) == set(kernel.arg_names)
        launches.append(_Launch(kernel, arguments, options))

    patch.setattr(Kernel, "launch", note)
    patch.setattr(chip, "capability", lambda _: capability)
    launcher()
    assert launches, "nothing was launched"
    return iter(launches)


@dataclass(frozen=True, slots=True)
class _Source:
    """What is compiled; of equals, which many launchers share, one is."""

    name: str
    digest: str  # of the kernel's code and of all that is known of its arguments
    capability: int
    options: tuple[tuple[str, int], ...]
    source: ASTSource = field(compare=False)


def _source_of(launch: _Launch, capability: int) -> _Source:
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for at, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        specialised = type(value) is int and not parameter.do_not_specialize
        if parameter.is_constexpr or (specialised and value == 1):  # as a launch would
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _type_of(value)
        if isinstance(value, tuple):
            attributes |= {(at, part): [["tt.divisibility", 16]] for part in range(len(value))}
        elif isinstance(value, Tensor) or (specialised and value % 16 == 0):
            attributes[(at,)] = [["tt.divisibility", 16]]
    of = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = of(launch.kernel, signature, constants, attributes)
    options = tuple(sorted(launch.options.items()))
    return _Source(launch.kernel.__name__, source.hash(), capability, options, source)


@cache
def _compile(this: _Source) -> Compiled:
    report = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(triton.knobs.nvidia.scope())
        stack.enter_context(triton.knobs.compilation.scope())
        stack.enter_context(contextlib.redirect_stdout(report))
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # what is cached comes without a report
        compiled = triton.compile(
            this.source, target=GPUTarget("cuda", this.capability, 32), options=dict(this.options)
        )
    ptx = compiled.asm["ptx"]
    return Compiled(
        name=this.name,
        registers=_number(r"Used (\d+) registers", report),
        spilled=_number(r"(\d+) bytes spill stores", report)
        + _number(r"(\d+) bytes spill loads", report),
        stack=_number(r"(\d+) bytes stack frame", report),
        shared=compiled.metadata.shared,
        products=frozenset(PRODUCT.findall(ptx)),
        loads_ahead="cp.async.c" in ptx,  # not the bulk ones: they only bring to L2
        exponents=_exponents(ptx),
        stores=Counter(re.findall(r"\bst\.global\.([\w.]+)", ptx)),
        loaded=sum(int(count or 1) * int(bits) // 8 for count, bits in WIDTH.findall(ptx)),
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
    )


def _exponents(ptx: str) -> dict[str, int]:
    makers = {found[2]: found[1] for found in re.finditer(r"(\w+)\.\S+\s+(%\w+),", ptx)}
    exponents = re.findall(r"ex2\.approx\S*\s+%\w+, (%\w+);", ptx)
    return Counter(makers.get(register, "several at once") for register in exponents)


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type_of, value))
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, GluonDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"
    return {int: "i32", float: "fp32"}[type(value)]


def _number(pattern: str, report: io.StringIO) -> int:
    found = re.search(pattern, report.getvalue())
    assert found, f"ptxas says nothing of {pattern}"
    return int(found[1])

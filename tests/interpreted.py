"""Call a launcher of Triton kernels: interpreted, in a process of its own, or here, on a GPU.

Triton decides when a kernel is defined, its own library's included, whether it will be interpreted.
So a process either interprets or compiles, and pytest's must compile (`ahead_of_time.py`; a GPU).
Each pytest worker therefore keeps one child in which TRITON_INTERPRET is set before Triton is
imported, and sends it a function and its tensors as bytes. The same test calls the same function on
a GPU without a child.

In both, memory that nobody wrote holds NaN.
"""

import contextlib
import dataclasses
import inspect
import io
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

Arguments = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """Calls a launcher with tensors of the CPU, as if it ran there."""

    hardware: bool
    # Returns what a function returned, and the arguments that are tensors as it left them.
    _run: Callable[[Callable[..., Any], Arguments], tuple[Any, Arguments]]

    def __call__(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Return what `function` returns; what it writes in place is written to `arguments`."""
        assert not _is_bound(function), "only arguments are moved: what is bound stays on the CPU"
        result, after = self._run(function, arguments)
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                value.copy_(after[name])
        return result


def as_on(capability: int, function: Callable[..., Any], **arguments: Any) -> Any:
    """Call `function` as if on a chip of this compute capability; for `Caller`, within `partial`.

    On hardware as on the chip that can stand in for it, if any: see `in_place_of`.
    """
    # Whoever imports this may not import Triton: so the imports are here.
    from qcn_kernels import chip

    if not chip.INTERPRETED:
        stand_in = in_place_of(capability, capability_here())
        if stand_in is None:
            pytest.skip(WITHOUT_E4M3)
        capability = stand_in
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chip, "capability", lambda _: capability)
        return function(**arguments)


MULTIPLIES_E4M3 = 89
MUCH_SHARED_MEMORY = (80, 90, 100, 103)
"""Chips on which the tiles of one another's elders fit; 86, 89 and 120 have 99 KiB for a block."""
WITHOUT_E4M3 = "this chip multiplies no FP8"


def in_place_of(capability: int, here: int) -> int | None:
    """Which chip's programs a GPU of capability `here` runs where a test asks for another's.

    A test asks for a chip because it multiplies FP8, or does not: None where this one cannot. Where
    the other's tiles do not fit its shared memory they are its own, or those of a small chip.
    """
    if here in MUCH_SHARED_MEMORY and capability <= here:
        return capability
    if capability >= MULTIPLIES_E4M3:
        return here if here >= MULTIPLIES_E4M3 else None
    return min(here, 86)


def capability_here() -> int:
    """The compute capability of this process's GPU, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def require_e4m3(call: Caller) -> None:
    """Skip a test of kernels that a chip without FP8 does not compile, and never runs."""
    if call.hardware and capability_here() < MULTIPLIES_E4M3:
        pytest.skip(WITHOUT_E4M3)


@contextlib.contextmanager
def interpreter() -> Iterator[Caller]:
    """Keep a child that interprets."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_interpret) as child:

        def run(function: Callable[..., Any], arguments: Arguments) -> tuple[Any, Arguments]:
            call = _packed((function, arguments))
            after: tuple[Any, Arguments] = _unpacked(child.submit(_answer, call).result())
            return after

        yield Caller(hardware=False, _run=run)


@contextlib.contextmanager
def gpu() -> Iterator[Caller]:
    """Run on this process's GPU."""
    before = torch.are_deterministic_algorithms_enabled()
    _poison_memory()
    yield Caller(hardware=True, _run=lambda function, arguments: _run(function, arguments, "cuda"))
    torch.use_deterministic_algorithms(before)


def _interpret() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    _spare_the_interpreter()
    torch.set_num_threads(1)
    _poison_memory()


def _spare_the_interpreter() -> None:
    """Leave out most of what Triton's interpreter does, which changes nothing that it computes.

    At every call of a function in a kernel it looks through Triton's whole language for what it
    has to replace: once for each launch is enough. Of every tensor it makes its shape's objects
    anew, of which one for each shape will do, and asks a table that it makes for it for numpy's
    dtype. And it computes whether each sum and product of integers overflows, and drops the answer:
    assertions are off in its options.
    """
    from triton.language import core
    from triton.runtime import interpreter

    for name in ("_patch_lang", "_get_np_dtype"):
        assert hasattr(interpreter, name), "this Triton calls it otherwise"
    interpreter._patch_lang = _once_for_each_launch(interpreter._patch_lang)

    dtype_of = interpreter._get_np_dtype
    dtypes: dict[str, Any] = {}

    def known_dtype(of: Any) -> Any:
        scalar = of.scalar
        key = "a pointer" if isinstance(scalar, core.pointer_type) else scalar.name
        if key not in dtypes:
            dtypes[key] = dtype_of(of)
        return dtypes[key]

    interpreter._get_np_dtype = known_dtype

    shapes: dict[tuple[int, ...], tuple[Any, int, str]] = {}

    def of_a_block(self: Any, element: Any, shape: Any) -> None:
        key = tuple([getattr(size, "value", size) for size in shape])
        if key not in shapes:
            make_block(self, element, shape)
            shapes[key] = self.shape, self.numel, str(self.shape)
        self.element_ty = element
        self.shape, self.numel, named = shapes[key]
        self.name = f"<{named}, {element}>"

    make_block = core.block_type.__init__
    core.block_type.__init__ = of_a_block

    tensors: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def of_a_tensor(self: Any, handle: Any, kind: Any) -> None:
        key = tuple(kind.shape.values) if kind.is_block() else ()
        if key not in tensors:
            make_tensor(self, handle, kind)
            tensors[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.shape, self.numel = tensors[key]

    make_tensor = core.tensor.__init__
    core.tensor.__init__ = of_a_tensor

    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _once_for_each_launch(patch_lang: Callable[..., Any]) -> Callable[..., Any]:
    """Replace in Triton's language what a kernel's functions see, once for all that see the same.

    What a launch has replaced it puts back at its end; what its functions have, nobody.
    """
    replaced: set[tuple[str, ...]] = set()

    @cache
    def seen_by(function: Any) -> tuple[str, ...]:
        modules = filter(inspect.ismodule, function.__globals__.values())
        names = (module.__name__ for module in modules)
        return tuple(name for name in names if name.startswith("triton.language"))

    def patch(function: Any) -> Any:
        seen = seen_by(function)
        if seen in replaced:
            return None
        scope = patch_lang(function)
        if not replaced:  # a launch
            scope = _Launched(scope, replaced)
        replaced.add(seen)
        return scope

    return patch


@dataclasses.dataclass(frozen=True, slots=True)
class _Launched:
    """What a launch has replaced: afterwards nothing is."""

    scope: Any
    replaced: set[tuple[str, ...]]

    def restore(self) -> None:
        self.replaced.clear()
        self.scope.restore()


def _end_with_parent() -> None:
    """Do not outlive a pytest that was killed: the executor's own child would."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _poison_memory() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It is the default; a change of it would let a test pass on what nobody wrote.
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def _answer(call: bytes) -> bytes:
    function, arguments = _unpacked(call)
    return _packed(_run(function, arguments, "cpu"))


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()  # torch's own: pickle alone does not know FP8
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=False)


def _run(function: Callable[..., Any], arguments: Arguments, device: str) -> tuple[Any, Arguments]:
    there = {name: _moved(value, device) for name, value in arguments.items()}
    result = _moved(function(**there), "cpu")
    tensors = {name: value for name, value in there.items() if isinstance(value, Tensor)}
    return result, _moved(tensors, "cpu")


def _is_bound(value: Any) -> bool:
    """Whether a function has tensors among what `partial` gives it, or a value has."""
    if isinstance(value, partial):
        return any(map(_is_bound, (*value.args, *value.keywords.values())))
    if isinstance(value, tuple):
        return any(map(_is_bound, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_is_bound(getattr(value, field.name)) for field in dataclasses.fields(value))
    return isinstance(value, Tensor)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return _moved_as_it_lies(value, device)
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def _moved_as_it_lies(x: Tensor, device: str) -> Tensor:
    """Move a tensor with what stands between its elements; it begins aligned, whatever it did."""
    if x.device.type == device or not x.numel():
        return x.to(device)
    length = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((length,), (1,)).to(device).as_strided(x.shape, x.stride())

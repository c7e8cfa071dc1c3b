"""Reading a checkpoint's tensors to where the model wants them, in one pass over its files.

Weights are first declared and then read. `place` says to which parts of which matrices a tensor
goes; `load` then reads every file once, from front to back, straight into those parts. A tensor
that is stored as it is wanted goes there without a copy; one that is regrouped or converted passes
through a buffer of `PIECE` bytes. So loading takes the model's own memory and a constant beside it.

A tensor that nothing reads is an error, as an unknown value in `config.json` is, because the model
would compute something else than its makers meant. The multi-token-prediction head (`mtp.*`) and
the vision tower (`model.visual.*`) are the exceptions: the model's answer to a text needs neither.

Rejected: mapping the files into memory. A file that is cut short while it is read, or a disk that
fails, would end the process by a signal, with no word of which file it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import BLOCK, Fp8Matrices, dequantise
from qcn_kernels.groupwise import PARTS, from_parts
from qcn_kernels.moe import Matrices
from torch import Tensor

from qcn_inference.errors import CheckpointError, DeviceMemoryError
from qcn_inference.tensors import DOWNLOAD_AGAIN, StoredTensor, TensorFiles

Progress = Callable[[int, int], None]

PIECE = 8 << 20  # bytes read at once; progress is told after each

_UNUSED = ("mtp.", "model.visual.")
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES = _FLOATS | {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8, "I8": torch.int8}
_DTYPES |= {"I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True, slots=True)
class _Placement:
    tensor: StoredTensor
    scale: StoredTensor | None  # of an FP8 tensor
    parts: tuple[Tensor, ...]


class Loader:
    """Puts tensors into their places: small ones at once, the others all together by `load`."""

    def __init__(
        self,
        files: TensorFiles,
        *,
        fp8_block: tuple[int, int] | None,
        dtype: torch.dtype | None,
        device: str,
        progress: Progress | None,
    ) -> None:
        """Read nothing yet; `dtype` None takes fp32 where the embedding is stored so, else bf16."""
        self._files = files
        self._fp8_block = fp8_block
        self._device = device
        self._progress = progress
        self._placements: list[_Placement] = []
        self._unread = set(files.names)
        self._bytes_done = 0
        self._open: dict[Path, FileIO] = {}
        self.dtype = dtype or self._default_dtype()
        self._in_host_memory = False

    def __contains__(self, name: object) -> bool:
        """Tell whether the checkpoint holds a tensor of this name."""
        return name in self._files

    def find(self, name: str, *shape: int) -> StoredTensor:
        """Return the tensor of this name and shape, to `place` it. Raises CheckpointError."""
        return self._files.find(name, *shape)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a matrix to place tensors into, as products want it, on the model's device."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self._device)

    @contextmanager
    def experts_in_host_memory(self, wanted: bool) -> Iterator[None]:
        """Let experts that are declared meanwhile lie in host memory, pinned for a GPU."""
        self._in_host_memory = wanted
        yield
        self._in_host_memory = False

    def empty_experts(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return matrices to place experts into, where experts are to lie.

        Raises:
            DeviceMemoryError: there is no room for them in host memory.
        """
        dtype = dtype or self.dtype
        if not self._in_host_memory:
            return torch.empty(shape, dtype=dtype, device=self._device)
        return host_memory(*shape, dtype=dtype, pinned=torch.device(self._device).type == "cuda")

    def place(self, tensor: StoredTensor, *parts: Tensor) -> None:
        """Have `load` read a tensor into `parts` of matrices.

        Args:
            tensor: what `find` returned.
            parts: one of the tensor's own shape, or several [G, n_i, ...], whose rows stand side by
                side G times in the tensor: [G · Σ n_i, ...].

        Raises:
            CheckpointError: its dtype is no weight's, or FP8 without scales.
        """
        self._placements.append(_Placement(tensor, self._scale_of(tensor), parts))
        self._unread.discard(tensor.name)

    def keeps_fp8(self, tensor: StoredTensor) -> bool:
        """Whether a matrix may stay in FP8: where it is stored so and our kernels run."""
        return (
            self._fp8_block == (BLOCK, BLOCK)
            and f"{tensor.name}_scale_inv" in self._files
            and uses_triton(torch.empty(0, device=self._device))
        )

    def empty_fp8(self, rows: int, columns: int) -> Fp8Matrices:
        """Return a matrix to `place_fp8` tensors into, on the model's device."""
        values = self.empty(rows, columns, dtype=torch.float8_e4m3fn)
        blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
        return Fp8Matrices(values, self.empty(*blocks, dtype=torch.float32))

    def empty_fp8_experts(self, *shape: int) -> Fp8Matrices:
        """Return experts of whole blocks to `place_fp8` tensors into, where experts are to lie."""
        *stack, rows, columns = shape
        blocks = (*stack, rows // BLOCK, columns // BLOCK)
        values = self.empty_experts(*shape, dtype=torch.float8_e4m3fn)
        return Fp8Matrices(values, self.empty_experts(*blocks, dtype=torch.float32))

    def place_fp8(self, tensor: StoredTensor, *parts: Fp8Matrices) -> None:
        """Have `load` read a tensor as it is, with its scales; several parts are as in `place`.

        Raises:
            CheckpointError: the tensor is no FP8.
        """
        scale = self._scale_of(tensor)
        assert scale is not None
        self._placements.append(_Placement(tensor, None, tuple(part.values for part in parts)))
        self._placements.append(_Placement(scale, None, tuple(part.scale_inv for part in parts)))
        self._unread.discard(tensor.name)

    def take(self, name: str, *shape: int) -> Tensor:
        """Read a small tensor now, as fp32. Raises CheckpointError."""
        tensor = self.find(name, *shape)
        part = torch.empty(shape, device=self._device)
        self._fill(_Placement(tensor, self._scale_of(tensor), (part,)))
        self._unread.discard(name)
        return part

    def matrix(self, name: str, *shape: int) -> Tensor:
        """Return the place of a tensor that stands alone. Raises CheckpointError."""
        tensor = self.find(name, *shape)  # before memory is taken for it
        matrix = self.empty(*shape)
        self.place(tensor, matrix)
        return matrix

    def experts(self, name: str, count: int, rows: int, columns: int) -> Matrices:
        """Return the place of experts that are stored together, in groups if they were converted.

        Raises:
            CheckpointError: as `matrix`, or parts of groups that do not fit each other.
        """
        if f"{name}.codes" not in self:
            tensor = self.find(name, count, rows, columns)  # before memory is taken for it
            matrices = self.empty_experts(count, rows, columns)
            self.place(tensor, matrices)
            return matrices
        path = self._files[f"{name}.codes"].path
        there = {part: f"{name}.{part}" for part in PARTS if f"{name}.{part}" in self}
        try:
            # Seen to fit before memory is taken for them.
            found = from_parts({p: self._described(n) for p, n in there.items()}, self.dtype)
            if found.shape != (count, rows, columns):
                raise ValueError(f"{list(found.shape)}, not {[count, rows, columns]}")
        except (ValueError, LookupError) as error:
            raise CheckpointError(
                path, f"of {name} holds {error}", "Convert the checkpoint again"
            ) from error
        return from_parts({part: self._as_stored(name) for part, name in there.items()}, self.dtype)

    def stored(self, name: str) -> Tensor:
        """Read a tensor that is there now, as it is stored; for one to be copied."""
        tensor = self._files[name]
        part = torch.empty(tensor.shape, dtype=self._described(name).dtype)
        self._fill(_Placement(tensor, None, (part,)))
        return part

    def _as_stored(self, name: str) -> Tensor:
        """Return the place of a part of experts, which stays in the dtype it is stored in."""
        described = self._described(name)
        part = self.empty_experts(*described.shape, dtype=described.dtype)
        self._placements.append(_Placement(self._files[name], None, (part,)))
        self._unread.discard(name)
        return part

    def _described(self, name: str) -> Tensor:
        """Return a tensor of a stored one's shape and dtype, which takes no memory."""
        tensor = self._files[name]
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None:
            raise CheckpointError(
                tensor.path,
                f"tensor {name} is stored as {tensor.dtype}, which no weight is",
                DOWNLOAD_AGAIN,
            )
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    def ignore(self, name: str) -> None:
        """Declare a tensor unneeded, if it is there."""
        self._unread.discard(name)

    def refuse_unused(self) -> None:
        """Raise CheckpointError if the checkpoint holds a tensor that nothing was to read."""
        left = frozenset(name for name in self._unread if not name.startswith(_UNUSED))
        if left:
            first = self._files.one_of(left)
            raise CheckpointError(
                first.path,
                f"holds {len(left)} tensors that a model of this config.json has no use for, such "
                f"as {first.name}",
                "Check that config.json belongs to these weights",
            )

    def load(self) -> None:
        """Read what was placed, each file from front to back.

        Raises:
            CheckpointError: a file cannot be read, or not to its end.
        """
        order = {path: number for number, path in enumerate(self._files.paths)}
        self._placements.sort(key=lambda one: (order[one.tensor.path], one.tensor.start))
        stored = [one.tensor for one in self._placements]
        stored += [one.scale for one in self._placements if one.scale is not None]
        total = self._bytes_done + sum(tensor.nbytes for tensor in stored)
        for placement in self._placements:
            self._fill(placement, total)
        self._placements.clear()

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _default_dtype(self) -> torch.dtype:
        embedding = frozenset(n for n in self._files.names if n.endswith(".embed_tokens.weight"))
        stored = self._files.one_of(embedding).dtype if embedding else None
        return torch.float32 if stored == "F32" else torch.bfloat16

    def _scale_of(self, tensor: StoredTensor) -> StoredTensor | None:
        """Return the scale of an FP8 tensor, None for another; refuse what is neither."""
        name = f"{tensor.name}_scale_inv"
        if name not in self._files:
            if tensor.dtype in _FLOATS:
                return None
            raise CheckpointError(
                tensor.path,
                f"tensor {tensor.name} is stored as {tensor.dtype} without {name}; expected F32, "
                "F16, BF16, or F8_E4M3 with its scales",
                "Use the bf16 or the FP8 checkpoint",
            )
        if tensor.dtype != "F8_E4M3" or self._fp8_block is None or len(tensor.shape) < 2:
            raise CheckpointError(
                tensor.path,
                f"{name} exists, but {tensor.name} is stored as {tensor.dtype} and config.json "
                f"gives weight_block_size {self._fp8_block}; expected F8_E4M3 and a block size",
                "Use the config.json that the weights came with",
            )
        *outer, rows, columns = tensor.shape
        block_rows, block_columns = self._fp8_block
        shape = (*outer, -(-rows // block_rows), -(-columns // block_columns))
        self._unread.discard(name)
        return self.find(name, *shape)

    def _fill(self, placement: _Placement, total: int | None = None) -> None:
        """Read one tensor into its parts, piece by piece; tell progress where `total` is known."""
        tensor, parts = placement.tensor, placement.parts
        scale = None
        if placement.scale is not None:
            scale = self.take(placement.scale.name, *placement.scale.shape)
        dtype = _DTYPES[tensor.dtype]
        whole = parts[0]
        straight = (
            len(parts) == 1
            and whole.dtype == dtype
            and whole.is_contiguous()
            and whole.device.type == "cpu"
        )
        groups = whole.shape[0]
        group_bytes = tensor.nbytes // groups
        step = max(1, PIECE // group_bytes)
        for first in range(0, groups, step):
            places = [part[first : first + step] for part in parts]
            piece = places[0] if straight else torch.empty(_side_by_side(places), dtype=dtype)
            self._read(tensor, first * group_bytes, piece)
            if not straight:
                piece = piece.to(whole.device)
                if scale is not None:
                    scale = scale.to(whole.device)
                    piece = self._dequantised(tensor, piece, scale, first)
                _distribute(piece, places)
            if self._progress and total is not None:
                self._progress(self._bytes_done, total)

    def _dequantised(
        self, tensor: StoredTensor, piece: Tensor, scale: Tensor, first: int
    ) -> Tensor:
        """Return a piece of an FP8 tensor in fp32, from group `first` on."""
        assert self._fp8_block is not None
        if len(tensor.shape) > 2:  # whole matrices
            scale = scale[first : first + len(piece)]
            return dequantise(piece, scale_inv=scale, block=self._fp8_block)
        # Some rows of one matrix, which need not begin where a block does: a scale for each row.
        rows = piece.reshape(-1, tensor.shape[1])
        start = first * (len(rows) // len(piece))
        numbers = torch.arange(start, start + len(rows), device=rows.device)
        scale = scale[numbers // self._fp8_block[0]]
        whole = dequantise(rows, scale_inv=scale, block=(1, self._fp8_block[1]))
        return whole.view(piece.shape)

    def _read(self, tensor: StoredTensor, offset: int, into: Tensor) -> None:
        """Fill contiguous memory with a tensor's bytes from `offset` on."""
        left = into.reshape(-1).view(torch.uint8).numpy().data
        self._bytes_done += len(left)
        try:
            file = self._file(tensor.path)
            file.seek(tensor.start + offset)
            while left:
                count = file.readinto(left)
                if not count:
                    raise CheckpointError(
                        tensor.path,
                        f"ends inside the tensor {tensor.name}: it was cut short meanwhile",
                        "Let the download end, then load again",
                    )
                left = left[count:]
        except OSError as error:
            raise CheckpointError(
                tensor.path, f"tensor {tensor.name}: {error}", DOWNLOAD_AGAIN
            ) from error

    def _file(self, path: Path) -> FileIO:
        if path not in self._open:
            self._open[path] = FileIO(path)
        return self._open[path]


def host_memory(*shape: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Return memory of the host, pinned where a GPU is to copy from it beside its work.

    torch rounds pinned memory up to a power of two bytes, which published layers of experts are.

    Raises:
        DeviceMemoryError: the system does not give it.
    """
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=pinned)
    except (RuntimeError, MemoryError) as error:
        kind = "pinned host memory" if pinned else "host memory"
        raise DeviceMemoryError(f"{kind} for the experts is not given: {error}") from error


def _side_by_side(parts: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the shape of parts [G, n_i, ...] as they stand in the file."""
    if len(parts) == 1:
        return tuple(parts[0].shape)
    groups, _, *inner = parts[0].shape
    return (groups, sum(part.shape[1] for part in parts), *inner)


def _distribute(piece: Tensor, parts: Sequence[Tensor]) -> None:
    """Copy what stands side by side into its parts, converting it."""
    if len(parts) == 1:
        parts[0].copy_(piece)
        return
    for part, rows in zip(
        parts, piece.split_with_sizes([part.shape[1] for part in parts], 1), strict=True
    ):
        part.copy_(rows)

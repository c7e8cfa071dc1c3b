"""Weight matrices whose elements are few-bit codes with scales for groups of columns.

Two kinds, which between them hold what is published, without loss:

    affine   w = (S · s) · q - (M · m)     GGUF's Q4_K, Q5_K, Q6_K, Q8_0; GPTQ; AWQ; our own
    MXFP4    w = 2^(s - 127) · e2m1(q)     GGUF's MXFP4

q is a code, s and m are small integers of a group (16 columns or more), S and M floats of a block
of groups. Every product is exact in fp32 for S and M of 11 significant bits (fp16, bf16), so the
order of operations does not matter: a kernel and the reference give the same weight, bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcn_kernels.groupwise.reference import dequantise

SMALLEST_GROUP = 16  # columns
PARTS = ("codes", "scales", "mins", "block_scales", "block_mins")


@dataclass(frozen=True, slots=True)
class GroupwiseMatrices:
    """A stack of matrices [count, rows, columns]; indexing dequantises.

    A byte holds two 4-bit codes, the even column's in its low half. 8-bit codes are signed.
    """

    codes: Tensor  # [count, rows, columns / 2] uint8, or [count, rows, columns] int8
    scales: Tensor  # s: [count, rows, groups] uint8 or int8; MXFP4's are E8M0 exponents
    mins: Tensor | None  # m: [count, rows, groups] uint8, or None where nothing is subtracted
    block_scales: Tensor | None  # S: [count, rows, blocks] fp16 or bf16; None for MXFP4
    block_mins: Tensor | None  # M: as S, where there are mins
    dtype: torch.dtype  # of matrix products, to which a dequantised weight is rounded

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        packed = self.codes.dtype == torch.uint8
        kinds = (self.mins is not None, self.block_scales is not None, self.block_mins is not None)
        fits = kinds in {(True, True, True), (False, True, False)} or (packed and not any(kinds))
        fits &= packed or self.codes.dtype == torch.int8
        fits &= self.scales.dtype in (torch.uint8, torch.int8)
        fits &= self.mins is None or self.mins.dtype == torch.uint8
        fits &= all(
            part is None or part.is_floating_point()
            for part in (self.block_scales, self.block_mins)
        )
        fits &= all(part.ndim == 3 and part.shape[2] > 0 for part in self.parts().values())
        if fits:
            groups, blocks = self.scales.shape[2], self.columns // self.block
            shapes = {
                "scales": groups,
                "mins": groups,
                "block_scales": blocks,
                "block_mins": blocks,
            }
            fits &= self.columns == groups * self.group == blocks * self.block
            fits &= self.group % SMALLEST_GROUP == self.block % self.group == 0
            fits &= all(
                part.shape == (*self.shape[:2], shapes[name])
                for name, part in self.parts().items()
                if name != "codes"
            )
        if not fits:
            shapes_found = {name: tuple(part.shape) for name, part in self.parts().items()}
            raise ValueError(f"parts that do not belong together: {shapes_found}")

    @property
    def bits(self) -> int:
        """Of a code: 4 or 8."""
        return 4 if self.codes.dtype == torch.uint8 else 8

    @property
    def columns(self) -> int:
        """Columns of a matrix."""
        return self.codes.shape[2] * 8 // self.bits

    @property
    def shape(self) -> tuple[int, int, int]:
        """Count, rows, columns."""
        return self.codes.shape[0], self.codes.shape[1], self.columns

    @property
    def group(self) -> int:
        """Columns under one scale."""
        return self.columns // self.scales.shape[2]

    @property
    def block(self) -> int:
        """Columns under one block scale; a group where there is none."""
        return (
            self.group if self.block_scales is None else self.columns // self.block_scales.shape[2]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts().values())

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, number: int) -> Tensor:
        """Return one matrix [rows, columns] in `dtype`."""
        return self.dequantised(number).to(self.dtype)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return some matrices [n, rows, columns] in `dtype`; `dim` is 0, as for a tensor."""
        assert dim == 0
        return self.dequantised(index).to(self.dtype)

    def dequantised(self, which: int | slice | Tensor = slice(None)) -> Tensor:
        """Return one matrix, some, or all, in fp32: exactly what their format says."""
        return dequantise(**{name: part[which] for name, part in self.parts().items()})

    def parts(self) -> dict[str, Tensor]:
        """Return the tensors it consists of, by name."""
        named = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in named.items() if part is not None}


def from_parts(parts: Mapping[str, Tensor], dtype: torch.dtype) -> GroupwiseMatrices:
    """Put together what `parts` took apart. Raises ValueError where parts do not fit."""
    return GroupwiseMatrices(
        codes=parts["codes"],
        scales=parts["scales"],
        mins=parts.get("mins"),
        block_scales=parts.get("block_scales"),
        block_mins=parts.get("block_mins"),
        dtype=dtype,
    )


def concatenate(stacks: Sequence[GroupwiseMatrices], dim: int) -> GroupwiseMatrices:
    """Join stacks of one format along their count (0) or their rows (1).

    Raises:
        ValueError: they are of different formats.
    """
    first = stacks[0]
    formats = {tuple((n, p.dtype, p.shape[2]) for n, p in s.parts().items()) for s in stacks}
    if len(formats) > 1:
        raise ValueError("matrices of different formats")
    joined = {name: torch.cat([s.parts()[name] for s in stacks], dim) for name in first.parts()}
    return from_parts(joined, first.dtype)

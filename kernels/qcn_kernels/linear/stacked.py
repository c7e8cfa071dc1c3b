"""A matrix whose rows are stored in more than one format, or in FP8."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcn_kernels.fp8 import Fp8Matrices


@dataclass(frozen=True, slots=True)
class Stacked:
    """Parts under one another, each with the same columns. On a GPU only."""

    parts: tuple[Tensor | Fp8Matrices, ...]  # each [rows, columns]
    dtype: torch.dtype  # of what they are multiplied by, and of the plain parts

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of all."""
        return sum(map(len, self.parts)), self.parts[0].shape[1]


Weight = Tensor | Stacked
"""[rows, columns]."""

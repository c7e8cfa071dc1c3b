"""A norm that is not taken yet."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Normed:
    """The norm of a residual stream, which the kernels that read the stream take. On a GPU only.

    Its root is one factor for all of a token: a product sums the squares beside what it sums
    anyway, and multiplies by it at the end.
    """

    x: Tensor  # [..., dim] fp32
    scale: Tensor  # [dim] fp32
    eps: float

    def taken(self, dtype: torch.dtype) -> Tensor:
        """Return the norm in `dtype`, for what is not fused with it."""
        from qcn_kernels.rms_norm import triton

        return triton.rms_norm(self.x, scale=self.scale, eps=self.eps, dtype=dtype)

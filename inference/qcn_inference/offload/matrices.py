"""Stacks of experts' matrices in any format, part by part: values, scales, whatever there is."""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from qcn_kernels.fp8 import BLOCK, Fp8Matrices, dequantise
from qcn_kernels.groupwise import GroupwiseMatrices, from_parts
from qcn_kernels.moe import Matrices
from torch import Tensor


def parts_of(matrices: Matrices) -> tuple[Tensor, ...]:
    """Return the tensors that a stack consists of; each has a first dimension of its length."""
    if isinstance(matrices, Tensor):
        return (matrices,)
    found = (getattr(matrices, field.name) for field in fields(matrices))
    return tuple(part for part in found if isinstance(part, Tensor))


def mapped(matrices: Matrices, change: Callable[[Tensor], Tensor]) -> Matrices:
    """Return a stack whose parts are what `change` makes of these."""
    if isinstance(matrices, Tensor):
        return change(matrices)
    if isinstance(matrices, GroupwiseMatrices):
        changed = {name: change(part) for name, part in matrices.parts().items()}
        return from_parts(changed, matrices.dtype)
    named = {field.name: getattr(matrices, field.name) for field in fields(matrices)}
    return replace(
        matrices, **{name: change(part) for name, part in named.items() if isinstance(part, Tensor)}
    )


def on_cpu(matrices: Matrices, numbers: Tensor, dtype: torch.dtype) -> Matrices:
    """Return some experts as the CPU multiplies them: what is FP8 in `dtype`."""
    if not isinstance(matrices, Fp8Matrices):
        return mapped(matrices, lambda part: part[numbers])
    values, scales = matrices.values[numbers], matrices.scale_inv[numbers]
    return dequantise(values, scale_inv=scales, block=(BLOCK, BLOCK)).to(dtype)

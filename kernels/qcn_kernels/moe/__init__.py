"""Router and sparse experts. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.

A shared expert that is as large as the others is one of them on a GPU: the last of `gate_up` and
`down`, which `route(..., shared=True)` adds to every token's choice with its gate as its weight.
"""

import torch
from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.matrices import Matrices
from qcn_kernels.moe import cpu

__all__ = ["Matrices", "experts", "experts_step", "route"]


def route(
    logits: Tensor, *, top_k: int, normalise: bool, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose experts.

    Args:
        logits: [..., experts] fp32 or bf16, on a GPU [T, experts]. With `shared`, one column more:
            the logit of the shared expert's gate.
        top_k: experts per token, the shared one not counted.
        normalise: whether the chosen probabilities are scaled to sum to 1.
        shared: whether every token takes the shared expert too.

    Returns:
        Weights [..., top_k] fp32 and expert numbers [..., top_k] int64, the most probable first,
        of equals the lower number. With `shared` one more: number `experts`, weighed by
        the sigmoid of its gate.
    """
    if uses_triton(logits):
        from qcn_kernels.moe import triton

        return triton.route(logits, top_k=top_k, normalise=normalise, shared=shared)
    logits = logits.to(torch.float32)
    if not shared:
        return cpu.route(logits, top_k=top_k, normalise=normalise)
    weights, chosen = cpu.route(logits[..., :-1], top_k=top_k, normalise=normalise)
    gate = logits[..., -1:].sigmoid()
    number = torch.full_like(gate, logits.shape[-1] - 1, dtype=torch.int64)
    return torch.cat((weights, gate), dim=-1), torch.cat((chosen, number), dim=-1)


def experts(
    x: Tensor, *, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices
) -> Tensor:
    """Run T tokens of a prefill through their experts, sorted by expert.

    Args:
        x: [T, hidden] bf16 or fp32, on the CPU of the weights' dtype.
        weights: [T, top_k] fp32, from `route`.
        chosen: [T, top_k] int64, from `route`.
        gate_up: [experts, 2 · intermediate, hidden], the gate's rows first.
        down: [experts, hidden, intermediate].

    Returns:
        [T, hidden] fp32. The sum over a token's experts runs in the order in which they were
        chosen. On a GPU a token's result does not depend on the others, bit for bit.
    """
    if uses_triton(x):
        from qcn_kernels.moe import triton

        return triton.experts(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
    assert not isinstance(gate_up, Fp8Matrices)
    assert not isinstance(down, Fp8Matrices)
    return cpu.experts(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)


def experts_step(
    x: Tensor, *, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices
) -> Tensor:
    """The same for one token [hidden], or [T, hidden] for a few that are verified together.

    `weights` and `chosen` have x's leading dimensions. On a GPU nothing waits for the device and
    only the chosen experts are read: a CUDA graph may hold it.
    """
    if uses_triton(x):
        from qcn_kernels.moe import triton

        return triton.experts_step(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
    assert not isinstance(gate_up, Fp8Matrices)
    assert not isinstance(down, Fp8Matrices)
    run = cpu.experts_step if x.ndim == 1 else cpu.experts
    return run(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)

"""Router and sparse experts. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

import torch
from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.fp8 import Activations, Fp8Matrices, plain
from qcn_kernels.gating import gated
from qcn_kernels.linear import gated_for, linear, linear_step
from qcn_kernels.matrices import Matrices
from qcn_kernels.moe import cpu
from qcn_kernels.moe.shared import SharedExpert
from qcn_kernels.rms_norm import Normed

__all__ = [
    "Matrices",
    "SharedExpert",
    "add_experts",
    "add_experts_few",
    "add_experts_step",
    "experts",
    "experts_step",
    "route",
    "shared_step",
]


def route(logits: Tensor, *, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Choose experts.

    Args:
        logits: [..., experts] fp32 or bf16, on a GPU [T, experts] or [experts].
        top_k: experts per token.
        normalise: whether the chosen probabilities are scaled to sum to 1.

    Returns:
        Weights [..., top_k] fp32 and expert numbers [..., top_k] int64, the most probable first,
        of equals the lower number.
    """
    if uses_triton(logits):
        from qcn_kernels.moe import triton_router

        return triton_router.route(logits, top_k=top_k, normalise=normalise)
    return cpu.route(logits.to(torch.float32), top_k=top_k, normalise=normalise)


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


def add_experts(
    to: Tensor,
    x: Activations,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Matrices,
    down: Matrices,
    shared: SharedExpert,
) -> None:
    """Add T tokens' experts, and the shared one, to their residual stream `to` [T, hidden] fp32."""
    routed = {"weights": weights, "chosen": chosen}
    gate, up = shared.gate_up.chunk(2, dim=-1)
    out = linear(gated_for(shared.down, up, gate=gate, gating="silu"), shared.down)
    if uses_triton(to):
        from qcn_kernels.moe import triton

        triton.experts(x, **routed, gate_up=gate_up, down=down, shared=out, gate=shared.gate, to=to)
        return
    out = out.to(torch.float32).mul_(shared.gate.sigmoid())
    to += out.add_(experts(plain(x), **routed, gate_up=gate_up, down=down))


def experts_step(
    x: Tensor, *, weights: Tensor, chosen: Tensor, gate_up: Matrices, down: Matrices
) -> Tensor:
    """The same for one token [hidden], or [T, hidden] for a few that are verified together.

    `weights` and `chosen` have x's leading dimensions. On a GPU nothing waits for the device and
    only the chosen experts are read: a CUDA graph may hold it.
    """
    if uses_triton(x):
        from qcn_kernels.moe import triton_step

        return triton_step.experts_step(
            x, weights=weights, chosen=chosen, gate_up=gate_up, down=down
        )
    assert not isinstance(gate_up, Fp8Matrices)
    assert not isinstance(down, Fp8Matrices)
    run = cpu.experts_step if x.ndim == 1 else cpu.experts
    return run(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)


def add_experts_step(
    to: Tensor,
    x: Tensor | Normed,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Matrices,
    down: Matrices,
    shared: SharedExpert,
) -> None:
    """Add one token's experts, and the shared one, to its residual stream `to` [hidden] fp32."""
    routed = {"weights": weights, "chosen": chosen}
    if isinstance(x, Normed):
        from qcn_kernels.moe import triton_step

        triton_step.experts_step(x, **routed, gate_up=gate_up, down=down, shared=shared, to=to)
        return
    to += shared_step(shared).add_(experts_step(x, **routed, gate_up=gate_up, down=down))


def add_experts_few(
    to: Tensor,
    x: Tensor,
    *,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Matrices,
    down: Matrices,
    shared: SharedExpert,
) -> None:
    """Add a few tokens' experts, and the shared one, to their residual stream; on a GPU only.

    As `add_experts_step`, for [T, ...] that are verified together.
    """
    from qcn_kernels.moe import triton_verify

    routed = {"weights": weights, "chosen": chosen}
    triton_verify.add_experts_few(to, x, **routed, gate_up=gate_up, down=down, shared=shared)


def shared_step(shared: SharedExpert) -> Tensor:
    """Return the output of one token's shared expert, [hidden] fp32."""
    gate, up = shared.gate_up.unsqueeze(0).chunk(2, dim=-1)
    out = linear_step(gated(up, gate=gate, gating="silu")[0], shared.down)
    return out.to(torch.float32).mul_(shared.gate.sigmoid())

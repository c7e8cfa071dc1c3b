"""Root mean square normalisation (arXiv 1910.07467) in fp32."""

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, *, scale: Tensor, eps: float) -> Tensor:
    """Return `x / √(mean(x²) + eps) · scale` over the last dimension.

    Args:
        x: [..., dim] fp32.
        scale: fp32, broadcast to x. A zero-centred norm's is `1 + weight`, added once at load.
        eps: added to the mean square.

    Returns:
        x's shape, fp32.
    """
    return functional.rms_norm(x, x.shape[-1:], eps=eps).mul_(scale)


def gated_rms_norm(x: Tensor, *, gate: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return `rms_norm(x) · silu(gate)`; the norm comes before the gate. All [..., dim] fp32."""
    return rms_norm(x, scale=scale, eps=eps).mul_(functional.silu(gate))


def l2_norm(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Return `x / √(Σ x² + eps)` over the last dimension, fp32. The eps is the model's own."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)

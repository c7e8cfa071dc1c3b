"""Muon for the weight matrices, AdamW for everything else.

Muon (https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest
orthogonal matrix, through five Newton-Schulz steps. `torch.optim.Muon` takes matrices only; packed
experts are batches of matrices, so the iteration is written out here for any number of leading
dimensions.
"""

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration
MUON_LR = 0.02
ADAM_LR = 0.004
MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
CLIP = 1.0


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to `matrix` [..., R, C], approximately; bf16."""
    a, b, c = COEFFICIENTS
    x: Tensor = matrix.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, with decoupled weight decay."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": MUON_LR})

    def step(  # type: ignore[override]  # the overloads there only serve closures
        self, closure: None = None
    ) -> None:
        """One update of every parameter."""
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    self._update(param, group["lr"])

    def _update(self, param: nn.Parameter, rate: float) -> None:
        gradient = param.grad
        if gradient is None:
            return
        momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalise(gradient.lerp(momentum, MOMENTUM)).to(param.dtype)
        scale = max(1.0, param.shape[-2] / param.shape[-1]) ** 0.5
        param.mul_(1 - rate * WEIGHT_DECAY).add_(update, alpha=-rate * scale)


def is_matrix(name: str, param: Tensor) -> bool:
    """Whether Muon takes a parameter: the wide projections and the experts, not the routers."""
    return "proj" in name and "in_proj_ba" not in name and param.ndim >= 2


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon and AdamW over disjoint parameters."""
    named = list(model.named_parameters())
    matrices = [param for name, param in named if is_matrix(name, param)]
    others = [param for name, param in named if not is_matrix(name, param)]
    return [
        Muon(matrices),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]

"""A model's layers with their experts in host memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qcn_kernels.moe import SharedExpert
from torch import Tensor

from qcn_inference.layers import DecoderLayer, SparseMoe
from qcn_inference.offload.device import ExpertDevice, Experts
from qcn_inference.offload.experts import OffloadedExperts


@dataclass(frozen=True, slots=True)
class Offload:
    """How experts lie in host memory and come to a device."""

    device: Callable[[Experts], ExpertDevice]  # makes slots for experts like these
    missing_on_cpu: bool  # whether decode computes there what is in no slot

    def applied_to(self, layers: Sequence[DecoderLayer]) -> list[DecoderLayer]:
        """Return layers that run their experts in slots; theirs lie in host memory.

        Raises:
            torch.OutOfMemoryError: there is no room for the slots.
        """
        sparse = [layer.mlp for layer in layers if isinstance(layer.mlp, SparseMoe)]
        stacks = [Experts(mlp.gate_up, mlp.down) for mlp in sparse]
        shared = OffloadedExperts(
            stacks, self.device(stacks[0]), missing_on_cpu=self.missing_on_cpu
        )
        number = iter(range(len(stacks)))
        return [
            replace(layer, mlp=replace(layer.mlp, elsewhere=LayerExperts(shared, next(number))))
            if isinstance(layer.mlp, SparseMoe)
            else layer
            for layer in layers
        ]


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """One layer's, of all: a `RoutedExperts`."""

    experts: OffloadedExperts
    layer: int  # number among the layers with experts

    def prefill(
        self, to: Tensor, x: Tensor, *, weights: Tensor, chosen: Tensor, shared: SharedExpert
    ) -> None:
        """As `OffloadedExperts.prefill`."""
        self.experts.prefill(self.layer, to, x, weights=weights, chosen=chosen, shared=shared)

    def step(self, x: Tensor, *, weights: Tensor, chosen: Tensor) -> Tensor:
        """As `OffloadedExperts.step`."""
        return self.experts.step(self.layer, x, weights=weights, chosen=chosen)

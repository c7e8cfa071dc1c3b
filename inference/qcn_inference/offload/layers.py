"""A model's layers with their experts in host memory.

Experts of one format share slots. A GGUF mixes formats (Q4_K_M has half of its layers' `down` in
Q6_K): layers of each have slots of their own, as many as is their share.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qcn_kernels.moe import SharedExpert
from torch import Tensor

from qcn_inference.layers import ChosenExperts, DecoderLayer, SparseMoe
from qcn_inference.offload.device import ExpertDevice, Experts
from qcn_inference.offload.experts import OffloadedExperts, windows
from qcn_inference.step_cost import ExpertReads


@dataclass(frozen=True, slots=True)
class Offload:
    """How experts lie in host memory and come to a device."""

    slots: int  # on the device, of all layers together
    device: Callable[[int, Experts], ExpertDevice]  # makes so many for experts like these
    missing_on_cpu: bool  # whether decode computes there what is in no slot
    reads: ExpertReads | None = None  # what experts take that lie so
    with_head: bool = False  # whether those of the head for drafts do so too

    def applied_to(self, layers: Sequence[DecoderLayer], aside: int = 0) -> list[DecoderLayer]:
        """Return layers that run their experts in slots; theirs lie in host memory.

        The last `aside` of them are no part of a pass.

        Raises:
            torch.OutOfMemoryError: there is no room for the slots.
        """
        passed = len(layers) - aside
        sparse = [at for at, layer in enumerate(layers) if isinstance(layer.mlp, SparseMoe)]
        mixtures = {at: _mixture(layers[at]) for at in sparse}
        stacks = {at: Experts(mlp.gate_up, mlp.down) for at, mlp in mixtures.items()}
        placed = list(layers)
        for alike in _by_format(stacks):
            share = len(alike) / len(sparse)
            own_aside = sum(at >= passed for at in alike)
            shared = self._in_slots([stacks[at] for at in alike], share, own_aside)
            for number, at in enumerate(alike):
                mlp = replace(_mixture(layers[at]), elsewhere=LayerExperts(shared, number))
                placed[at] = replace(layers[at], mlp=mlp)
        return placed

    def _in_slots(self, stacks: Sequence[Experts], share: float, aside: int) -> OffloadedExperts:
        least = windows(len(stacks) - aside) * len(stacks[0])
        device = self.device(max(int(self.slots * share), least), stacks[0])
        return OffloadedExperts(stacks, device, missing_on_cpu=self.missing_on_cpu, aside=aside)


def _mixture(layer: DecoderLayer) -> SparseMoe:
    assert isinstance(layer.mlp, SparseMoe)
    return layer.mlp


def _by_format(stacks: Mapping[int, Experts]) -> Iterable[list[int]]:
    """The layers whose experts are of one format, in order, for each format."""
    found: dict[tuple[object, ...], list[int]] = {}
    for at, stack in stacks.items():
        found.setdefault(stack.format, []).append(at)
    return found.values()


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

    @property
    def computes_missing(self) -> bool:
        """As `OffloadedExperts.computes_missing`."""
        return self.experts.computes_missing

    def begin_tokens(self) -> None:
        """As `OffloadedExperts.begin_tokens`."""
        self.experts.begin_tokens()

    def placed(self, chosen: Tensor) -> ChosenExperts:
        """As `OffloadedExperts.placed`."""
        return self.experts.placed(self.layer, chosen)

    def step(self, x: Tensor, *, weights: Tensor, chosen: Tensor) -> Tensor:
        """As `OffloadedExperts.step`."""
        return self.experts.step(self.layer, x, weights=weights, chosen=chosen)

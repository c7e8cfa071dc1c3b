"""How far the host may run ahead of the device during a prefill.

Launches return at once. Left alone, the host would queue a whole pass, and a completion that
arrives would wait for all of it. So after each layer an event is recorded, and the host goes on
only when the layer before it is done: at most two layers are in flight, and the device never waits.
"""

from collections import deque

import torch

AHEAD = 1  # layers that may be waiting behind the one that runs


class Pace:
    """Bounds the layers in flight on one device; on the CPU there is nothing to bound."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._layers: deque[torch.cuda.Event] = deque()

    def layer_queued(self) -> None:
        """Wait, after a layer has been queued, until few enough are in flight."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._layers.append(event)
        while len(self._layers) > AHEAD + 1:
            self._layers.popleft().synchronize()

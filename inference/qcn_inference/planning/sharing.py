"""How two models, each in an engine of its own, share one GPU. Pure arithmetic.

Each engine works its share out for itself, from what both models weigh and what the GPU has in all:
so both come to the same, whichever is started first, and neither asks the other. The model that
wants less gets what it wants, as far as the other keeps the least that it can do with; that one
gets the rest. So a small model for ghost text lies on the GPU as a whole, and a large one has slots
for as many of its experts as there is room left for.

Where the GPU has no room for the least of both, the smaller one has it to itself; the other is told
what it lacks, and runs on the CPU where that is left to the engine.
"""

from qcn_inference.planning.footprint import Footprint
from qcn_inference.planning.plan import least_on_gpu, wanted_on_gpu

USED_SHARE = 15 / 16
"""Of a GPU's memory: the rest is the screen's, and what CUDA takes beside each engine's own."""


def share(own: Footprint, other: Footprint, *, gpu_bytes: int, host_bytes: int) -> int:
    """Return the bytes of a GPU that a model may take, weights included.

    Args:
        own: the model's.
        other: that of the one for which there must be room beside it.
        gpu_bytes: what the GPU has in all.
        host_bytes: host memory in all, where experts may lie.
    """
    used = int(gpu_bytes * USED_SHARE)
    wanted, wanted_by_other = wanted_on_gpu(own), wanted_on_gpu(other)
    least, least_of_other = (least_on_gpu(foot, host_bytes) for foot in (own, other))
    if wanted == wanted_by_other:
        return used // 2
    both_fit = least + least_of_other <= used
    if wanted < wanted_by_other:
        return min(wanted, used - (least_of_other if both_fit else 0))
    return used - min(wanted_by_other, used - (least if both_fit else 0))

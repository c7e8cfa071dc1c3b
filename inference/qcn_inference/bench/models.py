"""The model that is measured, and the plan by which it lies on this machine."""

from pathlib import Path

import torch

from qcn_inference.bench.synthetic import synthetic_model
from qcn_inference.checkpoint import load_model
from qcn_inference.config import KvCacheDtype, load_config
from qcn_inference.model import Model
from qcn_inference.offload.device import CudaDevice
from qcn_inference.planning.footprint import FORMATS, Footprint, WeightFormat
from qcn_inference.planning.machine import Machine
from qcn_inference.planning.onto_gpu import Slots, footprint_of, load_onto_gpu, offload_by
from qcn_inference.planning.placing import placed
from qcn_inference.planning.plan import Placement, Plan, Refusal, plan
from qcn_inference.planning.shapes import SHAPES

MOST = 0.9
"""Of the host's free memory: random weights on the CPU leave the rest for the work."""
SMALL_EXPERTS = ("Qwen3-Coder-Next", "Qwen3.5-35B-A3B")
SYNTHETIC = {
    f"{shape.name.lower()}-{stored.name}": (shape, stored)
    for shape in SHAPES
    for stored in FORMATS
    if stored.name == "bf16" or shape.name in SMALL_EXPERTS
}
"""By name: the folder whose config.json has the shape, and the format of the weights."""


class UnfitError(Exception):
    """What was asked for cannot be measured here; str() says why and what to do."""


def loaded(
    folder: Path, on: torch.device, found: Machine, kept: KvCacheDtype
) -> tuple[Model, Plan]:
    """Load a checkpoint, with experts in host memory where the GPU is too small for all.

    Raises:
        UnfitError, CheckpointError, DeviceError: it cannot be loaded here.
    """
    if on.type == "cpu":
        model = load_model(folder)
        bits = 8 * model.dtype.itemsize
        footprint = Footprint(model.config, WeightFormat(f"{bits} bits", bits, bits, bits))
        return model, _whole(footprint, found, "cpu")
    floor = plan(footprint_of(folder, kept), found)
    if isinstance(floor, Refusal):
        raise UnfitError(f"{floor.missing}. {floor.remedy}")
    return load_onto_gpu(folder, on, kept=kept), floor


def synthetic_named(name: str) -> tuple[Path, WeightFormat]:
    """Look a name up in SYNTHETIC. Raises UnfitError, with those there are."""
    if name not in SYNTHETIC:
        raise UnfitError(f"there is no {name}. There are {', '.join(sorted(SYNTHETIC))}")
    return SYNTHETIC[name]


def synthetic(
    name: str,
    on: torch.device,
    found: Machine,
    *,
    longest: int,
    kept: KvCacheDtype = "auto",
    slots: Slots = CudaDevice,
) -> tuple[Model, Plan]:
    """Make random weights, where a checkpoint's would lie.

    Args:
        name: one of SYNTHETIC.
        on: where what is no expert lies.
        found: the machine; with a GPU experts lie in its host memory as far as a plan says so.
        longest: tokens of the longest text that is to be read.
        kept: what keys and values will be kept in, which is planned for.
        slots: makes so many slots for experts like these, there.

    Raises:
        UnfitError, DeviceMemoryError: it is none of these, or does not fit. No memory is taken
            for what is refused.
    """
    shape, stored = synthetic_named(name)
    config = load_config(shape)
    footprint = Footprint(config, stored, kept=kept)
    if found.gpu is None:
        if stored.name == "fp8":
            raise UnfitError(
                "FP8 is multiplied on a GPU only. Choose the bf16 or int4 one, or another device"
            )
        if footprint.all_bytes > MOST * found.free_bytes:
            raise _too_large(footprint, found, on)
        return synthetic_model(config, str(on), stored.name), _whole(footprint, found, "cpu")

    first = plan(footprint, found, longest=longest)
    if isinstance(first, Refusal):
        raise UnfitError(f"{first.missing}. Choose a smaller one, or --model qcn-nano")

    def place(now: Plan) -> tuple[Model, Plan]:
        if now.placement == "cpu":
            raise _too_large(footprint, now.machine, on)
        offload = offload_by(now, on, slots)
        return synthetic_model(config, str(on), stored.name, offload), now

    return placed(first, place)


def _whole(footprint: Footprint, found: Machine, placement: Placement) -> Plan:
    return Plan(footprint, found, placement, 0, footprint.experts, 0, 0)


def _too_large(footprint: Footprint, found: Machine, on: torch.device) -> UnfitError:
    free = found.free_bytes if found.gpu is None else found.gpu.free_bytes
    return UnfitError(
        f"its weights take {footprint.all_bytes / 1e9:.0f} GB and {free / 1e9:.0f} GB are free "
        f"on {on}. Choose a smaller one, or --model qcn-nano"
    )

"""Loading a checkpoint onto a GPU that may be too small for it."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from qcn_inference import device as devices
from qcn_inference.checkpoint import (
    load_model,
    stored_bits,
    stored_expert_bits,
    weight_bytes,
)
from qcn_inference.config import load_config
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.loading import Progress
from qcn_inference.model import Model
from qcn_inference.offload.device import CudaDevice, ExpertDevice, Experts
from qcn_inference.offload.layers import Offload
from qcn_inference.planning.footprint import Footprint, as_loaded
from qcn_inference.planning.machine import Machine, measure
from qcn_inference.planning.placing import placed
from qcn_inference.planning.plan import Plan, plan

log = logging.getLogger(__name__)

Slots = Callable[[int, Experts, torch.device], ExpertDevice]


class _OnlyOnTheCpuError(Exception):
    """It fits, but not with this GPU."""


def footprint_of(folder: Path) -> Footprint:
    """Count a checkpoint as a GPU would hold it. Raises CheckpointError."""
    config = load_config(folder)
    stored = as_loaded(config, stored_bits(folder), stored_expert_bits(folder))
    return Footprint(config, stored)


def load_onto_gpu(folder: Path, device: torch.device, progress: Progress | None = None) -> Model:
    """Load a checkpoint; experts for which the GPU has no room lie in host memory.

    The head for drafts is loaded where there is room for everything.

    Raises:
        CheckpointError: it cannot be loaded.
        DeviceMemoryError: no plan that uses the GPU fits it; says what is missing.
    """
    config = load_config(folder)
    try:
        devices.require_room(device, weight_bytes(folder), devices.working_bytes(config))
    except DeviceMemoryError:
        if not config.num_experts:
            raise
        try:
            return load_beside_host(folder, measure(device), device, progress)
        except _OnlyOnTheCpuError:
            pass
        raise
    devices.make_current(device)
    return load_model(folder, device=str(device), mtp=True, progress=progress)


def load_beside_host(
    folder: Path,
    machine: Machine,
    device: torch.device,
    progress: Progress | None = None,
    *,
    slots: Slots = CudaDevice,
) -> Model:
    """Load a checkpoint by a plan for this machine, smaller ones following where memory runs out.

    Args:
        folder: holds the checkpoint.
        machine: what the plan is for.
        device: where what is no expert lies.
        progress: as `load_model`'s.
        slots: makes so many slots for experts like these, there.

    Raises:
        CheckpointError: it cannot be loaded.
        DeviceMemoryError: not even the smallest plan fits.
    """
    devices.make_current(device)
    footprint = footprint_of(folder)

    def place(found: Plan) -> Model:
        if found.placement == "cpu":
            raise _OnlyOnTheCpuError
        log.info("%d of %d experts have a place on the GPU", found.slots, footprint.experts)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # of what an attempt before had taken
        offload = None
        if found.placement == "gpu and host":
            offload = Offload(
                slots=found.slots,
                device=lambda count, like: slots(count, like, device),
                missing_on_cpu=found.missing_on_cpu,
            )
        return load_model(folder, device=str(device), progress=progress, offload=offload)

    return placed(plan(footprint, machine), place)

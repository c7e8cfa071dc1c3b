"""Loading a checkpoint onto a GPU that may be too small for it."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch

from qcn_inference import device as devices
from qcn_inference.checkpoint import (
    load_model,
    stored_bits,
    stored_expert_bits,
    weight_bytes,
)
from qcn_inference.config import KvCacheDtype, ModelConfig, load_config
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.loading import Progress
from qcn_inference.model import Model
from qcn_inference.offload.device import CudaDevice, ExpertDevice, Experts
from qcn_inference.offload.layers import Offload
from qcn_inference.planning.footprint import DraftHead, Footprint, as_loaded
from qcn_inference.planning.machine import Machine, measure
from qcn_inference.planning.placing import placed
from qcn_inference.planning.plan import Plan, plan
from qcn_inference.planning.sharing import share
from qcn_inference.tensors import StoredTensor, TensorFiles
from qcn_inference.weights import has_head, model_root

log = logging.getLogger(__name__)

Slots = Callable[[int, Experts, torch.device], ExpertDevice]
Ready = Callable[[Model], None]
"""Takes what a loaded model needs beside its weights; raises an error of lacking memory."""


class _OnlyOnTheCpuError(Exception):
    """It fits, but not with this GPU."""


def footprint_of(folder: Path, kept: KvCacheDtype = "auto") -> Footprint:
    """Count a checkpoint as a GPU would hold it, keys and values as `kept`.

    Raises:
        CheckpointError: it cannot be looked at.
    """
    config = load_config(folder)
    stored = as_loaded(config, stored_bits(folder), stored_expert_bits(folder))
    return Footprint(config, stored, _head_in(folder, config), kept)


def _head_in(folder: Path, config: ModelConfig) -> DraftHead | None:
    """Look at the head for drafts; None where there is none that can be loaded."""
    files = TensorFiles(folder)
    if not has_head(files.names):
        return None
    first = min(set(range(len(config.layer_types))) - config.dense_layers, default=0)
    own = {name for name in files.names if name.startswith("mtp.")}
    experts = _experts_in(files, "mtp.layers.0")
    expert_bytes = sum(tensor.nbytes for tensor in experts)
    others = _experts_in(files, f"{model_root(files.names)}.layers.{first}")
    return DraftHead(
        core_bytes=sum(files[name].nbytes for name in own) - expert_bytes,
        expert_bytes=expert_bytes,
        alike=_formats(experts) == _formats(others),
    )


def _experts_in(files: TensorFiles, layer: str) -> list[StoredTensor]:
    return [files[name] for name in files.names if name.startswith(f"{layer}.mlp.experts.")]


def _formats(experts: Iterable[StoredTensor]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(one.name.partition(".experts.")[2], one.dtype, one.shape) for one in experts}


def share_beside(folder: Path, other: Path, device: torch.device, kept: KvCacheDtype) -> int:
    """Return the bytes of a GPU that a checkpoint may take where another needs room as well.

    Both keep keys and values alike, for they have the same settings.

    Raises:
        CheckpointError: one of them cannot be looked at.
    """
    return share(
        footprint_of(folder, kept),
        footprint_of(other, kept),
        gpu_bytes=devices.memory(device)[1],
        host_bytes=psutil.virtual_memory().total,
    )


def _as_loaded(_: Model) -> None:
    """Take nothing beside the weights."""


def load_onto_gpu(
    folder: Path,
    device: torch.device,
    progress: Progress | None = None,
    ready: Ready = _as_loaded,
    kept: KvCacheDtype = "auto",
) -> Model:
    """Load a checkpoint; experts for which the GPU has no room lie in host memory.

    The head for drafts is loaded where there is room, and where it pays: see `plan.py`.

    Args:
        folder: holds the checkpoint.
        device: the GPU.
        progress: as `load_model`'s.
        ready: what memory is refused to as well makes the plan a smaller one.
        kept: what `ready` will have keys and values kept in, which is planned for.

    Raises:
        CheckpointError: it cannot be loaded.
        DeviceMemoryError: no plan that uses the GPU fits it; says what is missing.
    """
    has_experts = load_config(folder).num_experts > 0
    devices.make_current(device)  # first: pinned memory takes some of whichever GPU is
    try:
        return _load_whole(folder, device, progress, ready)
    except Exception as error:
        if not has_experts or not devices.is_out_of_memory(error):
            raise
        reason = str(error)
    # Behind the handler: the error holds the frames of what failed, and they its tensors.
    log.info("not all of it fits the GPU: %s", reason)
    devices.give_back()
    try:
        found = measure(device)
        return load_beside_host(folder, found, device, progress, ready=ready, kept=kept)
    except _OnlyOnTheCpuError:
        raise DeviceMemoryError(reason) from None


def _load_whole(
    folder: Path, device: torch.device, progress: Progress | None, ready: Ready
) -> Model:
    """Load all of a checkpoint onto a GPU; without its head for drafts where that has no room."""
    working, head = devices.working_bytes(load_config(folder)), True
    try:
        devices.require_room(device, weight_bytes(folder), working)
    except DeviceMemoryError:
        devices.require_room(device, weight_bytes(folder, head=False), working)
        head = False
        log.info("the head for drafts: no room")
    model = load_model(folder, device=str(device), mtp=head, progress=progress)
    ready(model)
    return model


def offload_by(found: Plan, device: torch.device, slots: Slots) -> Offload | None:
    """Say how experts lie in host memory by a plan; None where they do not."""
    if found.placement != "gpu and host":
        return None
    head = found.footprint.head
    return Offload(
        slots=found.slots,
        device=lambda count, like: slots(count, like, device),
        missing_on_cpu=found.missing_on_cpu,
        reads=found.expert_reads,
        with_head=head is not None and head.alike,
    )


def load_beside_host(
    folder: Path,
    machine: Machine,
    device: torch.device,
    progress: Progress | None = None,
    *,
    slots: Slots = CudaDevice,
    ready: Ready = _as_loaded,
    kept: KvCacheDtype = "auto",
) -> Model:
    """Load a checkpoint by a plan for this machine, smaller ones following where memory runs out.

    Args:
        folder: holds the checkpoint.
        machine: what the plan is for.
        device: where what is no expert lies.
        progress: as `load_model`'s.
        slots: makes so many slots for experts like these, there.
        ready, kept: as `load_onto_gpu`'s.

    Raises:
        CheckpointError: it cannot be loaded.
        DeviceMemoryError: not even the smallest plan fits.
    """
    devices.make_current(device)
    footprint = footprint_of(folder, kept)

    def place(found: Plan) -> Model:
        if found.placement == "cpu":
            raise _OnlyOnTheCpuError
        log.info("%d of %d experts have a place on the GPU", found.slots, footprint.experts)
        log.info("the head for drafts: %s", found.head)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # of what an attempt before had taken
        offload = offload_by(found, device, slots)
        model = load_model(
            folder,
            device=str(device),
            mtp=found.head == "loaded",
            progress=progress,
            offload=offload,
        )
        ready(model)
        return model

    return placed(plan(footprint, machine), place)

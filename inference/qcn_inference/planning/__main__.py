"""Print what this machine can do with models, as JSON.

    python -m qcn_inference.planning [DIR ...]

Without folders, the published models and the embedded one are looked at. Of each, every format is
planned; a folder's own weights are not looked at, only its shape.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qcn_inference.config import ModelConfig, load_config
from qcn_inference.device import CPU, choose, describe, failed
from qcn_inference.embedded import EMBEDDED
from qcn_inference.errors import CheckpointError
from qcn_inference.planning.footprint import FORMATS, DraftHead, Footprint, WeightFormat
from qcn_inference.planning.machine import Machine, measure
from qcn_inference.planning.plan import POSITION, Plan, plan
from qcn_inference.planning.shapes import SHAPES


def main(folders: list[Path]) -> int:
    """Print the plans; 1 where a folder's config.json cannot be read."""
    try:
        configs = {folder.name: load_config(folder) for folder in folders or SHAPES}
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    machine, problem = _measured()
    plans = [
        {"model": name, "format": stored.name} | _described(_footprint(config, stored), machine)
        for name, config in configs.items()
        for stored in _formats(name, config)
    ]
    print(json.dumps({"machine": asdict(machine), "device_problem": problem, "plans": plans}))
    return 0


def _measured() -> tuple[Machine, str | None]:
    """The machine with the GPU that an engine would take; why it cannot be measured, if so."""
    device, _ = choose("auto")
    try:
        return measure(device), None
    except RuntimeError as error:
        if device.type == "cpu":
            raise
        problem = str(failed(describe(device), error) or error)
    return measure(CPU), problem


def _formats(name: str, config: ModelConfig) -> Iterable[WeightFormat]:
    """Those that there are: only experts stay smaller; the embedded model is as it is."""
    return FORMATS if config.num_experts and name != EMBEDDED else FORMATS[:1]


def _footprint(config: ModelConfig, stored: WeightFormat) -> Footprint:
    head = DraftHead.of_shape(config, stored) if config.has_mtp_head else None
    return Footprint(config, stored, head)


def _described(footprint: Footprint, machine: Machine) -> dict[str, Any]:
    found = plan(footprint, machine)
    if not isinstance(found, Plan):
        return {"placement": None, "missing": found.missing, "remedy": found.remedy}
    position = min(POSITION, found.context)
    return {
        "placement": found.placement,
        "context": found.context,
        "weight_bytes": found.footprint.all_bytes,
        "experts_on_gpu": found.slots,
        "experts": footprint.experts,
        "head": found.head,
        "missing_on_cpu": found.placement == "gpu and host" and found.missing_on_cpu,
        "host_bytes": found.host_bytes,
        "position": position,
        "decode_tokens_per_second": 1 / found.decode_seconds(position),
        "prefill_tokens_per_second": position / found.prefill_seconds(position),
        "ghost_text_seconds": found.ghost_text_seconds(position),
    }


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))

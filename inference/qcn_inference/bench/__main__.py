"""Measure a model on this machine.

    python -m qcn_inference.bench --model DIR|qcn-nano [--device D] [--lengths N ...]
    python -m qcn_inference.bench --synthetic NAME [--device D] [--lengths N ...]

Standard output: a JSON object a line, `{"activity"}` as it goes on, and `{"result"}` or `{"error"}`
at the end. A prompt that would take longer than `--patience` seconds is left out and said so.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from qcn_inference import device
from qcn_inference.bench.measure import Figures, measure
from qcn_inference.bench.synthetic import synthetic_model
from qcn_inference.checkpoint import load_model
from qcn_inference.config import load_config
from qcn_inference.embedded import checkpoint_folder
from qcn_inference.errors import CheckpointError, DeviceError
from qcn_inference.model import Model
from qcn_inference.planning import machine
from qcn_inference.planning.footprint import (
    FORMATS,
    Footprint,
    WeightFormat,
)
from qcn_inference.planning.onto_gpu import footprint_of, load_onto_gpu
from qcn_inference.planning.plan import Placement, Plan, Refusal, plan
from qcn_inference.planning.shapes import SHAPES

LENGTHS = (2048, 8192, 32_768, 131_072, 262_144)
PATIENCE = 120.0
INTERRUPTED = 130  # as a shell reports SIGINT
LONGEST_FOR_PEERS = 8192
MOST = 0.9
"""Of what is free: random weights leave the rest for the work."""
SMALL_EXPERTS = ("Qwen3-Coder-Next", "Qwen3.5-35B-A3B")
PACKAGES = ("torch", "triton", "transformers", "flash-linear-attention")
SYNTHETIC = {
    f"{shape.name.lower()}-{stored.name}": (shape, stored)
    for shape in SHAPES
    for stored in FORMATS
    if stored.name == "bf16" or shape.name in SMALL_EXPERTS
}
"""By name: the folder whose config.json has the shape, and the format of the weights."""


class UnfitError(Exception):
    """What was asked for cannot be measured here; str() says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where it could not be done."""
    given = _parse(arguments)
    try:
        result = _measured(given)
    except (CheckpointError, DeviceError, UnfitError) as error:
        _say({"error": str(error)})
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    _say({"result": result})
    return 0


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    _say({"activity": "measuring the machine"})
    on, problem = device.choose(given.device)
    found = machine.measure(on)
    model, floor = _synthetic(given, on, found) if given.synthetic else _loaded(given, on, found)
    config = model.config
    lengths = [n for n in given.lengths if n + 1024 <= config.max_position_embeddings]
    lengths = lengths or [config.max_position_embeddings - 1024]
    prompts = []
    for one in measure(
        model,
        floor,
        lengths,
        patience=given.patience,
        report=lambda activity: _say({"activity": activity}),
    ):
        prompts.append(asdict(one) | {"measured": isinstance(one, Figures)})
    return {
        "model": given.synthetic or given.model.name,
        "weights": floor.footprint.format.name,
        "placement": floor.placement,
        "device": device.describe(on),
        "device_problem": problem,
        "threads": torch.get_num_threads(),
        "machine": asdict(found),
        "system": platform.platform(),
        "versions": {name: known for name in PACKAGES if (known := _version(name))},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "prompts": prompts,
        "peers": _peers(given, model, lengths),
    }


def _synthetic(
    given: argparse.Namespace, on: torch.device, found: machine.Machine
) -> tuple[Model, Plan]:
    """Make random weights; what does not fit is refused before memory is taken for it."""
    shape, stored = SYNTHETIC[given.synthetic]
    config = load_config(shape)
    if stored.name == "fp8" and on.type == "cpu":
        raise UnfitError(
            "FP8 is multiplied on a GPU only. Choose the bf16 or int4 one, or another device"
        )
    footprint = Footprint(config, stored)
    gpu = None if on.type == "cpu" else found.gpu
    free = found.free_bytes if gpu is None else gpu.free_bytes
    if footprint.all_bytes > MOST * free:
        raise UnfitError(
            f"its weights take {footprint.all_bytes / 1e9:.0f} GB and {free / 1e9:.0f} GB are free "
            f"on {on}. Choose a smaller one, or --model qcn-nano"
        )
    _say({"activity": "making random weights"})
    model = synthetic_model(config, str(on), stored.name)
    return model, _floor(footprint, found, on)


def _loaded(
    given: argparse.Namespace, on: torch.device, found: machine.Machine
) -> tuple[Model, Plan]:
    """Load a checkpoint, with experts in host memory where the GPU is too small for all."""
    _say({"activity": "loading the model"})
    if on.type == "cpu":
        model = load_model(given.model)
        bits = 8 * model.dtype.itemsize
        footprint = Footprint(model.config, WeightFormat(f"{bits} bits", bits, bits, bits))
        return model, _floor(footprint, found, on)
    floor = plan(footprint_of(given.model), found)
    if isinstance(floor, Refusal):
        raise UnfitError(f"{floor.missing}. {floor.remedy}")
    return load_onto_gpu(given.model, on), floor


def _floor(footprint: Footprint, found: machine.Machine, on: torch.device) -> Plan:
    placement: Placement = "cpu" if on.type == "cpu" else "gpu"
    return Plan(footprint, found, placement, 0, footprint.experts, 0, 0)


def _peers(given: argparse.Namespace, model: Model, lengths: Sequence[int]) -> dict[str, Any]:
    """What transformers takes for the same, where it is installed and there is a checkpoint."""
    if find_spec("transformers") is None:
        return {"transformers": {"not_measured": "not installed"}}
    if given.synthetic:
        return {"transformers": {"not_measured": "random weights have no checkpoint"}}
    _say({"activity": "transformers, for comparison"})
    wanted = [str(n) for n in lengths if n <= LONGEST_FOR_PEERS] or [str(min(lengths))]
    command = [sys.executable, "-P", "-m", "qcn_inference.bench.transformers_peer"]
    command += [str(given.model), str(model.device), *wanted]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"transformers": {"not_measured": words}}
    return {"transformers": json.loads(done.stdout.splitlines()[-1])}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m qcn_inference.bench")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=checkpoint_folder)
    which.add_argument("--synthetic", choices=sorted(SYNTHETIC))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

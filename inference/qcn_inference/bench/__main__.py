"""Measure a model on this machine.

    python -m qcn_inference.bench --model DIR|qcn-nano [--device D] [--lengths N ...]
    python -m qcn_inference.bench --synthetic NAME [--device D] [--device-memory-mib N] [...]
        [--kv-cache-dtype fp8]
    python -m qcn_inference.bench --synthetic NAME --waits TOKENS [--tries N]

With `--waits`, instead of prompts: how long completions wait while so many tokens are read.

Standard output: a JSON object a line, `{"activity"}` as it goes on, `{"prompt"}` for each that was
measured, and `{"result"}` or `{"error"}` at the end. A prompt that would take longer than
`--patience` seconds is left out and said so.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, get_args

import torch

from qcn_inference import device
from qcn_inference.bench import models
from qcn_inference.bench.conditions import conditions
from qcn_inference.bench.measure import BESIDE, Figures, measure
from qcn_inference.bench.waiting import engine_of, waits
from qcn_inference.config import KvCacheDtype, load_config
from qcn_inference.embedded import EMBEDDED, checkpoint_folder
from qcn_inference.errors import CheckpointError, DeviceError
from qcn_inference.model import Model
from qcn_inference.planning import machine
from qcn_inference.planning.plan import Plan

LENGTHS = (2048, 8192, 32_768, 131_072, 262_144)
PATIENCE = 120.0
TRIES = 40
INTERRUPTED = 130  # as a shell reports SIGINT
LONGEST_FOR_PEERS = 8192


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where it could not be done."""
    given = _parse(arguments)
    try:
        result = _measured(given)
    except (CheckpointError, DeviceError, models.UnfitError) as error:
        _say({"error": str(error)})
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    _say({"result": result})
    return 0


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    if given.synthetic:  # what there is not is refused before anything is measured
        models.synthetic_named(given.synthetic)
    else:
        load_config(given.model)
    on, problem = device.choose(given.device)
    device.make_current(on)
    if on.type == "cpu" and given.kv_cache_dtype != "auto":
        raise models.UnfitError("--kv-cache-dtype is for a GPU, and this runs on the CPU")
    if given.device_memory_mib:
        if on.type == "cpu":
            raise models.UnfitError("--device-memory-mib is for a GPU, and this runs on the CPU")
        device.limit_memory(on, given.device_memory_mib << 20)
    _say({"activity": "measuring the machine"})
    found = machine.measure(on)
    model, floor = _model(given, on, found)
    if given.kv_cache_dtype != "auto":
        room = device.room_for_states(on, device.working_bytes(model.config))
        model.reserve(room, given.kv_cache_dtype)
    result = {
        "model": given.synthetic or given.model.name,
        "weights": floor.footprint.format.name,
        "placement": floor.placement,
        "experts_on_gpu": floor.slots if on.type == "cuda" else 0,
        "experts": floor.footprint.experts,
        "device_problem": problem,
        "device_memory_mib": given.device_memory_mib,
        "kv_cache_dtype": given.kv_cache_dtype,
        "machine": asdict(found),
    } | conditions(on)
    if given.waits:
        folder = checkpoint_folder(EMBEDDED) if given.synthetic else given.model
        _say({"activity": f"completions while {given.waits:,} tokens are read"})
        engine = engine_of(model, folder)
        waited = waits(engine, given.waits, given.tries, lambda text: _say({"activity": text}))
        return result | {"waits": asdict(waited)}
    lengths = _lengths(given, model)
    prompts = list(_prompts(given, model, floor, lengths))
    return result | {"prompts": prompts, "peers": _peers(given, model, lengths)}


def _model(
    given: argparse.Namespace, on: torch.device, found: machine.Machine
) -> tuple[Model, Plan]:
    if not given.synthetic:
        _say({"activity": "loading the model"})
        return models.loaded(given.model, on, found, given.kv_cache_dtype)
    _say({"activity": "making random weights"})
    longest = BESIDE + (given.waits or max(given.lengths))
    kept = given.kv_cache_dtype
    return models.synthetic(given.synthetic, on, found, longest=longest, kept=kept)


def _lengths(given: argparse.Namespace, model: Model) -> list[int]:
    most = model.config.max_position_embeddings - BESIDE
    return [n for n in given.lengths if n <= most] or [most]


def _prompts(
    given: argparse.Namespace, model: Model, floor: Plan, lengths: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Measure each length; what is known is said at once, whatever becomes of the next."""
    for one in measure(
        model,
        floor,
        lengths,
        patience=given.patience,
        report=lambda activity: _say({"activity": activity}),
    ):
        prompt = asdict(one) | {"measured": isinstance(one, Figures)}
        _say({"prompt": prompt})
        yield prompt


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


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m qcn_inference.bench")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=checkpoint_folder)
    which.add_argument("--synthetic", metavar="NAME")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--device-memory-mib", type=int, default=0)
    parser.add_argument("--kv-cache-dtype", choices=get_args(KvCacheDtype), default="auto")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    parser.add_argument("--waits", type=int, metavar="TOKENS")
    parser.add_argument("--tries", type=int, default=TRIES)
    given = parser.parse_args(arguments)
    if given.tries < 2:
        parser.error("--tries: of fewer than two there is no percentile")
    return given


if __name__ == "__main__":
    sys.exit(main())

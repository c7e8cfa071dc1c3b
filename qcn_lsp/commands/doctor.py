"""`qcn doctor`: what is wrong on this machine, and the remedy.

Looks, and changes nothing: no model is loaded, no engine started. What needs torch is asked of
another process of this Python, so that a broken installation of it cannot take the doctor along.
"""

import asyncio
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from qcn_lsp.commands.engine import running_engines
from qcn_lsp.engine.messages import EngineUnavailable
from qcn_lsp.engine.process import ENGINE_PACKAGES, missing_packages
from qcn_lsp.engine.runtime import EMBEDDED_MODEL, known_addresses, runtime_directory
from qcn_lsp.installation import install_command
from qcn_lsp.proving import ProvingGround

MIN_PYTHON = (3, 11)
MIN_FREE_MIB = 1024
ASK_SECONDS = 60.0
SLOW_SECONDS = 1.0  # for a ghost text: one has typed on by then
HEADS = {
    "none": "",
    "loaded": " and its head for drafts",
    "no room": ", none for its head for drafts",
    "not worth it": "; its head for drafts would cost more than it brings",
}
SERVER_PACKAGES = (
    "pygls",
    "lsprotocol",
    "pydantic",
    "httpx",
    "filelock",
    "platformdirs",
    "psutil",
    "rich",
)
_ASK_TORCH = """
import json, torch
from qcn_inference.device import choose
device, problem = choose("auto")
used = device.type == "cuda"
print(json.dumps({
    "version": torch.__version__,
    "built_for": torch.version.cuda or "the CPU",
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count() * used)],
    "problem": problem,
    "threads": torch.get_num_threads(),
    "capability": torch.backends.cpu.get_cpu_capability(),
}))
"""

_ASK_CONFIG = """
import sys
from pathlib import Path
from qcn_inference.config import load_config
from qcn_inference.errors import CheckpointError
try:
    load_config(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
    sys.exit(1)
"""
# What decides how fast the CPU multiplies matrices, as Linux names it.
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do unless all is well."""

    check: str
    level: Level
    detail: str
    remedy: str = ""


def run(*, as_json: bool) -> int:
    """Print what was found; 1 when something fails."""
    findings = [finding for check in _CHECKS for finding in check()]
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        report = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        if isinstance(planning := _planning(), dict):
            report |= {"machine": planning["machine"], "plans": planning["plans"]}
        print(json.dumps(report))
    else:
        _print(findings)
    return 1 if failed else 0


def _python() -> Iterator[Finding]:
    detail = f"{platform.python_version()} ({sys.executable}), {platform.platform()}"
    if sys.version_info < MIN_PYTHON:
        yield Finding("Python", "fail", detail, "Install Python 3.11 or newer.")
    else:
        yield Finding("Python", "ok", detail)


def _packages() -> Iterator[Finding]:
    missing = [name for name in SERVER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        found = f"missing: {', '.join(missing)}"
        yield Finding("language server", "fail", found, f"Install again: {install_command()}")
    else:
        yield Finding("language server", "ok", f"qcn-lsp {metadata.version('qcn-lsp')}")
    if missing := missing_packages():
        remedy = (
            f"{install_command('engine')}; or set qcn.engine.url to an OpenAI-compatible server."
        )
        yield Finding("engine packages", "fail", f"missing: {', '.join(missing)}", remedy)
    else:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ENGINE_PACKAGES)
        yield Finding("engine packages", "ok", versions)


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return  # said above
    try:
        asked = _ask_python(_ASK_TORCH)
    except subprocess.TimeoutExpired:
        yield Finding("torch", "fail", f"not imported within {ASK_SECONDS:g} s", "Reinstall it.")
        return
    if asked.returncode:
        yield Finding(
            "torch",
            "fail",
            f"cannot be imported: {_last_line(asked.stderr)}",
            f"Reinstall: {install_command('engine')}",
        )
        return
    yield from torch_findings(json.loads(asked.stdout))


def torch_findings(found: dict[str, Any]) -> Iterator[Finding]:
    """Say what torch is and where it computes; of a GPU that the engine cannot use, why."""
    first, *others = found["devices"] or [f"the CPU ({found['capability']})"]
    detail = f"{found['version']}, built for {found['built_for']}; runs on {first}"
    if others:
        named = ", ".join(f"cuda:{number} {name}" for number, name in enumerate(others, 1))
        detail += f", or by qcn.engine.device on {named}"
    yield Finding("torch", "ok", f"{detail}, threads: {found['threads']}")
    if problem := found["problem"]:
        yield Finding("GPU", "warn", f"not used: {problem}", "See the message; until then the CPU.")
    elif not found["devices"]:
        yield Finding(
            "GPU",
            "warn",
            "none that torch can use: right for qcn-nano, slow for large checkpoints",
            "On a machine with an NVIDIA GPU (the engine uses no others) install torch's CUDA "
            "build.",
        )


def _machine() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    free, total = memory.available >> 20, memory.total >> 20
    detail = f"{os.cpu_count()} cores{_cpu_features()}; {free} of {total} MiB memory free"
    if free < MIN_FREE_MIB:
        yield Finding("machine", "warn", detail, "Free some memory: qcn-nano needs about 1 GiB.")
    else:
        yield Finding("machine", "ok", detail)


def _cpu_features() -> str:
    """Return the CPU's useful instruction sets, where the system lists them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    words = set(text.split())
    found = [feature for feature in _CPU_FEATURES if feature in words]
    return f" with {', '.join(found)}" if found else ""


def _plans() -> Iterator[Finding]:
    """What the published models could do here, each in every format that fits."""
    asked = _planning()
    if asked is None:
        return  # said above
    if isinstance(asked, Finding):
        yield asked
        return
    yield Finding("speed", "ok", rates(asked["machine"]))
    if problem := asked["device_problem"]:
        yield Finding("plans", "warn", f"without the GPU: {problem}", "Mend that, then ask again.")
    for model in dict.fromkeys(plan["model"] for plan in asked["plans"]):
        own = [plan for plan in asked["plans"] if plan["model"] == model]
        fitting = [plan for plan in own if plan["placement"]]
        for plan in fitting:
            yield Finding(model, "ok", explained(plan))
        if not fitting:
            detail = f"not on this machine: as {own[-1]['format']}, {own[-1]['missing']}"
            yield Finding(model, "warn", detail, f"{own[-1]['remedy']}.")


@cache
def _planning() -> dict[str, Any] | Finding | None:
    """The machine as measured and its plans; what went wrong; None where the engine is missing."""
    if missing_packages():
        return None
    try:
        asked = _ask("-m", "qcn_inference.planning")
    except subprocess.TimeoutExpired:
        return Finding("models", "warn", f"not planned within {ASK_SECONDS:g} s", "Try again.")
    if asked.returncode:
        return Finding(
            "models", "warn", _last_line(asked.stderr), f"Reinstall: {install_command('engine')}"
        )
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def rates(machine: dict[str, Any]) -> str:
    """Say in words how fast a machine was just now, other programs running or not."""
    said = (
        f"the CPU reads {machine['bandwidth'] / 1e9:,.1f} GB/s and multiplies "
        f"{machine['rate'] / 1e12:,.2f} TFLOP/s in bf16"
    )
    if gpu := machine["gpu"]:
        in_fp8 = f" ({gpu['fp8_rate'] / 1e12:,.0f} in FP8)" if gpu["fp8_rate"] else ""
        said += (
            f"; {gpu['name']} reads {gpu['bandwidth'] / 1e9:,.0f} GB/s, multiplies "
            f"{gpu['rate'] / 1e12:,.0f} TFLOP/s{in_fp8} and is sent "
            f"{gpu['link'] / 1e9:,.1f} GB/s, with {gpu['free_bytes'] / 1e9:,.1f} GB free"
        )
    return f"{said}; measured just now, beside whatever else runs"


def explained(plan: dict[str, Any]) -> str:
    """Say a plan in words; its rates are what memories and products allow at best."""
    where = {"gpu": "on the GPU", "cpu": "on the CPU"}.get(plan["placement"])
    if where is None:
        missing = "computed on the CPU" if plan["missing_on_cpu"] else "copied when needed"
        where = (
            f"on the GPU with {plan['experts_on_gpu']:,} of {plan['experts']:,} experts, all of "
            f"them in {plan['host_bytes'] / 1e9:.0f} GB of host memory, missing ones {missing}"
        )
    head = HEADS[plan["head"]]
    ghost_text = plan["ghost_text_seconds"]
    slow = ", slow while typing" if ghost_text >= SLOW_SECONDS else ""
    return (
        f"as {plan['format']} ({_number(plan['weight_bytes'] / 1e9)} GB) {where}; room for a "
        f"context of {plan['context']:,} tokens{head}. At best, behind {plan['position']:,} "
        f"tokens: {_number(plan['decode_tokens_per_second'])} tokens/s, a ghost text in "
        f"{_number(ghost_text * 1000)} ms{slow}; reading "
        f"{_number(plan['prefill_tokens_per_second'])} tokens/s"
    )


def _number(value: float) -> str:
    """Whole from 10 on, two digits below."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def _runtime_directory() -> Iterator[Finding]:
    try:
        directory = runtime_directory()
    except EngineUnavailable as problem:
        yield Finding("runtime directory", "fail", str(problem), "See the message.")
        return
    yield Finding("runtime directory", "ok", f"{directory}, yours alone")


def _proving_ground() -> Iterator[Finding]:
    """What a project's tests could run in, to prove a fix: attacked here and now."""
    ground = asyncio.run(ProvingGround.find())
    if ground.holds:
        yield Finding("proving ground", "ok", ground.reason)
    else:
        remedy = "Fixes are offered without the proof of tests. For it: install bubblewrap."
        yield Finding("proving ground", "warn", ground.reason, remedy)


def _engines() -> Iterator[Finding]:
    try:
        addresses = known_addresses(runtime_directory())
    except EngineUnavailable:
        return  # said above
    found = asyncio.run(running_engines(addresses))
    if not found:
        yield Finding("engine", "ok", "not running; it starts when it is first needed")
    for address, health in found:
        if health is None:
            remedy = "End it: qcn engine stop"
            yield Finding("engine", "fail", f"{address} does not answer", remedy)
        elif health.state == "errored":
            remedy = (
                "Mend the folder or change qcn.models.completion or qcn.models.chat; the next "
                "request tries again."
            )
            yield Finding("engine", "fail", health.error or "errored", remedy)
        else:
            detail = f"{health.model}: {health.state}, version {health.version}, pid {health.pid}"
            if problem := health.device_problem:
                remedy = "Mend that, then end the engine: qcn engine stop"
                yield Finding("engine", "warn", f"{detail}; not on the GPU: {problem}", remedy)
            else:
                yield Finding("engine", "ok", detail)


def _model() -> Iterator[Finding]:
    """Look at the embedded model's folder."""
    found = importlib.util.find_spec("qcn_inference")
    if found is None or found.origin is None:
        yield Finding(
            "model", "fail", "qcn_inference is missing", f"Install again: {install_command()}"
        )
        return
    yield check_folder(Path(found.origin).parent / "data" / EMBEDDED_MODEL)


def check_folder(folder: Path) -> Finding:
    """Look at a checkpoint folder without loading it: its config by the engine's own rules."""
    name = f"model {folder.name}"
    asked = _ask_python(_ASK_CONFIG, str(folder))
    if asked.returncode:
        problem = asked.stdout.strip() or _last_line(asked.stderr)
        return Finding(name, "fail", problem, "Download the checkpoint again, or choose another.")
    weights = list(folder.glob("*.safetensors"))
    if not weights or not (folder / "tokenizer.json").is_file():
        remedy = f"{folder} must hold tokenizer.json and *.safetensors."
        return Finding(name, "fail", "weights or tokenizer.json missing", remedy)
    size = sum(file.stat().st_size for file in weights) / 1e6
    return Finding(name, "ok", f"{size:.0f} MB of weights, in {folder}")


def _ask_python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `code` in a process of this Python of its own; raises `TimeoutExpired`."""
    return _ask("-c", code, *arguments)


def _ask(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run this Python in a process of its own; raises `TimeoutExpired`."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        timeout=ASK_SECONDS,
        stdin=subprocess.DEVNULL,
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _torch,
    _machine,
    _plans,
    _runtime_directory,
    _engines,
    _model,
    _proving_ground,
)


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from qcn_lsp.commands.console import make_console

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for finding in findings:
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\n→ {finding.remedy}", style="bold")
        table.add_row(Text(finding.level, style=styles[finding.level]), finding.check, detail)
    make_console().print(table)

"""`qcn bench`: how fast a model is on this machine, and how near that is to what is possible.

The work is done by `qcn_inference.bench` in a process of its own; the first completion is asked of
a real language server, as an editor asks it.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qcn_lsp.commands.console import Show, make_console, progress_on
from qcn_lsp.commands.engine import running_engines
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.plot import Line, plot
from qcn_lsp.commands.session import editor_session
from qcn_lsp.commands.worker import worker
from qcn_lsp.engine.process import require_engine_packages
from qcn_lsp.engine.runtime import known_addresses, resolve_model, runtime_directory

RESULT, PLOT = "bench.json", "bench.svg"
COLUMNS = (
    "prompt",
    *("prefill", "work", "of ceiling"),
    *("decode", "read", "of ceiling"),
    *("edit to token", "work", "of ceiling"),
)
EXAMPLE = "def total(prices):\n    result = 0\n    for price in prices:\n        result += "


@dataclass(frozen=True)
class Wanted:
    """What is measured: one of `model` (a folder, or the embedded one) and `synthetic`."""

    model: str
    synthetic: str | None
    device: str
    device_memory_mib: int  # of a GPU, at most; 0: what is free
    kv_cache_dtype: str  # of a GPU
    lengths: Sequence[int]
    output: Path | None  # the folder for the files; None writes none


def run(wanted: Wanted, *, as_json: bool) -> int:
    """Measure and print; raises `CommandError` where it cannot be done."""
    require_engine_packages()
    console = make_console(stderr=True)
    with progress_on(console) as show:
        result = _measured(wanted, show)
        if wanted.synthetic is None:
            show("the first completion, through the language server", None)
            result["first_completion"] = asyncio.run(_first_completion(wanted.model))
    if wanted.output is not None:
        _write(wanted.output, result)
    if as_json:
        print(json.dumps(result))
    else:
        _print(make_console(), result)
    return 0


def _measured(wanted: Wanted, show: Show) -> dict[str, Any]:
    arguments = ["--device", wanted.device]
    if wanted.synthetic is not None:
        arguments += ["--synthetic", wanted.synthetic]
    else:
        arguments += ["--model", resolve_model(wanted.model)]
    if wanted.device_memory_mib:
        arguments += ["--device-memory-mib", str(wanted.device_memory_mib)]
    if wanted.kv_cache_dtype != "auto":
        arguments += ["--kv-cache-dtype", wanted.kv_cache_dtype]
    if wanted.lengths:
        arguments += ["--lengths", *map(str, wanted.lengths)]
    last: dict[str, Any] = {}
    with worker("qcn_inference.bench", *arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = json.loads(line)
            if "activity" in last:
                show(last["activity"], None)
        code = process.wait()
    if "error" in last:
        raise CommandError(last["error"])
    if "result" not in last:
        raise CommandError(f"the measurement ended with exit code {code}")
    result: dict[str, Any] = last["result"]
    return result


async def _first_completion(model: str) -> dict[str, Any]:
    """Milliseconds to the first two suggestions of a new window; the second finds all loaded."""
    engines = await running_engines(known_addresses(runtime_directory()))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        uri = (root / "example.py").as_uri()
        began = time.perf_counter()
        async with editor_session(root, options={"models": {"completion": model}}) as session:
            session.open(uri, "python", EXAMPLE)
            line = EXAMPLE.count("\n")
            await session.suggest(uri, line, len(EXAMPLE.rpartition("\n")[2]))
            first = time.perf_counter() - began
            session.change(uri, f"import math\n{EXAMPLE}")
            again = await session.suggest(uri, line + 1, len(EXAMPLE.rpartition("\n")[2]))
    return {
        "engine_was_running": any(health is not None for _, health in engines),
        "first_milliseconds": first * 1000,
        "second_milliseconds": again.milliseconds,
    }


def _write(folder: Path, result: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (folder / PLOT).write_text(_plotted(result), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error


def _plotted(result: dict[str, Any]) -> str:
    measured = [one for one in result["prompts"] if one["measured"]]

    def line(name: str, seconds: str, tokens: str | None) -> Line:
        return Line(
            name,
            [(one["tokens"], (one[tokens] if tokens else 1) / one[seconds]) for one in measured],
        )

    return plot(
        f"{result['model']} on {result['device']}",
        [
            line("prefill", "prefill_seconds", "tokens"),
            line("prefill, at best", "prefill_floor", "tokens"),
            line("decode", "decode_seconds", None),
            line("decode, at best", "decode_floor", None),
        ],
    )


def _print(console: Console, result: dict[str, Any]) -> None:
    rates = result["machine"]["gpu"] or result["machine"]
    in_fp8 = f" ({rates['fp8_rate'] / 1e12:,.0f} in FP8)" if rates.get("fp8_rate") else ""
    console.print(
        f"{result['model']}, {result['weights']}, on {result['device']}, CPU "
        f"threads {result['threads']}: reads {rates['bandwidth'] / 1e9:,.0f} GB/s, multiplies "
        f"{rates['rate'] / 1e12:,.2f} TFLOP/s{in_fp8}, as measured just before.",
        highlight=False,
    )
    if result["device_problem"]:
        console.print(f"Not on the GPU: {result['device_problem']}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for one in result["prompts"]:
        table.add_row(*_row(one))
    console.print(table)
    for name, found in result["peers"].items():
        console.print(_peer(name, found, result["prompts"]), highlight=False)
    if first := result.get("first_completion"):
        before = "" if first["engine_was_running"] else ", the engine's start among it"
        console.print(
            f"A new window's first completion after {first['first_milliseconds']:,.0f} ms{before}; "
            f"the next within {first['second_milliseconds']:,.0f} ms.",
            highlight=False,
        )
    console.print(
        "The ceiling is bytes over that bandwidth or operations over that rate, whichever takes "
        "longer; a model that lies in the processor's caches may pass it.",
        highlight=False,
    )


def _row(one: dict[str, Any]) -> list[str]:
    tokens = f"{one['tokens']:,}"
    if not one["measured"]:
        return [tokens, f"left out: {one['reason']}"]
    shares = [
        f"{one[f'{what}_floor'] / one[f'{what}_seconds']:.0%}"
        for what in ("prefill", "decode", "edit")
    ]
    return [
        tokens,
        f"{one['tokens'] / one['prefill_seconds']:,.0f} tok/s",
        _operations(one["prefill_operations"]),
        shares[0],
        f"{1 / one['decode_seconds']:,.0f} tok/s",
        f"{one['decode_bytes'] / 1e6:,.0f} MB",
        shares[1],
        f"{one['edit_seconds'] * 1000:,.0f} ms",
        _operations(one["edit_operations"]),
        shares[2],
    ]


def _operations(count: int) -> str:
    return f"{count / 1e9:,.0f} GFLOP" if count < 1e13 else f"{count / 1e12:,.0f} TFLOP"


def _peer(name: str, found: Any, prompts: list[dict[str, Any]]) -> str:
    if "not_measured" in found:
        return f"{name}: not measured, {found['not_measured']}"
    ours = {one["tokens"]: one for one in prompts}
    parts = [
        f"at {one['tokens']:,} tokens our prefill takes "
        f"{ours[one['tokens']]['prefill_seconds'] / one['prefill_seconds']:.2f} and our decode "
        f"{ours[one['tokens']]['decode_seconds'] / one['decode_seconds']:.2f} of its time"
        for one in found["prompts"]
        if ours[one["tokens"]]["measured"]
    ]
    return f"{name} (linear attention by {found['linear_attention']}): {'; '.join(parts)}"

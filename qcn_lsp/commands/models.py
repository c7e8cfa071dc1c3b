"""`qcn models get NAME DST` and `qcn models convert SRC DST`: to a checkpoint that can be served.

The work is done by `qcn_inference.download` and `qcn_inference.convert`, each in a process of its
own, which tells how far it is in lines of JSON. It is begun again by the same command and goes on
where it stopped.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from qcn_lsp.commands.console import Show, make_console, progress_on
from qcn_lsp.commands.errors import CommandError
from qcn_lsp.commands.worker import worker
from qcn_lsp.engine.process import require_engine_packages

GOES_ON = "The same command goes on where it stopped."


def get(name: str, folder: Path, gguf: str | None) -> int:
    """Download, showing bytes; raises `CommandError` where it cannot be done."""
    chosen = ["--gguf", gguf] if gguf is not None else []
    result = _run("qcn_inference.download", name, _absolute(folder), *chosen)
    size = f"{_gigabytes(result['bytes'])} GB, commit {result['commit'][:12]}"
    print(f"{name} {'was in' if result['was_there'] else 'is in'} {folder} ({size}).")
    if result["convert"] is None:
        print(_served(folder))
    else:
        print(f"Convert it: qcn models convert {folder / result['convert']} DST")
    return 0


def convert(origin: Path, folder: Path, experts: str | None) -> int:
    """Convert, showing bytes; raises `CommandError` where it cannot be done."""
    quantised = ["--experts", experts] if experts else []
    result = _run("qcn_inference.convert", _absolute(origin), _absolute(folder), *quantised)
    if result["was_there"]:
        print(f"Nothing to do: a finished copy of {origin} is in {folder}.")
    print(_served(folder))
    if measured := result["divergence"]:
        print(
            f"KL divergence from the original, in nats: {measured['mean']:.3g} on average, "
            f"{measured['percentile_99']:.3g} at the 99th percentile of {measured['tokens']} tokens"
        )
    return 0


def _served(folder: Path) -> str:
    return f"{folder} can be served: qcn engine start --model {folder}"


def _run(module: str, *arguments: str) -> dict[str, Any]:
    """Run a worker to its end, showing how far it is; return its result."""
    require_engine_packages()
    console = make_console(stderr=True)
    try:
        with progress_on(console) as show, worker(module, *arguments) as process:
            last = _follow(process, show, in_place=console.is_terminal)
            code = process.wait()
    except KeyboardInterrupt:
        print(f"qcn: interrupted. {GOES_ON}", file=sys.stderr)
        raise
    if "error" in last:
        raise CommandError(last["error"])
    if code or "result" not in last:
        raise CommandError(f"{module} ended with exit code {code}. {GOES_ON}")
    result: dict[str, Any] = last["result"]
    return result


def _follow(process: "subprocess.Popen[str]", show: Show, *, in_place: bool) -> dict[str, Any]:
    """Show progress until the process closes its output; return the last object it printed."""
    activity, last = "", {}
    assert process.stdout is not None
    for line in process.stdout:
        last = json.loads(line)
        if "activity" not in last or (last["activity"] == activity and not in_place):
            continue
        activity, done, total = last["activity"], last["done"], last["total"]
        text = f"{activity} ({_gigabytes(done)} of {_gigabytes(total)} GB)"
        show(text, 100 * done // max(1, total))
    return last


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}" if count < 1e10 else f"{count / 1e9:.0f}"


def _absolute(path: Path) -> str:
    return str(path.expanduser().absolute())

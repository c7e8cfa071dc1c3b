"""`python -m benchmarks [NAME] [--quick] [--threads N]`: one of the benchmarks, or all."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks import (
    completion,
    edit,
    elsewhere,
    evaluation,
    inference,
    lookup,
    machine,
    peers,
    registries,
    replay,
    report,
    restart,
    results,
    scale,
    scanner,
    startup,
)

RUNS = (
    "inference",
    "completion",
    "startup",
    "edit",
    "restart",
    "replay",
    "lookup",
    "scale",
    "evaluation",
    "scanner",
    "elsewhere",
)


def main() -> int:
    # Ended from outside, it still ends the engine and the workers that it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    arguments = _parser().parse_args()
    if arguments.what == "peers":
        try:
            peers.set_up()
        except peers.PeerError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    chosen = RUNS if arguments.what == "all" else (arguments.what,)
    for name in chosen:
        if name != "report":
            try:
                result = _run(name, arguments)
            except registries.FetchError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            print(f"wrote {results.write(result, arguments.output)}", file=sys.stderr)
    print(f"wrote {report.write(arguments.output)}", file=sys.stderr)
    return 0


def _run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    threads, quick = arguments.threads, arguments.quick
    if name in ("replay", "lookup"):
        of_history = replay.run if name == "replay" else lookup.run
        return of_history(threads, quick=quick, repository=arguments.repository)
    if name == "edit":
        lengths = (arguments.tokens,) if arguments.tokens else edit.LENGTHS
        return edit.run(threads, quick=quick, lengths=lengths)
    runs = {
        "inference": inference.run,
        "completion": completion.run,
        "startup": startup.run,
        "restart": restart.run,
        "evaluation": evaluation.run,
        "scale": scale.run,
        "scanner": scanner.run,
        "elsewhere": elsewhere.run,
    }
    return runs[name](threads, quick=quick)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = ("all", *RUNS, "peers", "report")
    parser.add_argument("what", nargs="?", choices=choices, default="all")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to try the harness")
    parser.add_argument("--threads", type=int, default=machine.default_threads())
    parser.add_argument(
        "--repository",
        type=_repository,
        default=machine.ROOT,
        help="whose git history to replay too",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        choices=edit.LENGTHS,
        help="of `edit`, the context of this length alone",
    )
    parser.add_argument("--output", type=Path, default=results.FOLDER, help="folder of the results")
    return parser


def _repository(name: str) -> Path:
    if not (Path(name) / ".git").exists():
        raise argparse.ArgumentTypeError(f"{name} is not the top folder of a git checkout")
    return Path(name)


if __name__ == "__main__":
    sys.exit(main())

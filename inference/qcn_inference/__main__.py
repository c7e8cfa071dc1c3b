"""The engine's command.

    python -m qcn_inference serve --model DIR|qcn-nano --socket PATH
    python -m qcn_inference serve --model DIR|qcn-nano --host 127.0.0.1 --port N --token-file FILE
    python -m qcn_inference purge --repo NAME

`purge` removes what is on disk of repositories of a name, where no engine runs that could be asked
to; it prints how many files that were.

Exit codes: 0 when it left because it was told to or was unused, 1 when the address or token file
cannot be used, or not all could be purged, 2 for a wrong command line, 3 when another engine is
already serving there. A model that cannot be loaded is no reason to exit: `/health` tells it.

The socket listens before anything large is imported, so that a client may connect at once and has
only to wait for its answer.
"""

import argparse
import asyncio
import logging
import math
import re
import signal
import socket
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import get_args

from qcn_inference.config import KvCacheDtype
from qcn_inference.embedded import EMBEDDED, checkpoint_folder
from qcn_inference.service.listen import (
    AlreadyServed,
    CannotListen,
    read_token,
    tcp_socket,
    unix_socket,
)

EXIT_CANNOT_LISTEN = 1
EXIT_ALREADY_SERVED = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = _parse(arguments)
    if given.command == "purge":
        return _purge(given.repo)
    # Requests are not logged at all: no prompt, no source text.
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_quietly)
    try:
        token = None if given.token_file is None else read_token(given.token_file)
        with _listener(given) as listener:
            _serve(given, listener, token)
    except AlreadyServed as error:
        print(f"qcn_inference: {error}", file=sys.stderr)
        return EXIT_ALREADY_SERVED
    except CannotListen as error:
        print(f"qcn_inference: {error}", file=sys.stderr)
        return EXIT_CANNOT_LISTEN
    return 0


def _purge(repo: str) -> int:
    from qcn_inference.disk_files import default_folder, purge

    try:
        print(purge(default_folder(), repo))
    except OSError as error:
        what = f"not all of it could be removed: {error.strerror}, {error.filename}"
        print(f"qcn_inference: {what}", file=sys.stderr)
        return 1
    return 0


def _leave_quietly(_: int, __: FrameType | None) -> None:
    """For signals before uvicorn serves, and the one that ended it, which it raises again."""
    raise SystemExit(0)


def _listener(given: argparse.Namespace) -> AbstractContextManager[socket.socket]:
    if given.socket is not None:
        return unix_socket(given.socket)
    return tcp_socket(given.host, given.port)


def _serve(given: argparse.Namespace, listener: socket.socket, token: str | None) -> None:
    from qcn_inference.service.engine import CacheBudgets
    from qcn_inference.service.server import ServeOptions, serve

    folder = checkpoint_folder(given.model)
    budgets = CacheBudgets(
        given.cache_mib,
        given.disk_cache_mib,
        given.device_cache_mib,
        given.device_memory_mib,
        given.kv_cache_dtype,
    )
    beside = None if given.beside is None else checkpoint_folder(given.beside)
    options = ServeOptions(
        folder, folder.name, given.idle_minutes, given.threads, budgets, given.device, beside
    )
    asyncio.run(serve(options, listener, token))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m qcn_inference", description="The engine of qcn-lsp."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="serve a model over HTTP")
    option = command.add_argument
    option("--model", required=True, help=f"a checkpoint's folder, or {EMBEDDED}")
    option("--socket", type=Path, help="the path of a Unix socket")
    option("--host", help="a loopback address, for TCP")
    option("--port", type=int, help="the TCP port; 0 takes a free one and logs it")
    option("--token-file", type=Path, help="the bearer token, in a file of yours alone, for TCP")
    option("--idle-minutes", type=_minutes, default=15.0, help="leave when unused; inf never does")
    option("--threads", type=_threads, help="CPU threads for the model")
    option(
        "--device",
        type=_device,
        default="auto",
        help="cpu, cuda, cuda:N, or auto: the first GPU if it can be used, else the CPU",
    )
    option("--device-cache-mib", type=_mebibytes, help="GPU memory for what was read, in MiB")
    option(
        "--device-memory-mib",
        type=_mebibytes,
        help="GPU memory for everything, weights included, in MiB; 0 takes what is free",
    )
    option(
        "--beside",
        metavar="MODEL",
        help="another model, for whose engine the GPU must have room as well; goes without effect "
        "where --device-memory-mib is given",
    )
    option(
        "--kv-cache-dtype",
        choices=get_args(KvCacheDtype),
        default="auto",
        help="what a GPU keeps keys and values in: the model's dtype, or 8 bits",
    )
    option("--cache-mib", type=_mebibytes, help="memory for what was read, in MiB")
    option(
        "--disk-cache-mib", type=_mebibytes, help="disk for contexts, in MiB; 0 keeps nothing there"
    )
    purge = commands.add_parser("purge", help="remove what is on disk of a repository")
    purge.add_argument("--repo", required=True, help="its name, as the contexts' clients give it")
    given = parser.parse_args(arguments)
    if given.command == "purge":
        return given
    over_tcp = (given.host, given.port, given.token_file)
    if given.socket is None and None in over_tcp:
        command.error("give --socket, or all of --host, --port and --token-file")
    if given.socket is not None and over_tcp != (None, None, None):
        command.error("--socket goes without --host, --port and --token-file")
    return given


def _device(text: str) -> str:
    if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,2})?", text):
        raise argparse.ArgumentTypeError("must be auto, cpu, cuda or cuda:N")
    return text


def _minutes(text: str) -> float:
    number = float(text)
    if math.isnan(number) or number <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _threads(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _mebibytes(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


if __name__ == "__main__":
    sys.exit(main())

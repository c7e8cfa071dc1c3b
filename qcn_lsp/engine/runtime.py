"""Where the engines of this user are found: the runtime directory and the addresses in it.

All windows of a user compute the same address for the same model, which is how they come to share
one engine. The directory is the user's alone (0700, owner checked), because whoever may write in
it could put another server's socket in the place of ours and read the source code sent to it.

On Unix an engine listens on `engine-<key>.sock`. Where there are no Unix sockets (Windows) it
listens on a loopback port; `engine-<key>.port` names the port and `engine-<key>.token` holds the
bearer token, drawn anew for each engine, so that a stranger who gets the port of a dead engine
learns a token that opens nothing.
"""

import hashlib
import os
import secrets
import socket
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qcn_lsp.engine.client import HttpClient
from qcn_lsp.engine.messages import EngineUnavailable

EMBEDDED_MODEL = "qcn-nano"
MAX_SOCKET_PATH_BYTES = 100  # the system's limit is 108 on Linux and 104 on macOS, with the NUL
_KEY_DIGITS = 16
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class UnixAddress:
    """An engine on a Unix socket; the file's mode is its access control."""

    socket: Path

    def arguments(self) -> list[str]:
        """Return what the engine's command line needs to listen here."""
        return ["--socket", str(self.socket)]

    def client(self) -> HttpClient:
        """Return a client of this engine."""
        return HttpClient("http://localhost", name=f"the engine at {self}", socket=self.socket)

    def __str__(self) -> str:
        return str(self.socket)


@dataclass(frozen=True)
class LoopbackAddress:
    """An engine on a loopback port, with a bearer token in a file only the user can read."""

    port: int
    token_file: Path
    host: str = LOOPBACK

    def arguments(self) -> list[str]:
        """Return what the engine's command line needs to listen here."""
        where = ["--host", self.host, "--port", str(self.port)]
        return [*where, "--token-file", str(self.token_file)]

    def client(self) -> HttpClient:
        """Return a client of this engine; raises `EngineUnavailable` without a token."""
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise EngineUnavailable(f"The token file {self.token_file}: {error}.") from error
        return HttpClient(f"http://{self}", name=f"the engine at {self}", token=token)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


Address = UnixAddress | LoopbackAddress


def resolve_model(model: str) -> str:
    """Return the embedded model's name, or the absolute path of a checkpoint folder."""
    return model if model == EMBEDDED_MODEL else str(Path(model).expanduser().absolute())


def same_model(model: str, folder: str | None) -> bool:
    """Return whether `folder`, which an engine says it serves, is that of `model` (resolved).

    The embedded model is asked for by its name and served from its package's folder, wherever that
    is installed. An engine that names no folder is taken at its address's word.
    """
    if folder is None or model == folder:
        return True
    if model == EMBEDDED_MODEL:
        return Path(folder).parts[-3:] == ("qcn_inference", "data", EMBEDDED_MODEL)
    return os.path.realpath(model) == os.path.realpath(folder)


def engine_key(model: str) -> str:
    """Return the name under which all windows find the engine of `model` (already resolved)."""
    return hashlib.sha256(model.encode("utf-8", "surrogateescape")).hexdigest()[:_KEY_DIGITS]


def runtime_directory() -> Path:
    """Return the private directory of this user's engines, made where it is missing.

    `$XDG_RUNTIME_DIR/qcn`, or `qcn-<uid>` in the directory for temporary files; the first whose
    socket paths the system can hold. Raises `EngineUnavailable` when none is usable.
    """
    problems = []
    for candidate in _candidates():
        longest = candidate / f"engine-{'0' * _KEY_DIGITS}.sock"
        if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
            problems.append(f"{candidate} is too long for a socket's path")
            continue
        if problem := _make_private(candidate):
            problems.append(problem)
            continue
        return candidate
    raise EngineUnavailable(
        "No directory for the engine's socket: "
        + "; ".join(problems)
        + ". Set XDG_RUNTIME_DIR to a short directory that only you can write to."
    )


def address_at(directory: Path, key: str, *, tcp: bool) -> Address | None:
    """Return the address that the engine of this key was last given; None where there is none."""
    if not tcp:
        return UnixAddress(directory / f"engine-{key}.sock")
    try:
        port = int((directory / f"engine-{key}.port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    token_file = directory / f"engine-{key}.token"
    return LoopbackAddress(port, token_file) if token_file.exists() else None


def new_address(directory: Path, key: str, *, tcp: bool) -> Address:
    """Return an address for an engine about to be started; the caller holds its lock."""
    if not tcp:
        return UnixAddress(directory / f"engine-{key}.sock")
    token_file = directory / f"engine-{key}.token"
    write_token(token_file)
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    write_private(directory / f"engine-{key}.port", str(port))
    return LoopbackAddress(port, token_file)


def known_addresses(directory: Path) -> list[Address]:
    """Return the addresses of all engines that were started in `directory`, alive or not."""
    found: list[Address] = [UnixAddress(path) for path in sorted(directory.glob("engine-*.sock"))]
    for path in sorted(directory.glob("engine-*.port")):
        if address := address_at(directory, path.stem.removeprefix("engine-"), tcp=True):
            found.append(address)
    return found


def write_token(path: Path) -> None:
    """Write a fresh bearer token, readable by its owner alone."""
    write_private(path, secrets.token_urlsafe(32))


def write_private(path: Path, text: str) -> None:
    """Replace `path` by a file with `text` that only its owner can read.

    Raises `EngineUnavailable` where there can be none.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        raise EngineUnavailable(
            f"{path} cannot be written ({error.strerror}): choose a folder that exists and that "
            "you can write to."
        ) from error


def _candidates() -> list[Path]:
    found = []
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    # The specification: a relative path is invalid and ignored.
    if given and Path(given).is_absolute() and Path(given).is_dir():
        found.append(Path(given) / "qcn")
    if sys.platform == "win32":
        return [*found, Path(tempfile.gettempdir()) / "qcn"]  # in the user's own profile
    temporary = dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp")))
    return [*found, *(folder / f"qcn-{os.getuid()}" for folder in temporary)]


def _make_private(directory: Path) -> str:
    """Create `directory` for its owner alone; return what is wrong with it, or nothing."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        return f"{directory}: {error.strerror or error}"
    if sys.platform == "win32":
        return ""
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is not a directory"
    if found.st_uid != os.getuid():
        return f"{directory} belongs to another user (uid {found.st_uid})"
    if found.st_mode & 0o022:
        return f"{directory} is writable by others: remove it"
    if found.st_mode & 0o077:
        directory.chmod(0o700)
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{directory} cannot be written to"
    return ""

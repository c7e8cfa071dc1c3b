"""The socket that the engine listens on: private to its user, and never taken from a living engine.

A Unix socket is made with mode 0600 (the mask is set before it is bound, so there is no moment at
which others could connect). Beside it lies a lock file, locked for as long as the process lives,
however it dies, and removed when it leaves in order. Who holds the lock may remove a socket file
that was left behind; two engines that start at once cannot both win. Connecting alone would not do:
between finding a dead socket and replacing it, another engine may have come up. It is tried as
well, for a socket of somebody who does not know of the lock.

TCP is bound on loopback only. uvicorn gets the open socket: it would make its own Unix socket with
mode 0666.
"""

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_SOCKET_PATH = 100  # bytes; systems take 103 (macOS) or 107 (Linux)
SHORTEST_TOKEN = 16  # characters


class AlreadyServed(Exception):  # noqa: N818 (an outcome, not an error of the program)
    """Another engine lives on this socket."""


class CannotListen(Exception):  # noqa: N818 (an outcome, not an error of the program)
    """The address or token file cannot be used; the message says why and what to do."""


@contextmanager
def unix_socket(path: Path) -> Generator[socket.socket, None, None]:
    """A listening socket at `path`; afterwards the file is removed if it is still this one's.

    Raises:
        AlreadyServed, CannotListen
    """
    if sys.platform == "win32":
        raise CannotListen("Windows has no usable Unix sockets: give --host, --port, --token-file")
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise CannotListen(
            f"{path} is longer than {LONGEST_SOCKET_PATH} bytes: choose a shorter path"
        )
    with _locked(path.with_name(path.name + ".lock"), path):
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            listener.close()
            raise CannotListen(f"cannot bind {path}: {error.strerror}") from error
        finally:
            os.umask(mask)
        own = _identity(path)
        listener.listen()
        try:
            yield listener
        finally:
            listener.close()
            if own is not None and _identity(path) == own:
                path.unlink(missing_ok=True)


@contextmanager
def _locked(lock: Path, path: Path) -> Generator[None, None, None]:
    file = _open_locked(lock, path)
    try:
        yield
    finally:
        if _identity(lock) == _identity(file):
            lock.unlink(missing_ok=True)  # while it is held
        os.close(file)


def _open_locked(lock: Path, path: Path) -> int:
    """Lock the file that has this name now: one that was removed meanwhile keeps nobody out."""
    import fcntl  # not on Windows

    while True:
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise CannotListen(f"cannot open the lock file {lock}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise AlreadyServed(f"another engine is serving {path}") from None
        if _identity(lock) == _identity(file):
            return file
        os.close(file)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise CannotListen(
                f"{path} exists and is not a socket: remove it, or choose another path"
            )
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
        except OSError as error:
            raise CannotListen(f"cannot tell whether {path} is in use: {error}") from error
        else:
            raise AlreadyServed(f"another program is serving {path}")


def _identity(file: Path | int) -> tuple[int, int] | None:
    """Which file a path names, or a descriptor is of."""
    try:
        status = os.fstat(file) if isinstance(file, int) else file.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def is_loopback(host: str) -> bool:
    """Whether a host name or address (IPv6 with or without brackets) is this machine's loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@contextmanager
def tcp_socket(host: str, port: int) -> Generator[socket.socket, None, None]:
    """A listening socket on loopback; port 0 takes a free one.

    Raises:
        AlreadyServed, CannotListen
    """
    if not is_loopback(host):
        raise CannotListen(f"{host} is not loopback: the engine listens on 127.0.0.1 or ::1 only")
    address = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if sys.platform != "win32":  # there it would let two processes share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            kind = AlreadyServed if error.errno == errno.EADDRINUSE else CannotListen
            raise kind(f"cannot bind {host}:{port}: {error.strerror}") from error
        listener.listen()
        yield listener


def read_token(path: Path) -> str:
    """The bearer token in a file that its owner alone can read.

    Raises:
        CannotListen: the file is missing, open to others, or holds no usable token.
    """
    try:
        with path.open(encoding="ascii") as file:
            status = os.fstat(file.fileno())
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotListen(f"cannot read the token file {path}: {error}") from error
    if sys.platform != "win32" and (status.st_uid != os.getuid() or status.st_mode & 0o077):
        raise CannotListen(
            f"the token file {path} must be yours alone: chown it to yourself and chmod 600"
        )
    if len(token) < SHORTEST_TOKEN or any(character.isspace() for character in token):
        raise CannotListen(
            f"the token in {path} must be one word of at least {SHORTEST_TOKEN} characters"
        )
    return token

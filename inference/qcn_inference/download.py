"""Get a checkpoint from the Hugging Face Hub: `python -m qcn_inference.download OWNER/NAME DST`.

The one thing of ours that connects to another machine, and it does so only when somebody runs it.
Taken are weights in safetensors, or one GGUF file or split set, and the texts beside them; never
pickles or code. `config.json` is looked at before any weights are fetched, and gets its place last:
nothing loads a folder that is not whole.

Everything comes from the commit that was the newest at the first run, and each file gets its name
when its digest is the one that the Hub tells. What was interrupted goes on where it stopped, within
a file too. (`huggingface_hub` 2.4 begins a file anew, be it 50 GB; from it come the endpoint and
the user's token.)

Standard output: one JSON object a line, `{"activity", "done", "total"}` in bytes, and at the end
`{"result"}`, or `{"error"}` with exit code 1.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from filelock import FileLock, Timeout
from huggingface_hub import constants, get_token

from qcn_inference.errors import CheckpointError
from qcn_inference.formats.gguf import SPLIT
from qcn_inference.formats.opening import is_served

MARKER = "download.json"  # of what, of which commit; stays
LOCK = "download.lock"
PART = ".part"
CONFIG = "config.json"
TEXTS = re.compile(r".*\.(json|jinja|md)|merges\.txt|LICENSE.*")
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # OWNER/NAME
PATH = re.compile(r"(\w[\w.+-]*/)*\w[\w.+-]*", re.ASCII)  # nothing that a system reads otherwise

AT_ONCE = 4  # files
CHUNK = 1 << 20
TRIES = 5  # without a byte between them
STEPS = 1000  # in which progress is told
TIMEOUT = httpx.Timeout(30)  # for the next bytes, not for all of them

GOES_ON = "The same command goes on where it stopped"

Report = Callable[[str, int, int], None]  # activity, bytes done, bytes in all


class DownloadError(Exception):
    """A checkpoint that cannot be had; str() says why and what to do."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file in a repository of the Hub."""

    path: str
    size: int
    digest: str  # hexadecimal
    in_git: bool  # the digest is Git's of a blob, by SHA-1; else SHA-256

    @property
    def name(self) -> str:
        """What it is called in the folder, which has no folders inside."""
        return PurePosixPath(self.path).name

    def new_digest(self) -> Any:
        """Return what its bytes are fed to."""
        if not self.in_git:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A checkpoint that is here."""

    commit: str
    bytes: int
    convert: str | None  # what in the folder is to be converted; None: it is served as it is
    was_there: bool  # it had been finished before


class _Progress:
    """Counts bytes for all threads, from those that are there on."""

    def __init__(self, report: Report, files: Sequence[Remote], folder: Path) -> None:
        self._report = report
        self._total = sum(file.size for file in files)
        self._done = sum(
            file.size if _is_there(folder, file) else _size(folder / (file.name + PART))
            for file in files
        )
        self._told = -1
        self._lock = threading.Lock()

    @property
    def missing(self) -> int:
        """Bytes that are to come."""
        return self._total - self._done

    def add(self, count: int) -> None:
        """Count what has come; negative where it is to come again."""
        with self._lock:
            self._done += count
            step = STEPS * self._done // max(1, self._total)
            if step != self._told:
                self._told = step
                self._report("Downloading", self._done, self._total)


class _Hub:
    """One repository there."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self._client = client
        self._name = name
        self._stopped = threading.Event()

    def listing(self, revision: str) -> tuple[str, list[Remote]]:
        """Return the commit of a branch, tag or commit, and its files."""
        url = f"{constants.ENDPOINT}/api/models/{self._name}/revision/{revision}"
        try:
            response = self._client.get(url, params={"blobs": "true"})
            self._refuse(response)
            told = response.json()
            files = [_remote(each) for each in told["siblings"]]
            return str(told["sha"]), [file for file in files if PATH.fullmatch(file.path)]
        except httpx.TransportError as error:
            raise _unreachable(error) from error
        except (ValueError, LookupError, TypeError) as error:
            problem = f"{constants.ENDPOINT} does not answer as the Hugging Face Hub does"
            raise DownloadError(f"{problem}. See to HF_ENDPOINT, or to a proxy between.") from error

    def text(self, commit: str, file: Remote) -> bytes:
        """Return a short file."""
        digest, parts = file.new_digest(), []
        for part in self._bytes(commit, file, 0):
            digest.update(part)
            parts.append(part)
        if digest.hexdigest() != file.digest:
            raise _damaged(file)
        return b"".join(parts)

    def fetch(self, commit: str, file: Remote, folder: Path, progress: _Progress) -> None:
        """Write a file, or what is missing of it, and give it its name."""
        part = folder / (file.name + PART)
        digest, there = file.new_digest(), 0
        try:
            with part.open("a+b") as out:
                out.seek(0)
                while piece := out.read(CHUNK):
                    digest.update(piece)
                    there += len(piece)
                if there > file.size:
                    out.truncate(0)
                    progress.add(-there)
                    digest, there = file.new_digest(), 0
                for piece in self._bytes(commit, file, there):
                    out.write(piece)
                    digest.update(piece)
                    progress.add(len(piece))
            if digest.hexdigest() != file.digest:
                part.unlink()
                raise _damaged(file)
            part.rename(folder / file.name)
        except OSError as error:
            raise DownloadError(
                f"{part}: cannot be written ({error.strerror or error}). Make room and run the "
                "same command again: it goes on where it stopped."
            ) from error

    def stop(self) -> None:
        """Let what other threads fetch end."""
        self._stopped.set()

    def _bytes(self, commit: str, file: Remote, at: int) -> Iterable[bytes]:
        """Give a file's bytes from one on; a connection that breaks is made anew."""
        tries = 0
        while at < file.size:
            try:
                for piece in self._once(commit, file, at):
                    at += len(piece)
                    tries = 0
                    yield piece
                if at < file.size:
                    raise httpx.ReadError("the connection ended early")
            except httpx.TransportError as error:
                tries += 1
                if tries == TRIES:
                    raise _unreachable(error) from error

    def _once(self, commit: str, file: Remote, at: int) -> Iterable[bytes]:
        url = f"{constants.ENDPOINT}/{self._name}/resolve/{commit}/{file.path}"
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-"} if at else {})
        with self._client.stream("GET", url, headers=headers) as response:
            self._refuse(response)
            # A server that knows no ranges sends all from the beginning.
            skipped = 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else at
            for piece in response.iter_bytes(CHUNK):
                if self._stopped.is_set():
                    raise DownloadError(f"stopped. {GOES_ON}.")
                rest = piece[skipped:]
                skipped -= len(piece) - len(rest)
                if rest:
                    yield rest

    def _refuse(self, response: httpx.Response) -> None:
        """Raise DownloadError for an answer that is none."""
        if response.is_success:
            return
        status, page = response.status_code, f"{constants.ENDPOINT}/{self._name}"
        if status in (401, 403):
            reason = "the Hub gives it to nobody unknown, or does not know it"
            remedy = f"See {page}; where it asks, agree, and set HF_TOKEN or run `hf auth login`"
        elif status == 404:
            reason = "the Hub does not know it"
            remedy = f"Look for its name, OWNER/NAME, at {constants.ENDPOINT}/models"
        else:
            reason = f"the Hub answers with {status} {response.reason_phrase}"
            remedy = f"Wait a while. {GOES_ON}"
        raise DownloadError(f"{self._name}: {reason}. {remedy}.")


def _remote(told: dict[str, Any]) -> Remote:
    large = told.get("lfs")
    if large:
        return Remote(told["rfilename"], int(large["size"]), str(large["sha256"]), in_git=False)
    return Remote(told["rfilename"], int(told["size"]), str(told["blobId"]), in_git=True)


def _unreachable(error: httpx.TransportError) -> DownloadError:
    return DownloadError(
        f"{constants.ENDPOINT} cannot be reached ({error or type(error).__name__}). Look at this "
        f"machine's connection and proxy. {GOES_ON}; a folder that was downloaded on another "
        "machine serves as well."
    )


def _damaged(file: Remote) -> DownloadError:
    return DownloadError(
        f"{file.path}: what has come has not the digest that the Hub tells, and was not kept. "
        f"{GOES_ON}."
    )


def download(name: str, folder: Path, report: Report, *, gguf: str | None) -> Downloaded:
    """Get a checkpoint into `folder`, or what is missing of it.

    Args:
        name: OWNER/NAME on the Hub, or OWNER/NAME@REVISION.
        folder: new, empty, or of a download of the same, interrupted or finished.
        report: told how far it is.
        gguf: part of the name of the GGUF file that is wanted.

    Raises:
        DownloadError: there is no such checkpoint or file, the Hub cannot be reached, the disk has
            no room, or the folder holds something else.
        CheckpointError: it is of a model that is not served.
    """
    owner_and_name = name.partition("@")[0]
    if NAME.fullmatch(owner_and_name) is None:
        raise DownloadError(f"{owner_and_name}: is no name of the Hub's. They are OWNER/NAME.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0), _client() as client:
            done = _download(_Hub(client, owner_and_name), name, folder, report, gguf)
    except Timeout as error:
        raise DownloadError(f"{folder}: another download is writing there.") from error
    (folder / LOCK).unlink(missing_ok=True)
    return done


def _client() -> httpx.Client:
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}  # not sent on to other hosts
    return httpx.Client(headers=headers, timeout=TIMEOUT, follow_redirects=True)


def _download(hub: _Hub, name: str, folder: Path, report: Report, gguf: str | None) -> Downloaded:
    owner_and_name, _, revision = name.partition("@")
    commit, files = hub.listing(_begun(folder, name, gguf) or revision or "main")
    chosen = _chosen(owner_and_name, files, gguf)
    config = next((file for file in chosen if file.name == CONFIG), None)
    if chosen[0].name.endswith(".gguf"):
        convert: str | None = chosen[0].name
    elif config is None:
        raise DownloadError(f"{owner_and_name}: has no {CONFIG}. Choose another checkpoint.")
    else:
        text = hub.text(commit, config)
        convert = None if is_served(Path(owner_and_name) / CONFIG, _object(text)) else "."
    rest = [file for file in chosen if file is not config]
    missing = [file for file in rest if not _is_there(folder, file)]
    whole = not missing and (config is None or _is_there(folder, config))
    if not whole:
        (folder / CONFIG).unlink(missing_ok=True)  # until all is there again
        progress = _Progress(report, chosen, folder)
        _require_room(folder, progress.missing)
        marker = {"of": name, "gguf": gguf, "commit": commit}
        _put(folder / MARKER, json.dumps(marker).encode())
        progress.add(0)
        _fetch_all(hub, commit, missing, folder, progress)
        if config is not None:
            _put(folder / CONFIG, text)
            progress.add(len(text))
    return Downloaded(commit, sum(file.size for file in chosen), convert, was_there=whole)


def _begun(folder: Path, name: str, gguf: str | None) -> str | None:
    """Return the commit that a folder holds part of, None if it is empty."""
    marker = folder / MARKER
    try:
        told = json.loads(marker.read_bytes())
        if (told["of"], told["gguf"]) == (name, gguf):
            return str(told["commit"])
        raise DownloadError(f"{folder}: is of {told['of']}. Name another folder.")
    except FileNotFoundError:
        if any(path.name not in (LOCK, MARKER + PART) for path in folder.iterdir()):
            raise DownloadError(f"{folder}: is not empty. Name a new folder.") from None
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DownloadError(f"{marker}: cannot be read ({error}). Name a new folder.") from error


def _chosen(name: str, files: Sequence[Remote], gguf: str | None) -> list[Remote]:
    """Return what is taken of a repository's files; raises DownloadError if there is no model."""
    sets: dict[str, list[Remote]] = {}
    for file in files:
        if file.path.endswith(".gguf"):
            split = SPLIT.fullmatch(file.path)
            sets.setdefault(split["stem"] if split else file.path, []).append(file)
    top = [file for file in files if "/" not in file.path]
    weights = [file for file in top if file.path.endswith(".safetensors")]
    if gguf is None and weights:
        return weights + [file for file in top if TEXTS.fullmatch(file.path)]
    if not sets:
        formats = "GGUF" if gguf is not None else "safetensors or GGUF"
        raise DownloadError(f"{name}: has no weights in {formats}. Choose another checkpoint.")
    found = {stem: each for stem, each in sets.items() if (gguf or "").lower() in stem.lower()}
    if gguf is None or len(found) != 1:
        choice = ", ".join(
            f"{stem} ({sum(file.size for file in each) / 1e9:.1f} GB)"
            for stem, each in sorted((found or sets).items())
        )
        raise DownloadError(f"{name}: say which file, by a part of its name: --gguf. {choice}.")
    (only,) = found.values()
    return sorted(only, key=lambda file: file.path)


def _object(text: bytes) -> dict[str, Any]:
    """Return the object that a JSON text holds; an empty one where it holds none."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _put(path: Path, content: bytes) -> None:
    """Write a short file in one step."""
    part = path.with_name(path.name + PART)
    part.write_bytes(content)
    part.replace(path)


def _is_there(folder: Path, file: Remote) -> bool:
    return _size(folder / file.name) == file.size


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _require_room(folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise DownloadError(
            f"{folder}: {missing / 1e9:.1f} GB are to come, and its disk has {free / 1e9:.1f} GB "
            "left. Make room, or name a folder on another disk."
        )


def _fetch_all(
    hub: _Hub, commit: str, files: Sequence[Remote], folder: Path, progress: _Progress
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        under_way = [threads.submit(hub.fetch, commit, file, folder, progress) for file in files]
        try:
            for each in under_way:
                each.result()
        except BaseException:
            hub.stop()
            threads.shutdown(cancel_futures=True)
            raise


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m qcn_inference.download")
    parser.add_argument("name", help="OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("folder", type=Path, help="where it goes")
    parser.add_argument("--gguf", help="part of the name of the GGUF file that is wanted")
    given = parser.parse_args()

    def report(activity: str, done: int, total: int) -> None:
        _print({"activity": activity, "done": done, "total": total})

    try:
        result = download(given.name, given.folder, report, gguf=given.gguf)
    except (DownloadError, CheckpointError, OSError) as error:
        _print({"error": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    _print({"result": asdict(result)})
    return 0


def _print(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main())

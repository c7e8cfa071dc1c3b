"""Packages as PyPI and npm keep them, fetched by version and digest; nothing of them is run.

`pip download` would build a source archive's metadata, which runs its code: unearth, the finder of
PDM, only fetches. `npm pack` runs no script of a package that it fetches. What was fetched is kept
in `.cache/packages`, apart from the repository.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks import machine

CACHE = machine.ROOT / ".cache" / "packages"
PINS = Path(__file__).resolve().parent / "data" / "elsewhere" / "packages.yml"


class FetchError(Exception):
    """A package cannot be had, or is not the one that was meant; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Package:
    """A source archive; `sha256` of its bytes."""

    registry: str  # "pypi" or "npm"
    name: str
    version: str
    sha256: str


def pinned() -> dict[tuple[str, str], Package]:
    """Return the packages that benchmarks may fetch, by name and version."""
    listed = yaml.safe_load(PINS.read_text(encoding="utf-8"))
    packages = [Package(registry, *one) for registry, every in listed.items() for one in every]
    return {(one.name, one.version): one for one in packages}


def fetched(package: Package) -> Path:
    """Return a package's archive, fetched now where it has not been; raises `FetchError`."""
    folder = CACHE / f"{package.registry}-{package.name.replace('/', '-')}-{package.version}"
    there = list(folder.glob("*"))
    if not there:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            archive = _fetch(package, Path(name))
            folder.mkdir(exist_ok=True)
            there = [Path(shutil.move(archive, folder / archive.name))]
    digest = hashlib.sha256(there[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise FetchError(f"{there[0]} has the digest {digest}, not {package.sha256}: remove it")
    return there[0]


def _fetch(package: Package, folder: Path) -> Path:
    if package.registry == "npm":
        command = ["npm", "pack", "--loglevel=error", f"{package.name}@{package.version}"]
    else:
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "unearth", wanted, "--no-binary", "--download", "."]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True)
    except FileNotFoundError as error:
        raise FetchError(f"{package.name} cannot be fetched: {command[0]} is missing") from error
    except subprocess.CalledProcessError as error:
        why = " ".join((error.stderr or error.stdout).split())[:200]
        raise FetchError(f"{package.name} {package.version} cannot be fetched: {why}") from error
    [archive] = folder.iterdir()
    return archive


def texts(archive: Path) -> Iterator[tuple[str, str]]:
    """Yield name (without the archive's own folder) and text of each file that is UTF-8."""
    for name, content in _members(archive):
        try:
            yield name.partition("/")[2], content.decode("utf-8")
        except UnicodeDecodeError:
            continue


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            yield from ((name, opened.read(name)) for name in opened.namelist())
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            content = packed.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content.read()

"""The text that qcn-nano learns from: permissively licensed packages, named one by one.

Archives come from PyPI and npm through their ordinary clients and are read in place: nothing is
unpacked, installed or executed. The standard library of the running Python joins them. What was
used is written to a manifest; while that file exists, later runs fetch exactly those versions.

Guarantees: a package whose licence is not on the permissive list contributes nothing; every text is
valid UTF-8, appears once, and holds no string that is a control token of the model; a held-out
package shares no file with the training text.
"""

import hashlib
import json
import random
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

from qcn_nano.tokenizer import CONTROL_TOKENS

PACKAGES = Path(__file__).with_name("packages.toml")
MANIFEST = Path(__file__).with_name("manifest.json")

MIN_FILE_BYTES = 200
MAX_FILE_BYTES = 100_000  # longer sources are nearly always tables or bundles
MAX_LINE_CHARS = 400
MAX_MEAN_LINE_CHARS = 80
MAX_PACKAGE_BYTES = 1_500_000  # so that no single style fills the corpus
SHUFFLE_SEED = 20_405

PYTHON_SUFFIXES = frozenset({".py", ".pyi", ".pyx"})
SCRIPT_SUFFIXES = frozenset({".js", ".mjs", ".cjs", ".ts", ".tsx", ".jsx"})
OTHER_SUFFIXES = frozenset(
    {".c", ".h", ".css", ".scss", ".html", ".sh", ".toml", ".yaml", ".yml", ".md", ".svelte"}
)
MAX_OTHER_FILES = 25  # per package: enough to know the syntax

VENDORED = {"vendor", "vendored", "_vendor", "_vendored", "third_party", "thirdparty", "extern"}
INSTALLED = {"externals", "node_modules", "site-packages", "dist-packages", "__pycache__"}
TESTS = {"test", "tests", "testing", "testdata", "test_data", "fixtures"}
BUILT = {"dist", "build", "umd", "cjs", "esm", "esm5", "esm2015", "fesm5", "fesm2015", "bundles"}
TABLES = {"locale", "locales", "migrations", "dist-types", "lib-cov", "_examples"}
DATED = {"lib2to3", "idlelib", "turtledemo"}  # of the standard library
SKIPPED_FOLDERS = VENDORED | INSTALLED | TESTS | BUILT | TABLES | DATED
GENERATED = re.compile(
    r"do not edit|do not modify|@generated|auto-?\s?generated"
    r"|generated (by|from|using|with|automatically)",
    re.IGNORECASE,
)
PERMISSIVE = re.compile(
    r"^(MIT|MIT-CMU|ISC|0BSD|BSD|BSD-[23]-Clause|Apache-2\.0|PSF-2\.0|Python-2\.0|Unlicense)$",
    re.IGNORECASE,
)
# Licence texts that older packages write in their metadata, and the SPDX name each stands for.
LICENCE_NAMES = (
    (r"apache", "Apache-2.0"),
    (r"\bmit\b", "MIT"),
    (r"\bbsd\b|new bsd", "BSD-3-Clause"),
    (r"python software foundation|\bpsf\b", "PSF-2.0"),
    (r"\bisc\b", "ISC"),
)


@dataclass(frozen=True)
class Source:
    """One file of the corpus."""

    package: str
    path: str
    text: str


@dataclass(frozen=True)
class Package:
    """One row of the manifest; `files` and `bytes` count what was kept."""

    ecosystem: str  # "pypi", "npm" or "python"
    name: str
    version: str
    licence: str
    held_out: bool
    files: int
    bytes: int
    archive_sha256: str


def spdx(statement: str) -> str:
    """The SPDX expression for a licence statement; the statement itself where none is known."""
    statement = statement.strip()
    parts = re.split(r"\s+(?:AND|OR)\s+", statement.strip("()"))
    if all(PERMISSIVE.match(part.strip("() ")) for part in parts):
        return statement
    first_line = statement.splitlines()[0] if statement else ""
    if re.search(r"gpl|mozilla|\bmpl\b|affero|eclipse|creative", first_line, re.IGNORECASE):
        return first_line
    for pattern, name in LICENCE_NAMES:
        if re.search(pattern, first_line, re.IGNORECASE):
            return name
    return first_line


def is_permissive(licence: str) -> bool:
    """Whether the whole expression is made of permissive licences (an OR needs only one)."""
    return all(
        any(PERMISSIVE.match(choice.strip("() ")) for choice in re.split(r"\s+OR\s+", term))
        for term in re.split(r"\s+AND\s+", licence)
    )


def fetch(ecosystem: str, name: str, version: str | None, cache: Path) -> Path | None:
    """The cached archive of one package, downloaded if absent; None if it cannot be had."""
    folder = cache / ecosystem / name.replace("/", "__")
    present = sorted(folder.glob("*.whl")) + sorted(folder.glob("*.tgz"))
    if present:
        return present[0]
    folder.mkdir(parents=True, exist_ok=True)
    if ecosystem == "pypi":
        wanted = f"{name}=={version}" if version else name
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        command += ["--disable-pip-version-check", "--dest", str(folder), wanted]
    else:
        wanted = f"{name}@{version}" if version else name
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  skipped {ecosystem}/{name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    return next(iter([*folder.glob("*.whl"), *folder.glob("*.tgz")]), None)


def archive_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each regular file, read without unpacking to disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir() and (
                    info.file_size <= MAX_FILE_BYTES or info.filename.endswith("METADATA")
                ):
                    yield info.filename, wheel.read(info)
    else:
        with tarfile.open(archive, "r:gz") as pack:
            for member in pack:
                content = (
                    pack.extractfile(member)
                    if member.isfile() and member.size <= MAX_FILE_BYTES
                    else None
                )
                if content is not None:
                    yield member.name.partition("/")[2], content.read()


def read_licence(members: dict[str, bytes]) -> tuple[str, str]:
    """Version and licence that a wheel's METADATA or an npm package.json states."""
    if "package.json" in members:
        described = json.loads(members["package.json"])
        return str(described["version"]), spdx(str(described.get("license", "")))
    metadata_path = next(path for path in members if path.endswith(".dist-info/METADATA"))
    metadata = BytesParser().parsebytes(members[metadata_path], headersonly=True)
    classifiers = metadata.get_all("Classifier") or []
    statements = [metadata.get("License-Expression"), metadata.get("License")]
    statements += [
        item.rpartition(" :: ")[2] for item in classifiers if item.startswith("License ::")
    ]
    names = [spdx(str(statement)) for statement in statements if statement]
    return str(metadata["Version"]), next(
        (name for name in names if is_permissive(name)), "; ".join(names)
    )


def is_source(path: str) -> bool:
    """Whether a path names hand-written source of a language that the corpus takes."""
    pure = PurePosixPath(path)
    if SKIPPED_FOLDERS & {part.lower() for part in pure.parts[:-1]} or ".dist-info" in path:
        return False
    if re.search(r"\.min\.|\.bundle\.|\.umd\.|_pb2|[-.]lock\b", pure.name):
        return False
    return pure.suffix in PYTHON_SUFFIXES | SCRIPT_SUFFIXES | OTHER_SUFFIXES


def clean_text(content: bytes) -> str | None:
    """The text of a file with `\\n` line ends; None where it does not look written by hand."""
    if not MIN_FILE_BYTES <= len(content) <= MAX_FILE_BYTES:
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = text.split("\n")
    too_long = any(len(line) > MAX_LINE_CHARS for line in lines)
    if too_long or len(text) / len(lines) > MAX_MEAN_LINE_CHARS:
        return None
    if "\0" in text or GENERATED.search("\n".join(lines[:12])):
        return None
    if sum(map(str.isalpha, text)) < 0.35 * len(text.replace(" ", "")):
        return None  # tables of numbers
    if any(token in text for token in CONTROL_TOKENS):
        return None
    return text


def keep_sources(package: str, members: dict[str, bytes]) -> list[Source]:
    """The usable files of one package, in random order, within the package's share."""
    paths = sorted(path for path in members if is_source(path))
    random.Random(f"{SHUFFLE_SEED} {package}").shuffle(paths)
    kept, size, others = [], 0, 0
    for path in paths:
        text = clean_text(members[path])
        if text is None or size + len(text) > MAX_PACKAGE_BYTES:
            continue
        if PurePosixPath(path).suffix in OTHER_SUFFIXES:
            others += 1
            if others > MAX_OTHER_FILES:
                continue
        kept.append(Source(package, path, text))
        size += len(text)
    return sorted(kept, key=lambda source: source.path)


@dataclass(frozen=True)
class Found:
    """A package as it was found, before its files are chosen."""

    ecosystem: str
    name: str
    version: str
    licence: str
    held_out: bool
    archive_sha256: str
    members: dict[str, bytes]


def standard_library() -> Found:
    """The running Python's own modules."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(root.rglob("*.py"))
    members = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    version = sys.version.split()[0]
    return Found("python", "stdlib", version, "PSF-2.0", False, "", members)


def find_packages(cache: Path) -> Iterator[Found]:
    """The packages of the list to be had under a permissive licence, held-out ones first."""
    wanted = tomllib.loads(PACKAGES.read_text())
    rows = json.loads(MANIFEST.read_text())["packages"] if MANIFEST.exists() else []
    pinned = {(row["ecosystem"], row["name"]): row["version"] for row in rows}
    jobs = [(kind, name, True) for kind in ("pypi", "npm") for name in wanted[f"held_out_{kind}"]]
    jobs += [(kind, name, False) for kind in ("pypi", "npm") for name in wanted[kind]]

    def fetch_job(job: tuple[str, str, bool]) -> Path | None:
        kind, name, _ = job
        return fetch(kind, name, pinned.get((kind, name)), cache)

    with ThreadPoolExecutor(4) as pool:
        archives = list(pool.map(fetch_job, jobs))
    for (kind, name, held_out), archive in zip(jobs, archives, strict=True):
        if archive is None:
            continue
        members = dict(archive_members(archive))
        version, licence = read_licence(members)
        if not is_permissive(licence):
            print(f"  skipped {kind}/{name}: its licence {licence!r} is not on the permissive list")
            continue
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        yield Found(kind, name, version, licence, held_out, digest, members)
    yield standard_library()


def collect(cache: Path) -> tuple[list[Package], list[Source], list[Source]]:
    """Download what is missing and read everything.

    Held-out packages come first: a text that also stands in a training package is dropped there.

    Returns:
        the manifest rows, the training files and the held-out files.
    """
    packages: list[Package] = []
    kept: dict[bool, list[Source]] = {True: [], False: []}
    seen: set[bytes] = set()
    for found in find_packages(cache):
        new = [source for source in keep_sources(found.name, found.members) if is_new(source, seen)]
        row = {key: value for key, value in vars(found).items() if key != "members"}
        size = sum(len(source.text.encode()) for source in new)
        packages.append(Package(**row, files=len(new), bytes=size))
        kept[found.held_out] += new
    return packages, kept[False], kept[True]


def is_new(source: Source, seen: set[bytes]) -> bool:
    """Whether no text seen before is the same but for white space; marks it as seen."""
    fingerprint = hashlib.sha256("".join(source.text.split()).encode()).digest()
    if fingerprint in seen:
        return False
    seen.add(fingerprint)
    return True


def write_manifest(packages: list[Package], path: Path) -> None:
    """Write the manifest, totals first."""
    rows = [asdict(package) for package in packages if package.files]
    totals = {
        "training_bytes": sum(row["bytes"] for row in rows if not row["held_out"]),
        "held_out_bytes": sum(row["bytes"] for row in rows if row["held_out"]),
        "packages": len(rows),
    }
    path.write_text(json.dumps({"totals": totals, "packages": rows}, indent=1) + "\n")


def save_sources(sources: list[Source], path: Path) -> None:
    """One JSON object per line."""
    with path.open("w") as lines:
        for source in sources:
            lines.write(json.dumps(asdict(source)) + "\n")


def load_sources(path: Path) -> list[Source]:
    """What `save_sources` wrote."""
    with path.open() as lines:
        return [Source(**json.loads(line)) for line in lines]

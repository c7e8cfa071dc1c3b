"""llama.cpp, set up in an ignored folder by `python -m benchmarks peers`.

The engine is node-llama-cpp's prebuilt CPU build from npm; the converter comes from the sdist of
llama-cpp-python, of which nothing is built. transformers is in the test environment already.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.checkpoints import CACHE, ROOT

NODE_LLAMA_CPP = "3.22.1"
LLAMA_CPP_PYTHON = "0.3.36"
PEERS = ROOT / ".cache" / "peers"
NODE_MODULES = PEERS / "node" / "node_modules"
LLAMA_CPP = PEERS / "llama.cpp"
_CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py")
_BUILDS = {
    ("linux", "x86_64"): "linux-x64",
    ("linux", "aarch64"): "linux-arm64",
    ("darwin", "arm64"): "mac-arm64-metal",
    ("darwin", "x86_64"): "mac-x64",
    ("win32", "AMD64"): "win-x64",
}


class PeerError(Exception):
    """A peer cannot be measured; the message says why."""


def set_up() -> None:
    """Install llama.cpp and its converter; raises `PeerError`."""
    build = _BUILDS.get((sys.platform, platform.machine()))
    npm = shutil.which("npm")
    if build is None or npm is None or shutil.which("node") is None:
        reason = (
            "node and npm are needed" if build else "node-llama-cpp has no build for this machine"
        )
        raise PeerError(f"llama.cpp cannot be set up: {reason}")
    node = NODE_MODULES.parent
    node.mkdir(parents=True, exist_ok=True)
    # Its optional dependencies are one build per platform, 700 MB: only ours is taken.
    packages = [f"node-llama-cpp@{NODE_LLAMA_CPP}", f"@node-llama-cpp/{build}@{NODE_LLAMA_CPP}"]
    flags = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
    _run([npm, "install", *flags, *packages], node)
    _fetch_converter()


def _fetch_converter() -> None:
    if LLAMA_CPP.exists():
        return
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
    ]
    _run([*pip, f"llama-cpp-python=={LLAMA_CPP_PYTHON}", "-d", str(PEERS)], PEERS)
    archive = PEERS / f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz"
    prefix = f"llama_cpp_python-{LLAMA_CPP_PYTHON}/vendor/llama.cpp/"
    part = LLAMA_CPP.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(prefix)
            if name != member.name and name.split("/")[0] in _CONVERTER_PARTS:
                member.name = name
                tar.extract(member, part, filter="data")
    part.rename(LLAMA_CPP)
    archive.unlink()


def check_llama() -> None:
    """Raise `PeerError` unless llama.cpp was set up."""
    if not (NODE_MODULES / "node-llama-cpp").exists() or not LLAMA_CPP.exists():
        raise PeerError("llama.cpp is not set up: run `python -m benchmarks peers`")


def gguf(folder: Path, outtype: str) -> Path:
    """The checkpoint in `folder` as GGUF, converted once; raises `PeerError`."""
    check_llama()
    identity = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        identity.update(path.read_bytes())
    converted = CACHE / f"{folder.name}-{identity.hexdigest()[:12]}-{outtype}.gguf"
    if not converted.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for outdated in CACHE.glob(f"{folder.name}-*-{outtype}.gguf"):
            outdated.unlink()
        part = converted.with_suffix(".part")
        script = str(Path(__file__).parent / "workers" / "convert.py")
        _run([sys.executable, script, str(LLAMA_CPP), str(folder), outtype, str(part)], ROOT)
        part.rename(converted)
    return converted


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except OSError as error:
        raise PeerError(f"{command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-3:]
        raise PeerError(f"{' '.join(command[:4])} failed: {' '.join(last)}") from error

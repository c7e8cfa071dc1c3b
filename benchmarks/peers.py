"""llama.cpp, set up in an ignored folder by `python -m benchmarks peers`.

For `inference` it is node-llama-cpp's prebuilt CPU build from npm. That has no server: the one for
`edit` is built from the source that llama-cpp-python's sdist carries, and the converter comes from
there too. transformers is in the test environment already.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.checkpoints import CACHE, ROOT
from benchmarks.machine import cpu_flags

NODE_LLAMA_CPP = "3.22.1"
LLAMA_CPP_PYTHON = "0.3.36"
PEERS = ROOT / ".cache" / "peers"
NODE_MODULES = PEERS / "node" / "node_modules"
LLAMA_CPP = PEERS / "llama.cpp"  # the converter
LLAMA_SERVER = PEERS / "llama-server"
_CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py")
_BUILDS = {
    ("linux", "x86_64"): "linux-x64",
    ("linux", "aarch64"): "linux-arm64",
    ("darwin", "arm64"): "mac-arm64-metal",
    ("darwin", "x86_64"): "mac-x64",
    ("win32", "AMD64"): "win-x64",
}
_PROCESSOR_OPTIONS = {
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_BF16": "avx512_bf16",
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
    if not (LLAMA_CPP.exists() and LLAMA_SERVER.exists()):
        with tempfile.TemporaryDirectory(dir=PEERS) as folder:
            source = _fetch_source(Path(folder))
            if not LLAMA_CPP.exists():
                _keep_converter(source, Path(folder))
            if not LLAMA_SERVER.exists():
                _build_server(source, Path(folder))


def _fetch_source(folder: Path) -> Path:
    """Return llama.cpp's source, unpacked in `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    package = ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={LLAMA_CPP_PYTHON}"]
    _run([*pip, *package, "-d", str(folder)], folder)
    name = f"llama_cpp_python-{LLAMA_CPP_PYTHON}"
    with tarfile.open(folder / f"{name}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / name / "vendor" / "llama.cpp"


def _keep_converter(source: Path, folder: Path) -> None:
    part = folder / "converter"
    part.mkdir()
    for name in _CONVERTER_PARTS:
        (source / name).rename(part / name)
    part.rename(LLAMA_CPP)


def _build_server(source: Path, folder: Path) -> None:
    """Build `llama-server` for this machine's processor: some minutes."""
    if shutil.which("cmake") is None:
        raise PeerError("llama.cpp's server cannot be built: cmake and a C++ compiler are needed")
    print("building llama.cpp's server: some minutes", file=sys.stderr)
    options = ["BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_OPENSSL=OFF"]
    options += ["LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF", *_processor_options()]
    build = folder / "build"
    made = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{option}" for option in options)]
    _run(["cmake", "-S", str(source), "-B", str(build), *made], folder)
    jobs = str(os.cpu_count() or 1)
    _run(["cmake", "--build", str(build), "--target", "llama-server", "-j", jobs], folder)
    (build / "bin" / "llama-server").rename(LLAMA_SERVER)


def _processor_options() -> list[str]:
    """What cmake is told of an x86-64 processor; for others it finds out itself.

    Named one by one, because gcc 12 builds AMX code that crashes when it is left to find out.
    """
    if platform.machine() not in {"x86_64", "AMD64"}:
        return []
    flags = cpu_flags()
    options = ["GGML_NATIVE=OFF"]
    for option, flag in _PROCESSOR_OPTIONS.items():
        options += [f"{option}={'ON' if flag in flags else 'OFF'}"]
    return options


def check_llama() -> None:
    """Raise `PeerError` unless llama.cpp was set up."""
    if not (NODE_MODULES / "node-llama-cpp").exists() or not LLAMA_CPP.exists():
        raise PeerError("llama.cpp is not set up: run `python -m benchmarks peers`")


def check_server() -> None:
    """Raise `PeerError` unless llama.cpp's server was built."""
    check_llama()
    if not LLAMA_SERVER.exists():
        raise PeerError("llama.cpp's server is not built: run `python -m benchmarks peers`")


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

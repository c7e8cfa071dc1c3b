"""The wheel: the same bytes from every clone, all that is needed in it, and installed as users do.

It is built and installed with packages from the index that pip is set up for: `make test-install`.
"""

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from lsp_wire import Wire, initialize, notification

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "qcn_lsp": ROOT,
    "qcn_inference": ROOT / "inference",
    "qcn_kernels": ROOT / "kernels",
    "qcn_indexer": ROOT / "indexer",
}
# Nothing of the tests' own environment.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PATH")
} | {"PATH": "/usr/bin:/bin"}


def run(*command: object, **environment: str) -> str:
    """Run a command in a clean environment and return what it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=CLEAN | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(clone: Path, mask: int) -> Path:
    """Return a wheel built in a fresh clone by somebody with this umask."""
    before = os.umask(mask)
    try:
        run("git", "clone", "-q", "--no-hardlinks", ROOT, clone)
        # What is not committed yet is to be built as well.
        changed = run("git", "-C", ROOT, "ls-files", "-z", "-mo", "--exclude-standard", ".")
        for name in filter(None, changed.split("\0")):
            if (ROOT / name).is_file():
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                (clone / name).write_bytes((ROOT / name).read_bytes())
        pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps")
        run(*pip, "-w", clone / "dist", clone)
    finally:
        os.umask(before)
    (wheel,) = (clone / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("first") / "clone", 0o022)


def test_another_clone_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    again = built(tmp_path / "elsewhere", 0o077)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_it_holds_the_packages_files_and_no_others(wheel: Path) -> None:
    listing = run("git", "-C", ROOT, "ls-files", "-z", "-co", "--exclude-standard")
    files = [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    wanted = {
        file.relative_to(root).as_posix()
        for name, root in PACKAGES.items()
        for file in files
        if file.is_relative_to(root / name)
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if ".dist-info/licenses/" in name]
    assert held == wanted
    assert [Path(name).name for name in licences] == ["LICENSE"]
    # What is no Python and is missed only when it is used.
    assert {Path(name).suffix for name in held} >= {".yml", ".html", ".safetensors", ".typed"}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which pipx and uv are."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", "pipx", "uv")
    return folder / "bin"


@pytest.mark.parametrize("tool", ["pipx", "uv"])
def test_installed_into_an_empty_environment_it_serves_and_says_what_is_missing(
    tool: str, tools: Path, wheel: Path, tmp_path: Path
) -> None:
    installed, runtime = tmp_path / "bin", tmp_path / "run"
    runtime.mkdir(mode=0o700)
    home = {
        "HOME": str(tmp_path),
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(installed),
        "UV_TOOL_DIR": str(tmp_path / "uv"),
        "UV_TOOL_BIN_DIR": str(installed),
        "XDG_RUNTIME_DIR": str(runtime),
    }
    install = {
        "pipx": ("pipx", "install", "--python", sys.executable),
        "uv": ("uv", "tool", "install", "--python", sys.executable),
    }[tool]
    run(tools / install[0], *install[1:], wheel, **home)

    version = metadata.version("qcn-lsp")
    assert run(installed / "qcn-lsp", "--version").strip() == f"qcn-lsp {version}"
    assert serves(installed / "qcn-lsp") == version

    done = subprocess.run(
        [installed / "qcn", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=CLEAN | home,
    )
    assert done.returncode == 1
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["language server"]["level"] == "ok"
    assert found["engine packages"]["level"] == "fail"
    command = {
        "pipx": "pipx install --force",
        "uv": "uv tool install --force --torch-backend auto",  # not CUDA's where it is of no use
    }[tool]
    assert found["engine packages"]["remedy"].startswith(f"{command} '{wheel}[engine]'; or ")


def serves(program: Path) -> str:
    """Hold a session with an installed server; return the version it says it has."""
    server = Wire((str(program),), PYTHONPATH="")
    try:
        server.send(initialize(1), notification("initialized", {}))
        version = server.answer(1)["result"]["serverInfo"]["version"]
        assert server.ask(2, "shutdown") is None
        server.send(notification("exit"))
        assert server.exit_code() == 0
    finally:
        server.close()
    return str(version)

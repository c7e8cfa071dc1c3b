"""What the proving ground's tests share: where they can run, and ground to run on."""

import importlib.util
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
from deadlines import DEADLINE_SECONDS

from qcn_lsp.proving.ground import ProvingGround

REQUIRED = os.environ.get("QCN_REQUIRE_SANDBOX") == "1"
MISSING = sys.platform != "linux" or shutil.which("bwrap") is None
# Where it is required its absence fails the tests; they do not pass by being skipped.
needs_bubblewrap = pytest.mark.skipif(
    MISSING and not REQUIRED, reason="bubblewrap is not installed (Debian: bubblewrap)"
)
PACKAGES = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "py", "pygments", "coverage")


async def proving_ground() -> ProvingGround:
    """Return bubblewrap's proving ground, which must hold here."""
    ground = await ProvingGround.find("bubblewrap")
    assert ground.holds, ground.reason
    return ground


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below `root`, and return it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def copy_packages(folder: Path) -> Path:
    """Fill a folder with this Python's pytest and coverage, to be installed from, and return it."""
    folder.chmod(0o755)  # the sandbox's user may be another one
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        if source.name == "__init__.py":
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source.parent, folder / name, ignore=without)
        else:
            shutil.copy(source, folder)
    return folder


def install(root: Path, packages: Path, *without: str) -> None:
    """Make a virtual environment in `root` of this Python, with those packages."""
    home = Path(sys.base_prefix, "bin")
    alone = "include-system-site-packages = false"
    environment = write(root, {".venv/pyvenv.cfg": f"home = {home}\n{alone}\n"}) / ".venv"
    (environment / "bin").mkdir()
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (environment / "bin" / "python").symlink_to(home / python)
    place = environment / "lib" / python / "site-packages"
    ignored = shutil.ignore_patterns(*without)
    shutil.copytree(packages, place, ignore=ignored, copy_function=os.link)


def unlike_any_other() -> str:
    """Return a number of seconds that nobody else on the machine sleeps for."""
    return f"600.{secrets.randbelow(10**9):09}"


def sleeping(seconds: str) -> bool:
    """Return whether a process `sleep SECONDS` runs anywhere on the machine."""
    commands = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    return ["sleep", seconds] in commands


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

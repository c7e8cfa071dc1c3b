"""What `make` says where the Python it finds does not do. The rest of it is what CI runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or sys.platform == "win32", reason="needs make"
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "build").mkdir()
    return tmp_path


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def make(clone: Path, python: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", "-C", clone, ".venv/bin/python", f"PYTHON={python}"],
        capture_output=True,
        text=True,
    )


def test_a_python_that_is_too_old_is_named_and_nothing_is_made(clone: Path) -> None:
    older = "import sys; sys.version_info = (3, 10, 4); sys.version = '3.10.4 (main)'"
    old = program(
        clone / "python3", f'exec {sys.executable} -c "{older}; exec(sys.argv.pop(1))" "$2" "$3"'
    )
    done = make(clone, old)
    assert done.returncode != 0
    assert "is Python 3.10.4; 3.11 or newer is needed. Name one: make" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_torch_that_the_new_environment_would_not_see_is_not_reckoned_with(clone: Path) -> None:
    """As where a virtual environment with torch is active."""
    (clone / "torch.py").write_text("__version__ = '2.13.0'\n")
    for inside, expected in ((True, False), (False, True)):
        prefix = (
            f"import sys; sys.path.insert(0, '{clone}'); sys.prefix = '{clone if inside else ''}'"
        )
        same = "" if inside else "; sys.base_prefix = ''"
        script = f'exec {sys.executable} -c "{prefix}{same}; exec(sys.argv.pop(1))" "$2" "$3"'
        python = program(clone / "python3", script)
        done = subprocess.run(
            ["make", "-n", "-C", clone, ".venv/bin/python", f"PYTHON={python}"],
            capture_output=True,
            text=True,
        )
        assert ("--system-site-packages" in done.stdout) is expected, done


@pytest.mark.parametrize("uv", [None, "exit 0", "exit 2"], ids=["no uv", "uv", "uv fails"])
def test_uv_gets_the_torch_that_the_machine_needs_and_else_pip_the_indexes(
    clone: Path, uv: str | None
) -> None:
    shutil.copy(MAKEFILE.with_name("constraints.txt"), clone)
    (clone / ".venv" / "bin").mkdir(parents=True)
    said = clone / "said"
    has_no_torch = f'[ "$2" = "import torch" ] && exit 1; [ "$1" = -c ] || echo "$@" >> {said}'
    program(clone / ".venv" / "bin" / "python", has_no_torch)
    if uv:
        program(clone / "uv", f'echo uv "$@" >> {said}; {uv}')
    done = subprocess.run(
        ["make", "-C", clone, ".venv/.torch"],
        capture_output=True,
        text=True,
        env={"PATH": f"{clone}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    by_uv = "uv pip install -q --python .venv/bin/python --torch-backend auto"
    by_pip = "-m pip install -q"
    expected = {None: [by_pip], "exit 0": [by_uv], "exit 2": [by_uv, by_pip]}[uv]
    rest = " -c constraints.txt torch==2.13.0"
    assert said.read_text().splitlines() == [command + rest for command in expected]


def test_an_environment_that_came_out_by_half_is_taken_away(clone: Path) -> None:
    """As Debian's Python leaves one, without pip, where python3-venv is not installed."""
    half = "mkdir -p .venv/bin && touch .venv/bin/python && exit 1"
    python = program(clone / "python3", f'[ "$1" = -c ] && exec {sys.executable} "$@"\n{half}')
    assert make(clone, python).returncode != 0
    assert not (clone / ".venv").exists()

"""The script for a GPU that is lent for minutes: what it starts, and what failures cost."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from qcn_inference.bench import __main__ as bench

from benchmarks import gpu_lookup
from benchmarks.machine import ROOT

PYTHON = """#!/bin/sh
printf '%s ' "$@"
echo complaint >&2
case $* in *gpu_kernels*) exit 3 ;; esac
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that says what it was asked for, and fails where kernels are measured."""
    path = tmp_path / "python"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return path


def session(out: Path, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "benchmarks" / "gpu_session.sh", out, *parts],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_part_that_fails_costs_no_other(python: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "out", ("bench", "kernels", "waits", "card", "lookup", "tune")
    done = session(out, *parts, PYTHON=str(python), MODEL="qcn-nano-bf16")
    assert done.returncode == 0, done.stderr
    log = (out / "log").read_text()
    for part in parts:
        assert f"{part} ended with {3 if part == 'kernels' else 0}, " in log
        assert (out / f"{part}.out").read_text().startswith("-m ")
    assert log.count("complaint") >= len(parts)
    assert len(list(out.iterdir())) == len(parts) + 1


def test_what_it_starts_is_what_the_programs_take(python: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "out", ("bench", "waits", "card", "lookup")
    session(out, *parts, PYTHON=str(python), MODEL="qwen3-coder-next-fp8")
    asked = {part: shlex.split((out / f"{part}.out").read_text())[2:] for part in parts}
    assert bench._parse(asked["bench"]).lengths == [8192, 131_072, 260_000]
    assert bench._parse(asked["waits"]).waits == 131_072
    assert bench._parse(asked["card"]).device_memory_mib == 24_000
    for part in ("bench", "waits"):
        assert bench._parse(asked[part]).synthetic == "qwen3-coder-next-fp8"
    assert gpu_lookup._parse(asked["lookup"]).what == "measure"


def test_a_small_card_gets_the_model_that_fits_it(python: Path, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 81559\n")
    smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    session(tmp_path / "out", "bench", PYTHON=str(python), PATH=path)
    assert "qwen3-coder-next-int4" in (tmp_path / "out" / "bench.out").read_text()


def test_when_the_time_is_over_what_is_left_is_named(python: Path, tmp_path: Path) -> None:
    session(tmp_path / "out", "bench", "tune", PYTHON=str(python), SECONDS_IN_ALL="0")
    log = (tmp_path / "out" / "log").read_text()
    assert "== bench: no time is left" in log
    assert "== tune: no time is left" in log
    assert not (tmp_path / "out" / "bench.out").exists()


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = session(tmp_path / "out", "speed", PYTHON="false")
    assert done.returncode == 1
    assert "there is no part speed" in done.stderr

"""`qcn doctor` looks at this machine and says what to do."""

import json
import sys
from pathlib import Path

import pytest
from command_support import qcn
from link_support import StandInModel

from qcn_lsp.commands.doctor import check_folder

# A `sitecustomize` under which Python finds no torch, as where it is not installed.
WITHOUT_TORCH = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == "torch" else find(name, path, target)
PathFinder.find_spec = find_spec
"""


def findings(done_stdout: str) -> dict[str, tuple[str, str, str]]:
    return {
        found["check"]: (found["level"], found["detail"], found["remedy"])
        for found in json.loads(done_stdout)["findings"]
    }


def test_a_sound_machine_passes(runtime: Path) -> None:
    done = qcn("doctor", "--json")
    found = findings(done.stdout)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)
    assert {level for level, _, _ in found.values()} <= {"ok", "warn"}
    assert sys.executable in found["Python"][1]
    assert found["runtime directory"][1] == f"{runtime}/qcn, yours alone"
    assert found["model qcn-nano"][0] == "ok"
    assert "not running" in found["engine"][1]
    assert all(remedy for level, _, remedy in found.values() if level != "ok")


def test_without_torch_it_says_how_to_get_it_and_fails(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = qcn("doctor")
    assert done.returncode == 1
    assert "missing: torch" in done.stdout
    assert 'pip install ".[engine]", in the folder of qcn-lsp\'s source' in done.stdout


def test_an_engine_in_trouble_is_a_failure(standin: StandInModel) -> None:
    standin.behave(state="errored", error="config.json is missing.")
    qcn("engine", "start", "--model", standin.folder)
    done = qcn("doctor", "--json")
    assert done.returncode == 1
    level, detail, remedy = findings(done.stdout)["engine"]
    assert (level, detail) == ("fail", "config.json is missing.")
    assert "qcn.models.completion" in remedy


def test_a_model_folder_is_checked_without_loading_it(tmp_path: Path) -> None:
    missing = check_folder(tmp_path)
    assert missing.level == "fail"
    assert "config.json" in missing.detail
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    other = check_folder(tmp_path)
    assert other.level == "fail"
    assert "llama" in other.detail

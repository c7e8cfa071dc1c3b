"""`qcn models`: run as a user does, on the embedded model."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_support import qcn
from deadlines import DEADLINE_SECONDS
from fake_hub import COMMIT, hub
from qcn_inference.checkpoint import load_model

from benchmarks.checkpoints import NANO


def test_a_copy_with_int4_experts_can_be_served(tmp_path: Path) -> None:
    done = qcn("models", "convert", NANO, "small", "--experts", "int4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "small can be served: qcn engine start --model small" in done.stdout
    assert "KL divergence from the original, in nats: 0.00" in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0] == "Embeddings and head (0.00 of 0.04 GB)"
    assert lines[8] == "Layer 8 of 8 (0.03 of 0.04 GB)"
    assert lines[9].startswith("Comparing with the original (0.00 of ")
    size = sum(path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors"))
    assert size < (NANO / "model.safetensors").stat().st_size * 0.55
    assert load_model(tmp_path / "small").config == load_model(NANO).config
    again = qcn("models", "convert", NANO, "small", "--experts", "int4", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    told = f"Nothing to do: a finished copy of {NANO} is in small."
    assert again.stdout.splitlines() == [told, *done.stdout.splitlines()]
    assert again.stderr == ""


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("broken.gguf", "broken.gguf: is no GGUF file"),
        (str(NANO), "nothing to convert. Say --experts int4"),
    ],
    ids=["missing", "damaged", "served as it is"],
)
def test_what_cannot_be_converted_is_told_in_one_sentence(
    origin: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    done = qcn("models", "convert", origin, "copy", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("qcn: ")
    assert told in done.stderr
    assert not (tmp_path / "copy").exists()


CHECKPOINT = {path.name: path.read_bytes() for path in NANO.iterdir() if path.is_file()}


def test_a_checkpoint_that_was_got_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(CHECKPOINT) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        done = qcn("models", "get", served.name, "mine", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"Qwen/Tiny is in mine (0.04 GB, commit {COMMIT[:12]}).",
            "mine can be served: qcn engine start --model mine",
        ]
        assert done.stderr.startswith("Downloading (0.00 of 0.04 GB)")
        again = qcn("models", "get", served.name, "mine", cwd=tmp_path)
    assert again.stdout.startswith("Qwen/Tiny was in mine")
    assert load_model(tmp_path / "mine").config == load_model(NANO).config


def test_a_download_that_is_interrupted_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(CHECKPOINT) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        served.hangs_until = ended = threading.Event()
        command = [sys.executable, "-m", "qcn_lsp.cli", "models", "get", served.name, "mine"]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("Downloading")
            os.kill(process.pid, signal.SIGINT)
            _, told = process.communicate(timeout=DEADLINE_SECONDS)
        ended.set()
        assert process.returncode == 130
        assert "interrupted. The same command goes on where it stopped." in told
        served.hangs_until = None
        assert qcn("models", "get", served.name, "mine", cwd=tmp_path).returncode == 0


def test_what_cannot_be_got_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(CHECKPOINT) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        done = qcn("models", "get", "Qwen/Nothing", "mine", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("qcn: Qwen/Nothing: the Hub does not know it.")
    assert len(done.stderr.splitlines()) == 1

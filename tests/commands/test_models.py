"""`qcn models convert`: run as a user does, on the embedded model."""

from pathlib import Path

import pytest
from command_support import qcn
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

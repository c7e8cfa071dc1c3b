"""`edit` runs on a toy shape: our engine over HTTP, and what is missing named with its remedy."""

from typing import Any

import pytest
from qcn_inference.grid import TYPED_BLOCK

from benchmarks import edit
from benchmarks.checkpoints import random_checkpoint
from benchmarks.contenders import WorkerError
from benchmarks.edit import OURS
from benchmarks.shapes import TOY

LENGTH = 4_096
TAIL = 400  # tokens of a completion's own text, at the most


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    absent = tmp_path_factory.mktemp("no-peers")

    def no_worker(*_: object) -> None:
        raise WorkerError("left out of the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(absent))
        patch.setattr("benchmarks.peers.LLAMA_SERVER", absent / "llama-server")
        patch.setattr("benchmarks.peers.NODE_MODULES", absent)
        patch.setattr("benchmarks.edit.Worker", no_worker)
        patch.setattr("benchmarks.edit.longer_nano", lambda length: random_checkpoint(TOY))
        return edit.run(1, quick=True, lengths=(LENGTH,))


def test_a_change_costs_itself_and_the_completion(result: dict[str, Any]) -> None:
    """Our engine counts the tokens; `edit` itself checks that its peers are given the same."""
    (context,) = result["contexts"]
    computed = {
        name: case["measured"][OURS]["tokens_computed"]["median"]
        for name, case in context["cases"].items()
    }
    assert 0.9 * LENGTH < context["tokens"] <= LENGTH
    assert LENGTH < context["from_nothing"][OURS]["tokens"] < LENGTH + TAIL
    # The toy reads the prefix first: the suffix, of 512 tokens at the most, is read again.
    assert 0 < computed["typing in a long file"] <= 2 * TYPED_BLOCK + 512
    assert computed["nothing"] < computed["a file deleted"] < TAIL
    assert computed["one line"] < computed["512 tokens inserted"] < 2 * 512 + TAIL
    assert computed["back on the branch"] < computed["a branch switched"] < LENGTH / 2


def test_peers_that_are_missing_are_named(result: dict[str, Any]) -> None:
    assert "python -m benchmarks peers" in result["not_measured"]["llama.cpp"]
    assert result["not_measured"]["transformers"] == "left out of the test"

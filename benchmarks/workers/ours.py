"""`python -m benchmarks.workers.ours FOLDER DTYPE THREADS`: our runtime."""

import sys
from pathlib import Path

import torch
from qcn_inference.checkpoint import load_model

from benchmarks.workers.loop import serve


class Ours:
    """Our runtime as `Runtime`; it has no variants."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._model = load_model(folder, dtype=dtype)
        self._state = self._model.new_state()

    def prefill(self, ids: list[int], variant: str) -> int:
        """Read a prompt from an empty state."""
        self._state = self._model.new_state()
        return int(self._model.prefill(ids, self._state)[-1].argmax())

    def decode(self, token: int) -> int:
        """Read one token more."""
        return int(self._model.decode(token, self._state).argmax())


def main() -> None:
    folder, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    serve(Ours(Path(folder), getattr(torch, dtype)))


if __name__ == "__main__":
    main()

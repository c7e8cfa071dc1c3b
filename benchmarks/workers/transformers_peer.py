"""`python -m benchmarks.workers.transformers_peer FOLDER DTYPE THREADS`: transformers.

A variant is an `experts_implementation`. The forward pass is called directly: `generate` would
only add to its time.
"""

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.workers.loop import serve


class Transformers:
    """transformers' model and cache as `Runtime`."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._variant = ""
        self._cache: Any = None

    def prefill(self, ids: list[int], variant: str) -> int:
        """Read a prompt from an empty cache."""
        self._variant = variant
        # batched_mm copies an expert's weights for every token: for decoding only.
        self._model.set_experts_implementation("grouped_mm" if variant == "batched_mm" else variant)
        self._cache = None
        return self._forward(ids)

    def decode(self, token: int) -> int:
        """Read one token more."""
        if self._model.config._experts_implementation != self._variant:
            self._model.set_experts_implementation(self._variant)
        return self._forward([token])

    @torch.inference_mode()
    def _forward(self, ids: list[int]) -> int:
        out = self._model(
            torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = out.past_key_values
        return int(out.logits[0, -1].argmax())


def main() -> None:
    folder, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    serve(Transformers(folder, getattr(torch, dtype)))


if __name__ == "__main__":
    main()

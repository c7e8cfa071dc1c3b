"""The same checkpoint by transformers, in a process of its own: DIR DEVICE TOKENS ...

With flash-linear-attention installed and a GPU, transformers uses its kernels. Prints one JSON
object: whose kernels ran, and for each length the seconds of prefill and of one decoded token.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_flash_linear_attention_available

from qcn_inference.bench.measure import DECODED, WARM_UP


def main(folder: str, device: str, lengths: list[int]) -> None:
    """Measure and print."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", experts_implementation="grouped_mm"
    )
    model = model.to(device).eval()
    model(torch.zeros(1, WARM_UP, dtype=torch.int64, device=device))
    prompts = [_at(model, tokens, device) for tokens in lengths]
    kernels = "flash-linear-attention" if is_flash_linear_attention_available() else "torch"
    print(json.dumps({"linear_attention": kernels, "prompts": prompts}))


@torch.inference_mode()
def _at(model: Any, tokens: int, device: str) -> dict[str, float]:
    generator = torch.Generator().manual_seed(tokens)
    last = model.config.vocab_size * 9 // 10
    ids = torch.randint(last, (1, tokens), generator=generator).to(device)
    began = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    token = out.logits.argmax().view(1, 1)
    int(token)  # waits for a GPU
    prefill, seconds = time.perf_counter() - began, []
    for _ in range(DECODED):
        began = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits.argmax().view(1, 1)
        int(token)
        seconds.append(time.perf_counter() - began)
    decode = float(torch.tensor(seconds, dtype=torch.float64).median())
    return {"tokens": tokens, "prefill_seconds": prefill, "decode_seconds": decode}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(tokens) for tokens in sys.argv[3:]])

"""The kernels that bound a prefill, one by one, in the shapes of Qwen3-Coder-Next on this GPU.

    python -m benchmarks.gpu_kernels

Times are medians of many runs, operations counted. flash-linear-attention's delta rule runs beside
ours where it is installed. What the GPU multiplies at best is measured in the same run: square
products of random matrices by torch. Standard output: a JSON object a line, one for each kernel,
and `{"result"}` at the end.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from qcn_inference.bench.conditions import conditions
from qcn_kernels.fp8 import BLOCK, Fp8Matrices
from qcn_kernels.gated_delta_rule import chunk_grid, gated_delta_rule_on_grid
from qcn_kernels.moe import Matrices, experts, route
from qcn_kernels.paged_attention import PagedKv, paged_attention_prefill
from torch import Tensor

RUNS = 15
PAGE = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the model, and how much each kernel is given."""

    side: int = 8192
    delta_tokens: int = 32_768
    expert_tokens: int = 16_384
    attention_tokens: int = 65_536
    hidden: int = 2048
    experts: int = 512
    top_k: int = 10
    intermediate: int = 512
    key_heads: int = 16
    value_heads: int = 32
    delta_dim: int = 128
    heads: int = 16
    kv_heads: int = 2
    head_dim: int = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """One kernel."""

    name: str
    seconds: float
    operations: int  # of matrix products, those of attention that a causal mask leaves


def measured(device: torch.device, sizes: Sizes) -> Iterator[Measured]:
    """Run every kernel on a device, and the products that say what it can do."""
    torch.manual_seed(0)
    runs = [_product, _delta_rule, _experts, _attention]
    if device.type == "cuda":
        runs += [_fp8_product] if torch.cuda.get_device_capability(device) >= (8, 9) else []
        runs += [_delta_rule_of_fla] if find_spec("fla") is not None else []
    for run in runs:
        yield run(device, sizes)


def _product(device: torch.device, sizes: Sizes) -> Measured:
    a, b = torch.randn(2, sizes.side, sizes.side, device=device).to(_dtype(device))
    return Measured("a square product", _seconds(device, lambda: a @ b), 2 * sizes.side**3)


def _fp8_product(device: torch.device, sizes: Sizes) -> Measured:
    a, b = torch.randn(2, sizes.side, sizes.side, device=device).to(torch.float8_e4m3fn)
    scale = torch.ones((), device=device)
    seconds = _seconds(
        device,
        lambda: torch._scaled_mm(a, b.T, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16),
    )
    return Measured("a square product, FP8", seconds, 2 * sizes.side**3)


def _delta_inputs(device: torch.device, sizes: Sizes) -> dict[str, Tensor]:
    tokens, dim = sizes.delta_tokens, sizes.delta_dim
    dtype = _dtype(device)
    q, k = torch.randn(2, tokens, sizes.key_heads, dim, device=device).to(dtype)
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    v = torch.randn(tokens, sizes.value_heads, dim, device=device).to(dtype)
    g = -torch.rand(tokens, sizes.value_heads, device=device)
    return {"q": q, "k": k, "v": v, "g": g, "beta": torch.rand_like(g)}


def _delta_rule(device: torch.device, sizes: Sizes) -> Measured:
    given, dim = _delta_inputs(device, sizes), sizes.delta_dim
    state = torch.zeros(sizes.value_heads, dim, dim, device=device)
    grid = chunk_grid([sizes.delta_tokens], device=device)
    checkpoints = state.new_empty(0, *state.shape)
    seconds = _seconds(
        device,
        lambda: gated_delta_rule_on_grid(
            **given, state=state.zero_(), grid=grid, checkpoints=checkpoints
        ),
    )
    return Measured("gated delta rule", seconds, _delta_operations(sizes))


def _delta_rule_of_fla(device: torch.device, sizes: Sizes) -> Measured:
    """The same by flash-linear-attention."""
    from fla.ops.gated_delta_rule import (  # type: ignore[import-not-found]
        chunk_gated_delta_rule,
    )

    batched = {name: x.unsqueeze(0) for name, x in _delta_inputs(device, sizes).items()}
    seconds = _seconds(device, lambda: chunk_gated_delta_rule(**batched, output_final_state=True))
    return Measured("gated delta rule, flash-linear-attention", seconds, _delta_operations(sizes))


def _delta_operations(sizes: Sizes) -> int:
    """Chunks of 64: two products inside a chunk, three with the state, two of the errors."""
    chunk, dim = 64, sizes.delta_dim
    token = 2 * (2 * chunk * dim + 3 * dim * dim + 2 * chunk * dim)
    return sizes.delta_tokens * sizes.value_heads * token


def _experts(device: torch.device, sizes: Sizes) -> Measured:
    """Gate, up and down of every pair, in FP8 on a GPU, with what stands between."""
    tokens, hidden, size = sizes.expert_tokens, sizes.hidden, sizes.intermediate
    gate_up = _stack(device, sizes.experts, 2 * size, hidden)
    down = _stack(device, sizes.experts, hidden, size)
    x = torch.randn(tokens, hidden, device=device).to(_dtype(device))
    logits = torch.randn(tokens, sizes.experts, device=device)
    weights, chosen = route(logits, top_k=sizes.top_k, normalise=True)
    seconds = _seconds(
        device,
        lambda: experts(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down),
    )
    return Measured("experts", seconds, 6 * tokens * sizes.top_k * hidden * size)


def _attention(device: torch.device, sizes: Sizes) -> Measured:
    """A whole prompt at once."""
    tokens, dtype = sizes.attention_tokens, _dtype(device)
    pages = -(-tokens // PAGE)
    shape = (pages, sizes.kv_heads, PAGE, sizes.head_dim)
    keys, values = torch.randn(2, *shape, device=device).to(dtype)
    q = torch.randn(tokens, sizes.heads, sizes.head_dim, device=device).to(dtype)
    table = torch.arange(pages, dtype=torch.int32, device=device)
    length = torch.tensor([tokens], dtype=torch.int32, device=device)
    kv = PagedKv(keys, values, table, length, max_length=tokens)
    seconds = _seconds(device, lambda: paged_attention_prefill(q, kv))
    return Measured(
        "attention", seconds, 4 * sizes.heads * sizes.head_dim * tokens * (tokens + 1) // 2
    )


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _stack(device: torch.device, *shape: int) -> Matrices:
    if device.type != "cuda":
        return torch.randn(shape) / 50
    values = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
    for matrix in values:  # one at a time: no second copy of them all
        matrix.copy_(torch.randn(matrix.shape, device=device))
    blocks = (*shape[:-2], shape[-2] // BLOCK, shape[-1] // BLOCK)
    return Fp8Matrices(values, torch.full(blocks, 0.02, device=device))


def _seconds(device: torch.device, run: Callable[[], Any]) -> float:
    """The median of some runs, behind one that compiles."""
    run()
    times: list[float] = []
    for _ in range(RUNS):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    return median(times)


def main() -> int:
    """Measure on the first GPU; 1 where there is none."""
    if not torch.cuda.is_available():
        print("There is no CUDA device to measure.", file=sys.stderr)
        return 1
    device, kernels = torch.device("cuda", 0), []
    for one in measured(device, Sizes()):
        rate = one.operations / one.seconds
        kernels.append(asdict(one) | {"operations_per_second": rate})
        print(json.dumps({"kernel": kernels[-1]}), flush=True)
    result = {"sizes": asdict(Sizes()), "kernels": kernels} | conditions(device)
    print(json.dumps({"result": result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The table of kernels, in sizes for the CPU: every operation runs as it does on a GPU."""

import torch

from benchmarks.gpu_kernels import Sizes, measured


def test_every_kernel_is_run_and_its_operations_counted() -> None:
    sizes = Sizes(
        delta_tokens=70,
        expert_tokens=5,
        attention_tokens=65,
        hidden=16,
        experts=4,
        top_k=2,
        intermediate=8,
        key_heads=1,
        value_heads=2,
        delta_dim=8,
        heads=2,
        kv_heads=1,
        head_dim=8,
    )
    found = {one.name: one for one in measured(torch.device("cpu"), sizes)}
    assert found["experts"].operations == 5 * 2 * 3 * 2 * 16 * 8  # pairs, products, 2 a weight
    pairs = sum(range(1, 66))  # of a token and one that it sees
    assert found["attention"].operations == 2 * pairs * 2 * 2 * 8  # heads, products, 2 a dimension
    assert found["gated delta rule"].operations > 0
    assert all(one.seconds > 0 for one in found.values())

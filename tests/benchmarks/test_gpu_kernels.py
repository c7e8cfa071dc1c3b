"""The table of kernels, in sizes for the CPU: every operation runs as it does on a GPU."""

import torch

from benchmarks.gpu_kernels import Sizes, _fp8_product, measured


def test_every_kernel_is_run_and_its_operations_counted() -> None:
    sizes = Sizes(
        side=32,
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
    assert found["a square product"].operations == 2 * 32**3
    assert all(one.seconds > 0 for one in found.values())


def test_what_fp8_reaches_is_measured_on_any_device_that_multiplies_it() -> None:
    found = _fp8_product(torch.device("cpu"), Sizes(side=64))
    assert found.operations == 2 * 64**3
    assert found.seconds > 0

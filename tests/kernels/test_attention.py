"""Causal grouped-query attention against the same written out."""

from collections.abc import Callable

import pytest
import torch
from qcn_kernels.attention import attention, attention_step
from qcn_kernels.attention.cpu import by_runs, fused
from qcn_kernels.attention.reference import attention as reference
from torch import Tensor

# Which of the two a processor uses; both run on each.
ways = pytest.mark.parametrize("way", [fused, by_runs])
Attention = Callable[..., Tensor]


@ways
@pytest.mark.parametrize(
    ("tokens", "past"), [(1, 0), (7, 0), (129, 0), (1, 63), (130, 75), (3, 300)]
)
@pytest.mark.parametrize(("kv_heads", "shared", "head_dim"), [(1, 1, 60), (2, 3, 16), (3, 2, 63)])
def test_a_block_equals_the_reference(
    way: Attention, tokens: int, past: int, kv_heads: int, shared: int, head_dim: int
) -> None:
    q = torch.randn(kv_heads * shared, tokens, head_dim)
    # A cache's entries behind the last token are uninitialised memory.
    k, v = torch.full((2, kv_heads, past + tokens + 9, head_dim), torch.nan)
    k, v = k[:, : past + tokens].normal_(), v[:, : past + tokens].normal_()
    want = reference(q=q, k=k, v=v)
    torch.testing.assert_close(way(q=q, k=k, v=v), want, atol=1e-5, rtol=1e-5)
    step = attention_step(q=q[:, -1], k=k, v=v)
    torch.testing.assert_close(step, want[:, -1], atol=1e-5, rtol=1e-5)


@ways
def test_a_long_past_is_taken_in_shorter_runs(
    way: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds on scores and masks in memory change how the work is cut, not the result."""
    q, k, v = torch.randn(2, 50, 8), torch.randn(1, 90, 8), torch.randn(1, 90, 8)
    monkeypatch.setattr("qcn_kernels.attention.cpu.MAX_SCORES", 90 * 7)
    monkeypatch.setattr("qcn_kernels.attention.cpu.MOST_MASKED", 90 * 7)
    want = reference(q=q, k=k, v=v)
    torch.testing.assert_close(way(q=q, k=k, v=v), want, atol=1e-5, rtol=1e-5)


@ways
def test_bf16_rounds_and_no_more(way: Attention) -> None:
    """Three roundings to bf16 (scores, probabilities, output) of unit roundoff 2^-8."""
    q, k, v = (torch.randn(2, 65, 32).bfloat16() for _ in range(3))
    want = reference(q=q.float(), k=k.float(), v=v.float())
    for got in (way(q=q, k=k, v=v)[:, -1], attention_step(q=q[:, -1], k=k, v=v)):
        torch.testing.assert_close(got.float(), want[:, -1], atol=3 * 2**-8, rtol=0)


def test_the_way_is_chosen_by_number_type_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for way in (fused, by_runs):
        name = way.__name__
        monkeypatch.setattr(
            f"qcn_kernels.attention.cpu.{name}", lambda *, q, k, v, name=name: used.append(name)
        )
    wide, narrow = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8).bfloat16()
    for amx in (True, False):
        monkeypatch.setattr("qcn_kernels.attention.cpu.HAS_AMX", amx)
        for x in (wide, narrow):
            attention(q=x, k=x, v=x)
    assert used == ["fused", "fused", "fused", "by_runs"]

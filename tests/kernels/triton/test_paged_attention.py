"""Attention over pages in Triton, for prefill and for decode, against its reference in fp64."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from interpreted import Caller, as_on
from kernel_tolerances import assert_agrees
from qcn_kernels.paged_attention import E4M3_ROWS, PagedKv, reference, row_elements
from qcn_kernels.paged_attention import triton as module
from qcn_kernels.paged_attention.pages import scale_at
from qcn_kernels.paged_attention.triton import (
    DECODE_SPLIT,
    append,
    paged_attention_decode,
    paged_attention_prefill,
)
from torch import Tensor

PAGE = 64
Launcher = Callable[..., Tensor]


class Cache:
    """Pages of one sequence scattered among others' pages, which hold NaN."""

    def __init__(self, length: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        pages = -(-length // PAGE)
        shape = (2 * pages + 1, kv_heads, PAGE, row_elements(head_dim, dtype))
        self.table = torch.randperm(shape[0])[:pages].int()
        # Bytes of ones are no number, as e4m3 and as fp32.
        nothing = 255 if dtype == E4M3_ROWS else torch.nan
        self.k, self.v = (torch.full(shape, nothing, dtype=dtype) for _ in range(2))
        for at, page in enumerate(self.table.tolist()):
            used = min(PAGE, length - at * PAGE)
            for tensor in (self.k, self.v):
                x = torch.randn(kv_heads, used, head_dim)
                if dtype == E4M3_ROWS:  # each row with a scale of its own
                    x = reference.rows_of(x * (0.5 + torch.rand(kv_heads, used, 1)))
                tensor[page, :, :used] = x.to(dtype)

    @property
    def of_queries(self) -> torch.dtype:
        return torch.bfloat16 if self.k.dtype == E4M3_ROWS else self.k.dtype

    def expected(self, q: Tensor, length: int) -> Tensor:
        kv = self.kv(length)
        if self.k.dtype == E4M3_ROWS:
            return reference.paged_attention(q.double(), kv)
        exact = dataclasses.replace(kv, k_pages=self.k.double(), v_pages=self.v.double())
        return reference.paged_attention(q.double(), exact)

    def kv(self, length: int) -> PagedKv:
        """A view of the first `length` tokens, of which the host knows a bound only."""
        tokens = torch.tensor([length], dtype=torch.int32)
        return PagedKv(self.k, self.v, self.table, tokens, max_length=len(self.table) * PAGE)

    def run(self, call: Caller, launcher: Launcher, q: Tensor, length: int) -> Tensor:
        out: Tensor = call(launcher, q=q, kv=self.kv(length))
        return out


@pytest.mark.parametrize(
    ("tokens", "length", "heads", "kv_heads", "head_dim", "dtype"),
    [
        (1, 1, 2, 1, 16, torch.float32),
        (1, 600, 16, 2, 256, torch.bfloat16),
        (3, 258, 6, 2, 60, torch.float32),
        (5, 300, 3, 1, 40, torch.float32),
        (1, 600, 16, 2, 256, E4M3_ROWS),
        (5, 300, 6, 2, 60, E4M3_ROWS),
    ],
)
def test_decode_and_verification(
    call: Caller,
    tokens: int,
    length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    cache = Cache(length, kv_heads, head_dim, dtype)
    q = torch.randn(tokens, heads, head_dim).to(cache.of_queries)
    got = cache.run(call, paged_attention_decode, q, length)
    assert_agrees("attention", got, cache.expected(q, length), hardware=call.hardware)


@pytest.mark.parametrize(
    ("tokens", "length", "heads", "kv_heads", "head_dim", "dtype"),
    [
        (75, 75, 6, 2, 60, torch.float32),
        (33, 200, 16, 2, 256, torch.bfloat16),
        (1, 130, 2, 2, 16, torch.float32),
        (33, 200, 16, 2, 256, E4M3_ROWS),
        (75, 75, 6, 2, 60, E4M3_ROWS),
    ],
)
def test_prefill(
    call: Caller,
    tokens: int,
    length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    cache = Cache(length, kv_heads, head_dim, dtype)
    q = torch.randn(tokens, heads + 1, head_dim).to(cache.of_queries)[:, 1:]  # tokens lie apart
    got = cache.run(call, paged_attention_prefill, q, length)
    assert_agrees("attention", got, cache.expected(q, length), hardware=call.hardware)


@pytest.mark.parametrize("dtype", [torch.float32, E4M3_ROWS])
@pytest.mark.parametrize("launcher", [paged_attention_prefill, paged_attention_decode])
def test_where_pages_are_read_by_address(
    call: Caller, launcher: Launcher, dtype: torch.dtype
) -> None:
    """As on a chip that has no descriptors of them, and no e4m3: its bytes become numbers there."""
    cache = Cache(300, 2, 60, dtype)
    q = torch.randn(20, 6, 60)
    got = cache.run(call, partial(as_on, 80, launcher), q, 300)
    assert_agrees("attention", got, cache.expected(q, 300), hardware=call.hardware)


def appended(k_pages: Tensor, v_pages: Tensor, *, kv: PagedKv, k: Tensor, v: Tensor) -> None:
    """What is written in place must be an argument."""
    append(dataclasses.replace(kv, k_pages=k_pages, v_pages=v_pages), k=k, v=v)


@pytest.mark.parametrize("head_dim", [60, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, E4M3_ROWS])
def test_keys_and_values_stand_in_their_pages(
    call: Caller, dtype: torch.dtype, head_dim: int
) -> None:
    """Those of 70 tokens behind 90, and nothing else is touched; of e4m3 every bit is told."""
    mine, exact = (Cache(160, 2, head_dim, dtype) for _ in range(2))
    exact.table, exact.k, exact.v = mine.table, mine.k.clone(), mine.v.clone()
    k, v = (torch.randn(70, 3, head_dim)[:, 1:] * 10 ** torch.randn(70, 2, 1) for _ in range(2))
    k[3, 1] = 0
    tokens = {"k": k.to(exact.of_queries), "v": v.to(exact.of_queries)}
    reference.append(exact.kv(160), **tokens)
    call(appended, k_pages=mine.k, v_pages=mine.v, kv=mine.kv(160), **tokens)
    for got, want in ((mine.k, exact.k), (mine.v, exact.v)):
        if dtype == E4M3_ROWS:  # what pads a row and its scale nobody reads
            got, want = (
                torch.cat((x[..., :head_dim], x[..., scale_at(head_dim) :][..., :4]), dim=-1)
                for x in (got, want)
            )
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def in_little_memory(**arguments: Any) -> Tensor:
    """Prefill whose splits are a page, and whose parts have room for one tile of tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PREFILL_SPLIT", PAGE)
        patch.setattr(module, "PARTS_BYTES", 1)
        return paged_attention_prefill(**arguments)


def test_tokens_whose_parts_have_no_room_together(call: Caller) -> None:
    cache = Cache(150, 1, 32, torch.float32)
    q = torch.randn(100, 8, 32)
    got = cache.run(call, in_little_memory, q, 150)
    assert_agrees("attention", got, cache.expected(q, 150), hardware=call.hardware)
    alone = cache.run(call, in_little_memory, q[37:], 150)
    assert torch.equal(alone, got[37:])


def test_scores_of_any_size_are_softened_without_overflow(call: Caller) -> None:
    """One key's score is thousands above all others': its value is the output."""
    cache = Cache(300, 1, 16, torch.float32)
    at = (int(cache.table[1]), 0, 30)
    cache.k[at] *= 10
    q = (1000 * cache.k[at]).repeat(1, 2, 1)
    got = cache.run(call, paged_attention_decode, q, 300)
    want = cache.v[at].double().expand(1, 2, 16)
    assert_agrees("attention", got, want, hardware=call.hardware)


@pytest.mark.parametrize("dtype", [torch.float32, E4M3_ROWS])
@pytest.mark.parametrize("launcher", [paged_attention_prefill, paged_attention_decode])
def test_a_token_does_not_depend_on_what_shares_its_launch(
    call: Caller, launcher: Launcher, dtype: torch.dtype
) -> None:
    """40 tokens at once, and the last 7 of them by themselves, at another place of their tile."""
    length = DECODE_SPLIT + 30
    cache = Cache(length, 1, 32, dtype)
    q = torch.randn(40, 3, 32)
    together = cache.run(call, launcher, q, length)
    alone = cache.run(call, launcher, q[33:], length)
    assert torch.equal(alone, together[33:])


@pytest.mark.gpu
def test_a_long_cache_gives_the_same_whatever_the_block(on_gpu: Caller) -> None:
    """The real shape at 40,000 tokens: 2,000 queries at once, and the last 300 alone."""
    cache = Cache(40_000, 2, 256, torch.bfloat16)
    q = torch.randn(2000, 16, 256).bfloat16()
    together = cache.run(on_gpu, paged_attention_prefill, q, 40_000)
    alone = cache.run(on_gpu, paged_attention_prefill, q[1700:], 40_000)
    assert torch.equal(alone, together[1700:])
    assert_agrees("attention", together[-2:], cache.expected(q[-2:], 40_000), hardware=True)
    step = cache.run(on_gpu, paged_attention_decode, q[-1:], 40_000)
    assert_agrees("attention", step, cache.expected(q[-1:], 40_000), hardware=True)

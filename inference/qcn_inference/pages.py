"""Keys and values on a GPU: pages of 64 tokens in one pool, which sequences share.

The pool is one tensor for keys and one for values, made once: their addresses stay, so that a CUDA
graph may hold them. A page is held by the tables of sequences and by what is resident
(`device_memory.py`); when nobody holds it, it is free again.

Pages are append-only. A sequence writes behind its own length alone, in a last page that is no
other sequence's last page: who takes over a page that is not full copies it first. So a page that
is held for its first tokens may be written on behind them.

Everything runs on one stream: a page that is freed and taken again is written after it was read.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from qcn_kernels.paged_attention import E4M3_ROWS, row_elements
from torch import Tensor

from qcn_inference.config import KvCacheDtype, ModelConfig
from qcn_inference.kept import KvBlock

PAGE = 64
"""Tokens."""


def dtype_of_pages(kept: KvCacheDtype, model: torch.dtype) -> torch.dtype:
    """The dtype of pages, as `page_bytes` takes it, for a model of this one."""
    return E4M3_ROWS if kept == "fp8" else model


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of a page's keys and values in all full-attention layers."""
    layers = config.layer_types.count("full_attention")
    row = row_elements(config.head_dim, dtype) * dtype.itemsize
    return 2 * layers * config.num_key_value_heads * PAGE * row


def pages_of(start: int, stop: int) -> range:
    """The numbers, along a sequence, of the pages that hold its tokens from start to stop."""
    return range(start // PAGE, -(-stop // PAGE))


class PagePool:
    """The pages of one model on one device, and who holds them."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, pages: int
    ) -> None:
        layers = config.layer_types.count("full_attention")
        row = row_elements(config.head_dim, dtype)
        shape = (layers, pages, config.num_key_value_heads, PAGE, row)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.device = device
        self.size = pages
        self.page_bytes = page_bytes(config, dtype)
        self._holders = [0] * pages
        self._free = list(range(pages))
        # Tables may end on any thread; what they held is taken back on the model's.
        self._let_go: deque[list[int]] = deque()

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        self._take_back()
        return len(self._free)

    def take(self) -> int:
        """Hold a page that nobody held. IndexError: there is none."""
        self._take_back()
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def hold(self, pages: Sequence[int]) -> None:
        """Hold pages that somebody holds."""
        for page in pages:
            assert self._holders[page]
            self._holders[page] += 1

    def is_shared(self, page: int) -> bool:
        """Whether a page has more than one holder."""
        self._take_back()
        return self._holders[page] > 1

    def release(self, pages: Sequence[int]) -> None:
        """Hold pages no more."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def release_with(self, owner: object, pages: list[int]) -> None:
        """Hold the pages that this list then has no more when `owner` is gone."""
        weakref.finalize(owner, self._let_go.append, pages).atexit = False

    def _take_back(self) -> None:
        while self._let_go:
            self.release(self._let_go.popleft())

    def copy(self, source: int, to: int) -> None:
        """Copy a page in all layers."""
        self.keys[:, to] = self.keys[:, source]
        self.values[:, to] = self.values[:, source]

    def gather(self, pages: Sequence[int], start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copy tokens start to stop, counted from the first page's beginning, out of pages.

        Returns:
            Keys and values [layers, kv_heads, T, head_dim], or rows of `E4M3_ROWS`.
        """
        numbers = torch.tensor(list(pages), device=self.device, dtype=torch.int64)

        def gathered(pool: Tensor) -> Tensor:
            side_by_side = pool.index_select(1, numbers).transpose(1, 2).flatten(2, 3)
            return side_by_side[:, :, start:stop].contiguous()

        return gathered(self.keys), gathered(self.values)

    def scatter(self, places: "Places", block: KvBlock) -> None:
        """Copy a block's tokens, which lie in the host's memory, into pages."""
        for pool, parts in ((self.keys, block.keys), (self.values, block.values)):
            there = [part.to(self.device, non_blocking=True) for part in parts]
            pool[:, places.page, :, places.offset] = torch.stack(there).permute(2, 0, 1, 3)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Raise `AssertionError` unless these are all that is held."""
        self._take_back()
        holders = [0] * self.size
        for pages in held:
            for page in pages:
                holders[page] += 1
        if holders != self._holders:
            raise AssertionError("the pool's books do not agree with what is held")
        if sorted(self._free) != [page for page, count in enumerate(holders) if not count]:
            raise AssertionError("the list of free pages is not that of pages nobody holds")


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens that follow each other lie."""

    page: Tensor  # [T] int64
    offset: Tensor  # [T] int64, in the page

    @classmethod
    def of(cls, table: Tensor, positions: Tensor) -> "Places":
        """Find tokens by their positions [T] in a sequence with this table."""
        return cls(table[positions // PAGE].to(torch.int64), positions % PAGE)

"""A torch with CUDA graphs, none of whose captures CUDA can end, on a machine without a GPU.

As torch 2.13 keeps its books (`CUDAGraph.cpp`, `CUDACachingAllocator.cpp`): a pool is under way and
has a user from the beginning of a capture on. Only when CUDA has ended it the pool is so no more,
and only of a graph that ended the user goes with the graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

Pool = tuple[int, int]


class SimulatedCaptures:
    """Takes the place of what `decoder.py` calls of torch, until the patch is undone."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pools: dict[Pool, int] = {}  # how many use each
        self._under_way: set[Pool] = set()
        patch.setattr(torch.cuda, "CUDAGraph", object)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "current_stream", _Stream)
        patch.setattr(torch.cuda, "stream", nullcontext)
        patch.setattr(torch.cuda, "graph", self._graph)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(self._under_way))
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        patch.setattr(torch.cuda, "empty_cache", self._empty_cache)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self._end)
        patch.setattr(torch._C, "_cuda_releasePool", self._release)

    @contextmanager
    def _graph(self, graph: object, *, pool: Pool, capture_error_mode: str) -> Iterator[None]:
        del graph, capture_error_mode
        self._under_way.add(pool)
        self.pools[pool] = self.pools.get(pool, 0) + 1
        try:
            yield
        finally:
            raise torch.AcceleratorError(
                "CUDA error: operation failed due to a previous error during capture"
            )

    def _empty_cache(self) -> None:
        if self._under_way:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def _end(self, _: object, pool: Pool) -> None:
        if pool not in self._under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self._under_way.remove(pool)

    def _release(self, _: object, pool: Pool) -> None:
        self.pools[pool] -= 1
        if not self.pools[pool]:
            del self.pools[pool]


class _Stream:
    """All there is runs at once."""

    def wait_stream(self, other: Any) -> None:
        """Wait for nothing."""

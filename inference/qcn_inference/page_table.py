"""The keys and values of one sequence on a GPU: which pages of the pool are its own, in order."""

from typing import TYPE_CHECKING

import torch
from qcn_kernels.paged_attention import PagedKv, append, paged_attention_prefill
from torch import Tensor

from qcn_inference.kept import KvBlock
from qcn_inference.pages import PAGE, pages_of

if TYPE_CHECKING:
    from qcn_inference.device_memory import DeviceMemory
    from qcn_inference.state import State


class PageTable:
    """A sequence's pages; they are let go when it is."""

    def __init__(self, memory: "DeviceMemory") -> None:
        self.pages: list[int] = []
        self._memory = memory
        self._pool = memory.pool
        self._kv: tuple[Tensor, Tensor, int] | None = None  # table, length, bound
        self._pool.release_with(self, self.pages)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages, shared or not."""
        return len(self.pages) * self._pool.page_bytes

    def grow(self, tokens: int) -> None:
        """Have pages for so many tokens. DeviceMemoryError: there is no room."""
        while len(self._pool.keys) and len(self.pages) * PAGE < tokens:
            self.pages.append(self._memory.take_page())

    def share(self, at: int, page: int) -> None:
        """Take a page that others hold into this place of the sequence."""
        self._pool.hold([page])
        if at < len(self.pages):
            self._pool.release([self.pages[at]])
            self.pages[at] = page
        else:
            self.pages.append(page)

    def own(self, at: int) -> None:
        """Copy a page that others hold too, to write in it."""
        shared = self.pages[at]
        if self._pool.is_shared(shared):
            page = self._memory.take_page()
            self._pool.copy(shared, page)
            self._pool.release([shared])
            self.pages[at] = page

    def fork(self, owner: "State") -> "PageTable":
        """As `KeysAndValues.fork`: all pages are shared but the last, if it is not full."""
        fork = PageTable(self._memory)
        if self.pages:
            for at in pages_of(0, owner.position):
                fork.share(at, self.pages[at])
            if owner.position % PAGE:
                fork.own(len(fork.pages) - 1)
        return fork

    def with_room(self, owner: "State", tokens: int) -> "PageTable":
        """As `KeysAndValues.with_room`; brings the table to the device, once for all layers."""
        stop = owner.position + tokens
        self.grow(stop)
        if self.pages:
            device = self._pool.device
            table = torch.tensor(self.pages, dtype=torch.int32, device=device)
            length = torch.tensor([stop], dtype=torch.int32, device=device)
            self._kv = (table, length, stop)
        return self

    def cut(self, start: int, stop: int) -> KvBlock:
        """As `KeysAndValues.cut`."""
        return self._memory.keep_kv(self.pages, start, stop)

    def attend(self, slot: int, position: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `KeysAndValues.attend`."""
        del position  # `with_room` knows it
        assert self._kv is not None
        keys, values = self._pool.keys[slot], self._pool.values[slot]
        table, length, bound = self._kv
        kv = PagedKv(keys, values, table, length, max_length=bound)
        append(kv, k=k, v=v)
        return paged_attention_prefill(q, kv)

    def attend_step(self, slot: int, position: int, *, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `KeysAndValues.attend_step`; the decoder's own way is quicker."""
        out = self.attend(slot, position, q=q[None], k=k[None], v=v[None])
        return out[0]

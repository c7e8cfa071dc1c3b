"""The pasts of sequences on a GPU, and a cache there of what the host keeps of them.

Purpose. What `state_cache.py` keeps, keys and values of blocks and checkpoints, lies in the host's
memory, and on disk where that is wanted. It is copied there as soon as it has been read, beside the
work of the GPU. The same parts stay on the GPU as long as there is room: they are *resident*, and a
text that is resumed from them copies a page and a checkpoint where it would fetch gigabytes.

Guarantees
- The host's copy is whole: what is resident may be dropped at any moment, in no time, and nothing
  is lost with it, not even with the GPU.
- A resident part is that of one block or checkpoint and goes when the host's cache drops it.
- Bounded: pages are those of the pool, checkpoints stay within their bytes. What was used least
  recently goes first. Sequences that are being read come before what is resident.

Rejected: keeping a part either here or there. It halves the host's bytes, but each eviction then
copies in the middle of a request, and the disk's writer has to ask the GPU.

Belongs to the model's thread. Parts may be dropped on any: they are noted, and let go on this one.
"""

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from qcn_kernels.paged_attention import row_elements
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.grid import BLOCK
from qcn_inference.host_copies import HostCopies
from qcn_inference.kept import DeltaNetState, KvBlock, RecurrentPart
from qcn_inference.page_table import PageTable
from qcn_inference.pages import PAGE, PagePool, Places, page_bytes, pages_of
from qcn_inference.state import State

_T = TypeVar("_T")

READY_BLOCKS = 8
"""Of keys and values, and one checkpoint, for which the host's memory is ready at the beginning."""

LEAST_TOKENS = 1024
"""Of keys and values: with room for fewer no prompt of use can be read."""
CHECKPOINTS_SHARE = 1 / 4
"""Of the bytes for states, as they lie in the cache: 77 MB behind every 4,096 tokens of 98 MB."""


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """What the states of all sequences may take on a device."""

    pages: int
    checkpoint_bytes: int

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype, nbytes: int) -> "DeviceBudget":
        """Share out bytes; no more pages than two whole contexts fill.

        Raises:
            DeviceMemoryError: they are too few.
        """
        checkpoints = int(nbytes * CHECKPOINTS_SHARE)
        page = page_bytes(config, dtype)
        pages = 2 * -(-config.max_position_embeddings // PAGE)
        if page:
            pages = min(pages, (nbytes - checkpoints) // page)
        least = min(LEAST_TOKENS, config.max_position_embeddings)
        if pages * PAGE < least:
            needed = int(-(-least // PAGE) * page / (1 - CHECKPOINTS_SHARE))
            raise DeviceMemoryError(
                f"{max(0, nbytes) >> 20} MiB of GPU memory are left for what the model reads; it "
                f"takes {(needed >> 20) + 1} at least. End other programs on the GPU, take a "
                'smaller model, or set "qcn.engine.device" to "cpu".'
            )
        return cls(pages, checkpoints)


class DeviceMemory:
    """The GPU's memory for the states of one model."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        budget: DeviceBudget,
    ) -> None:
        self.device = device
        self.budget = budget
        self.pool = PagePool(config, dtype, device, budget.pages)
        self._copies = HostCopies(device)
        self._copies.expect(*_first_copies(config, dtype))
        # By the identity of the host's part, least recently used first.
        self._pages: OrderedDict[int, list[int]] = OrderedDict()
        self._checkpoints: OrderedDict[int, RecurrentPart] = OrderedDict()
        self._dropped: deque[int] = deque()

    @property
    def resident_bytes(self) -> int:
        """Bytes of resident parts, pages that several share counted once."""
        pages = {page for pages in self._pages.values() for page in pages}
        return len(pages) * self.pool.page_bytes + self._checkpoint_bytes()

    # As `Memory`.

    def new_kv(self, owner: State) -> PageTable:
        """As `Memory.new_kv`."""
        del owner
        return PageTable(self)

    def kv_of(self, blocks: Sequence[KvBlock], owner: State) -> PageTable:
        """As `Memory.kv_of`: resident pages are shared, others filled from the host."""
        del owner
        self._copies.before_use()
        table, start = PageTable(self), 0
        for block in blocks:
            if not block.keys:  # a model without full attention
                continue
            stop = start + block.keys[0].shape[1]
            resident = self._resident(self._pages, block)
            if resident is None:
                self._fetch(block, table, start, stop)
            else:
                for at, page in zip(pages_of(start, stop), resident, strict=True):
                    table.share(at, page)
            start = stop
        if start % PAGE:  # the sequence writes on in its last page
            table.own(len(table.pages) - 1)
        return table

    def keep_kv(self, pages: Sequence[int], start: int, stop: int) -> KvBlock:
        """Copy tokens of a sequence with these pages to the host; they are resident as well."""
        held = [pages[at] for at in pages_of(start, stop)] if pages else []
        first = start // PAGE * PAGE
        keys, values = self.pool.gather(held, start - first, stop - first)
        block = KvBlock(self._copies.start(keys), self._copies.start(values))
        self._stay(block, held)
        return block

    def keep(self, part: RecurrentPart) -> tuple[DeltaNetState, ...]:
        """As `Memory.keep`; the part is resident as well."""
        convolution = self._copies.start(part.convolution)
        recurrent = self._copies.start(part.recurrent)
        kept = tuple(map(DeltaNetState, convolution, recurrent))
        if kept:
            self._note(kept[0])
            self._checkpoints[id(kept[0])] = part
            while self._checkpoint_bytes() > self.budget.checkpoint_bytes:
                self._checkpoints.popitem(last=False)
        return kept

    def restore(self, kept: tuple[DeltaNetState, ...], into: RecurrentPart) -> None:
        """As `Memory.restore`."""
        resident = self._resident(self._checkpoints, kept[0]) if kept else None
        if resident is None:
            self._copies.before_use()
            into.copy_(kept)
        else:
            into.convolution.copy_(resident.convolution)
            into.recurrent.copy_(resident.recurrent)

    def when_copied(self) -> Callable[[], None]:
        """As `Memory.when_copied`."""
        return self._copies.when_done()

    # Pages.

    def take_page(self) -> int:
        """Hold a page that nobody held, if need be one that was resident.

        Raises:
            DeviceMemoryError: sequences that are being read hold them all.
        """
        self._let_go()
        while not self.pool.free:
            if not self._pages:
                raise DeviceMemoryError(
                    f"the GPU has room for {self.pool.size * PAGE} tokens, all of them of requests "
                    "under way. Ask again when they have ended, or with less text."
                )
            self.pool.release(self._pages.popitem(last=False)[1])
        return self.pool.take()

    def _fetch(self, block: KvBlock, table: PageTable, start: int, stop: int) -> None:
        """Bring a block from the host to behind a sequence's tokens."""
        if start % PAGE:
            table.own(start // PAGE)
        table.grow(stop)
        numbers = torch.arange(start, stop, device=self.device)
        pages = torch.tensor(table.pages, device=self.device)
        self.pool.scatter(Places.of(pages, numbers), block)
        self._stay(block, [table.pages[at] for at in pages_of(start, stop)])

    # What is resident.

    def drop_resident(self) -> None:
        """Drop all of it, and give what torch holds in reserve back to the device."""
        self._let_go()
        for pages in self._pages.values():
            self.pool.release(pages)
        self._pages.clear()
        self._checkpoints.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _stay(self, block: KvBlock, pages: list[int]) -> None:
        if pages:
            self.pool.hold(pages)
            self._note(block)
            self._pages[id(block)] = pages

    def _note(self, part: KvBlock | DeltaNetState) -> None:
        """Hear of it when the host drops a part, before another may get its identity here."""
        self._let_go()
        weakref.finalize(part, self._dropped.append, id(part)).atexit = False

    def _resident(self, parts: OrderedDict[int, _T], part: KvBlock | DeltaNetState) -> _T | None:
        self._let_go()
        found = parts.get(id(part))
        if found is not None:
            parts.move_to_end(id(part))
        return found

    def _let_go(self) -> None:
        while self._dropped:
            number = self._dropped.popleft()
            self._checkpoints.pop(number, None)
            self.pool.release(self._pages.pop(number, []))

    def _checkpoint_bytes(self) -> int:
        return sum(
            part.convolution.nbytes + part.recurrent.nbytes for part in self._checkpoints.values()
        )

    def check_integrity(self, tables: Sequence[PageTable] = ()) -> None:
        """Raise `AssertionError` where the books are wrong; these sequences are all there are."""
        self._let_go()
        self.pool.check_integrity([*self._pages.values(), *(table.pages for table in tables)])
        if self._checkpoint_bytes() > self.budget.checkpoint_bytes:
            raise AssertionError("resident checkpoints take more than they may")


def _first_copies(config: ModelConfig, dtype: torch.dtype) -> Iterator[Tensor]:
    """What the first pass will have copied to the host, in shape."""
    nothing = torch.device("meta")
    part = RecurrentPart.of_nothing(config, nothing)
    yield from (part.convolution, part.recurrent)
    layers = config.layer_types.count("full_attention")
    row = row_elements(config.head_dim, dtype)
    for _ in range(2 * READY_BLOCKS):
        yield torch.empty(
            layers, config.num_key_value_heads, BLOCK, row, dtype=dtype, device=nothing
        )

"""The model's past at many places of many texts: read once, shared by all that begin alike.

Purpose. Texts form a tree of blocks (`grid.py`). A node holds the keys and values of its block's
tokens; some nodes also hold a *checkpoint*, the recurrent and convolution state behind them. A
prompt is resumed at the deepest checkpoint along its way. An edit in the middle, another branch, a
second window: each is another way through the same tree and costs what lies behind the last
checkpoint that it shares.

Guarantees
- Exact: blocks are found by their tokens, not by a hash of them, and are cut where the grid says.
  What is resumed goes on bit for bit as a text read from nothing.
- Bounded: whenever a call returns, blocks and checkpoints are within the budget. What goes first is
  the checkpoint that saves the fewest operations per byte, where what has not been used for long
  counts less and less (GreedyDual-Size, Cao and Irani 1997, with operations as the cost). Keys and
  values that no checkpoint needs go with it.
- What is handed out is a copy: whatever is dropped meanwhile, a text that is being read goes on.
- Forgotten is forgotten: what was being read when a text was dropped on purpose is not kept either.

Belongs to the model's thread; nothing here is locked.

Rejected: one state per prompt with buffers shared between forks (what was here before). Two
branches that are both alive copied everything before their fork.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from qcn_inference.config import ModelConfig
from qcn_inference.grid import Grid, as_array
from qcn_inference.kept import DeltaNetState, KvBlock
from qcn_inference.model import Model
from qcn_inference.passes import Pass, PassLimits, passes
from qcn_inference.state import State

SPACING = 4096
"""Tokens. About as many as have keys and values of the size of one checkpoint of the 80 B model."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks that follow each other in a text, and the checkpoint behind the last; immutable."""

    blocks: tuple[tuple[bytes, KvBlock], ...]  # each with its 32-bit ids
    checkpoint: tuple[DeltaNetState, ...]


@dataclass(eq=False, slots=True)
class _Node:
    """A block of a text, behind the blocks of its ancestors."""

    parent: "_Node | None"
    tokens: bytes  # of the block: 32-bit ids
    start: int  # tokens in front of it
    end: int
    kv: KvBlock
    children: dict[bytes, "_Node"] = field(default_factory=dict)
    checkpoint: tuple[DeltaNetState, ...] | None = None
    used: float = 0.0  # the cache's clock when the checkpoint was last used

    @property
    def checkpoint_bytes(self) -> int:
        return sum(
            part.convolution.nbytes + part.recurrent.nbytes for part in self.checkpoint or ()
        )


class StateCache:
    """At most `max_bytes` of one model's states."""

    def __init__(self, config: ModelConfig, grid: Grid, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.times_forgotten = 0
        self._config = config
        self._grid = grid
        self._root = _Node(None, b"", 0, 0, KvBlock((), ()))
        self._checkpoints: set[_Node] = set()
        self._clock = 0.0

    def __len__(self) -> int:
        """The number of checkpoints."""
        return len(self._checkpoints)

    def read(
        self, ids: Sequence[int], keep: Sequence[int] = (), *, for_logits: bool = True
    ) -> "Reading":
        """Resume a text where its deepest checkpoint is.

        That is at least one block before its end, if it is read `for_logits`: no checkpoint has
        them. `keep` names positions in it that are worth a checkpoint; each is taken at the last
        block's end at or before it. Long texts get some more, `SPACING` apart.
        """
        tokens = as_array(ids)
        blocks = list(self._grid.blocks(tokens))
        known = blocks[:-1] if for_logits else blocks
        path = self._walk(tokens.tobytes(), known, tokens.itemsize)
        while path and path[-1].checkpoint is None:
            path.pop()
        if path:
            path[-1].used = self._clock
        return Reading(self, tokens, blocks, path, keep)

    def skip(self, ids: Sequence[int]) -> "Reading":
        """Read a text from nothing and keep nothing of it."""
        tokens = as_array(ids)
        return Reading(self, tokens, list(self._grid.blocks(tokens)), [], None)

    def checkpoints_of(self, ids: Sequence[int]) -> list[int]:
        """The positions along a text at which it could be resumed, in order."""
        tokens = as_array(ids)
        path = self._walk(tokens.tobytes(), self._grid.blocks(tokens), tokens.itemsize)
        return [node.end for node in path if node.checkpoint is not None]

    def forget(self, ids: Sequence[int]) -> None:
        """Drop all texts that begin as the first block of this one does."""
        begins = self.pieces(ids)[0]
        for tokens in [key for key in self._root.children if key.startswith(begins)]:
            for gone in _subtree(self._root.children.pop(tokens)):
                self._drop_checkpoint(gone)
                self.nbytes -= gone.kv.nbytes
        self.times_forgotten += 1  # also when nothing is here yet: it may be being read

    def clear(self) -> None:
        """Drop everything."""
        self._root.children.clear()
        self._checkpoints.clear()
        self.nbytes = 0
        self.times_forgotten += 1

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """A text as the 32-bit ids of each of its blocks."""
        tokens = as_array(ids)
        raw, size = tokens.tobytes(), tokens.itemsize
        return [raw[start * size : end * size] for start, end in self._grid.blocks(tokens)]

    def stretches(self, ids: Sequence[int]) -> list[Stretch]:
        """What is here of a text up to its deepest checkpoint, cut behind each checkpoint."""
        tokens = as_array(ids)
        found: list[Stretch] = []
        blocks: list[tuple[bytes, KvBlock]] = []
        for node in self._walk(tokens.tobytes(), self._grid.blocks(tokens), tokens.itemsize):
            blocks.append((node.tokens, node.kv))
            if node.checkpoint is not None:
                found.append(Stretch(tuple(blocks), node.checkpoint))
                blocks = []
        return found

    def put_back(self, front: Sequence[tuple[bytes, KvBlock]], stretch: Stretch) -> None:
        """Keep a stretch of a text that was read before, behind the blocks in front of it."""
        node = self._root
        for piece, kv in (*front, *stretch.blocks):
            node = node.children.get(piece) or self._grow(node, piece, kv)
        self._use_checkpoint(node, node.checkpoint or stretch.checkpoint)
        self._make_room()

    def _walk(
        self, raw: bytes, blocks: Iterator[tuple[int, int]] | list[tuple[int, int]], size: int
    ) -> list[_Node]:
        """The nodes of a text's first blocks, as far as they are here."""
        path, node = [], self._root
        for start, end in blocks:
            child = node.children.get(raw[start * size : end * size])
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def unknown(
        self, tokens: "array[int]", blocks: Sequence[tuple[int, int]]
    ) -> Sequence[tuple[int, int]]:
        """Which of a text's first blocks are not here."""
        return blocks[len(self._walk(tokens.tobytes(), list(blocks), tokens.itemsize)) :]

    def store(
        self,
        tokens: "array[int]",
        blocks: Sequence[tuple[int, int]],
        state: State,
        copied: Mapping[tuple[int, int], KvBlock] = MappingProxyType({}),
    ) -> None:
        """Keep a checkpoint of `state` behind these blocks of a text: where it is, or was.

        Of the blocks in `copied` keys and values are not copied once more.
        """
        raw, size, node = tokens.tobytes(), tokens.itemsize, self._root
        try:
            for start, end in blocks:
                piece = raw[start * size : end * size]
                below = node.children.get(piece)
                if below is None:
                    kv = copied.get((start, end)) or state.kv_of(start, end)
                    below = self._grow(node, piece, kv)
                node = below
            checkpoint = node.checkpoint or state.recurrent_part(node.end)
        except Exception:  # there is no memory for a copy
            self._prune(node)
            raise
        self._use_checkpoint(node, checkpoint)
        self._make_room()

    def _grow(self, node: _Node, piece: bytes, kv: KvBlock) -> _Node:
        """Put a block behind a node."""
        end = node.end + len(piece) // array("i").itemsize
        below = node.children[piece] = _Node(node, piece, node.end, end, kv)
        self.nbytes += kv.nbytes
        return below

    def _use_checkpoint(self, node: _Node, checkpoint: tuple[DeltaNetState, ...]) -> None:
        """Note that a node's checkpoint is of use; it gets this one if it has none."""
        node.used = self._clock
        if node not in self._checkpoints:
            node.checkpoint = checkpoint
            self.nbytes += node.checkpoint_bytes
            self._checkpoints.add(node)

    def _make_room(self) -> None:
        while self.nbytes > self.max_bytes and self._checkpoints:
            worst = min(self._checkpoints, key=lambda node: node.used + self._worth(node))
            self._clock = max(self._clock, worst.used + self._worth(worst))
            self._drop_checkpoint(worst)
            self._prune(worst)

    def _worth(self, node: _Node) -> float:
        """Operations that a checkpoint saves, for each byte it takes."""
        size = node.checkpoint_bytes + node.kv.nbytes
        above = node.parent
        while above is not None and above.checkpoint is None:
            size += above.kv.nbytes
            above = above.parent
        since = above.end if above is not None else 0
        return self._config.prefill_operations(since, node.end) / max(1, size)

    def _drop_checkpoint(self, node: _Node) -> None:
        self.nbytes -= node.checkpoint_bytes
        node.checkpoint = None
        self._checkpoints.discard(node)

    def _prune(self, node: _Node) -> None:
        """Drop the blocks, from this one upwards, that nothing needs any more."""
        while node.parent is not None and not (node.children or node.checkpoint is not None):
            del node.parent.children[node.tokens]
            self.nbytes -= node.kv.nbytes
            node = node.parent

    def check_integrity(self) -> None:
        """Raise `AssertionError` where the books do not agree with what is held."""
        nodes = list(_subtree(self._root))
        held = sum(node.kv.nbytes + node.checkpoint_bytes for node in nodes)
        if held != self.nbytes or held > self.max_bytes:
            raise AssertionError(
                f"{held} bytes held, {self.nbytes} booked, {self.max_bytes} allowed"
            )
        if {node for node in nodes if node.checkpoint is not None} != self._checkpoints:
            raise AssertionError("the list of checkpoints is not that of the tree")
        for node in nodes[1:]:
            above = node.parent
            if above is None or above.children.get(node.tokens) is not node:
                raise AssertionError(f"the block at {node.start} is not where its parent looks")
            if above.end != node.start:
                raise AssertionError(f"the block at {node.start} is not behind its parent")
            if not node.children and node.checkpoint is None:
                raise AssertionError(f"nothing needs the block at {node.start}")


class Reading:
    """One text on its way through the model; `position` tokens of it were known already."""

    def __init__(
        self,
        cache: StateCache,
        tokens: "array[int]",
        blocks: list[tuple[int, int]],
        path: list[_Node],
        keep: Sequence[int] | None,
    ) -> None:
        self._cache = cache
        self._tokens = tokens
        self._path = path
        self._blocks = blocks
        self._keep = set() if keep is None else _worth_keeping([end for _, end in blocks], keep)
        self._times_forgotten = cache.times_forgotten
        self.position = path[-1].end if path else 0

    def start(self, model: Model) -> State:
        """A state behind the tokens that were known; asked for once, before anything is stored."""
        state = model.new_state()
        path, self._path = self._path, []
        if path:
            recurrent = path[-1].checkpoint
            assert recurrent is not None
            state.put_together([node.kv for node in path], recurrent, self.position)
        return state

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Start and end of each block that is left to read, from `position` on."""
        return [block for block in self._blocks if block[0] >= self.position]

    def passes(self, limits: PassLimits) -> Iterator[Pass]:
        """What is left to read, in order."""
        return passes(self.blocks, self._keep, limits)

    def took(self, part: Pass, state: State) -> bool:
        """Note that `state` has read a pass; it gets a checkpoint wherever it is worth one."""
        return bool(list(self.taking(part, state)))

    def taking(self, part: Pass, state: State) -> Iterator[None]:
        """The same, a block or a checkpoint at a time: `state` does not go on meanwhile."""
        for end in (*part.keep, part.end):
            if end not in self._keep:
                continue
            done = [block for block in self._blocks if block[1] <= end]
            copied: dict[tuple[int, int], KvBlock] = {}
            for block in self._cache.unknown(self._tokens, done):
                if not self._was_forgotten:
                    copied[block] = state.kv_of(*block)
                    yield
            if not self._was_forgotten:
                self._cache.store(self._tokens, done, state, copied)
                yield

    @property
    def _was_forgotten(self) -> bool:
        """Whether something was since it began to be read, which may be this text."""
        return self._cache.times_forgotten != self._times_forgotten


def _worth_keeping(ends: Sequence[int], keep: Sequence[int]) -> set[int]:
    """The block ends at or before those wanted, and the first of every `SPACING` tokens."""
    found = {max((end for end in ends if end <= at), default=0) for at in keep}
    last = 0
    for end in ends[:-1]:
        if end - last >= SPACING:
            found.add(end)
            last = end
    return found


def _subtree(node: _Node) -> Iterator[_Node]:
    """A node and all below it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children.values()

"""Snapshots of the model's state at a few positions of recent prompts.

Three layers in four keep no past but a state of fixed size, so a prompt can only be resumed where a
snapshot was taken. `fim.py` names two places in each prompt that the next keystroke leaves
untouched: where the current file begins, and the last line break before the cursor. With those, a
keystroke costs the current line and the suffix.

Guarantees: a snapshot is used only for a prompt that begins with exactly its tokens (the tokens are
compared, not a hash); what is handed out is an independent copy; the bytes stay within the budget,
least recently used out first. Belongs to the model's thread; nothing here is locked.

Bytes are counted as if every snapshot owned all of its state, also where forks share KV pages: the
budget may be undershot, never exceeded.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from qcn_inference.state import State

Tokens = tuple[int, ...]


class Match(NamedTuple):
    """A state that has read the first `tokens` tokens of the prompt; the caller owns it."""

    state: State
    tokens: int


class _Snapshot(NamedTuple):
    state: State
    nbytes: int


class PrefixCache:
    """At most `max_bytes` of snapshots."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._snapshots: OrderedDict[Tokens, _Snapshot] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._snapshots)

    def find(self, ids: Sequence[int]) -> Match | None:
        """A copy of the longest snapshot that leaves at least the last token of `ids` unread."""
        prompt = tuple(ids)
        fitting = [
            key for key in self._snapshots if len(key) < len(prompt) and prompt[: len(key)] == key
        ]
        if not fitting:
            return None
        longest = max(fitting, key=len)
        self._snapshots.move_to_end(longest)
        return Match(self._snapshots[longest].state.fork(), len(longest))

    def store(self, ids: Sequence[int], state: State) -> None:
        """Keep a copy of `state`, which has read exactly `ids`; older snapshots make room."""
        if state.position != len(ids):
            raise ValueError(
                f"a state at position {state.position} is no snapshot of {len(ids)} tokens"
            )
        key = tuple(ids)
        if key in self._snapshots:
            self._snapshots.move_to_end(key)
            return
        snapshot = state.fork()
        nbytes = snapshot.nbytes
        if nbytes > self.max_bytes:
            return
        while self.nbytes + nbytes > self.max_bytes:
            _, oldest = self._snapshots.popitem(last=False)
            self.nbytes -= oldest.nbytes
        self._snapshots[key] = _Snapshot(snapshot, nbytes)
        self.nbytes += nbytes

    def clear(self) -> None:
        """Forget all snapshots."""
        self._snapshots.clear()
        self.nbytes = 0

    def check_integrity(self) -> None:
        """Raise `AssertionError` where the books do not agree with what is held."""
        held = sum(snapshot.nbytes for snapshot in self._snapshots.values())
        if held != self.nbytes or held > self.max_bytes:
            raise AssertionError(
                f"{held} bytes held, {self.nbytes} booked, {self.max_bytes} allowed"
            )
        for key, snapshot in self._snapshots.items():
            if snapshot.state.position != len(key):
                raise AssertionError(
                    f"a snapshot of {len(key)} tokens is at position {snapshot.state.position}"
                )

"""Which expert has which place on the GPU: least recently used goes first. Pure bookkeeping."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

Expert = tuple[int, int]  # layer, number in it


class ExpertSlots:
    """So many places; each holds one expert of one layer, or none."""

    def __init__(self, count: int) -> None:
        self.hits = 0
        self.misses = 0
        self._held: OrderedDict[Expert, int] = OrderedDict()  # least recently used first
        self._free = list(range(count))

    def __len__(self) -> int:
        """The number of experts that have a place."""
        return len(self._held)

    def look(self, layer: int, experts: Iterable[int]) -> tuple[dict[int, int], list[int]]:
        """Tell the slots of those that have one, and who has none; counts them as used."""
        found, missing = {}, []
        for expert in experts:
            slot = self._held.get((layer, expert))
            if slot is None:
                missing.append(expert)
            else:
                self._held.move_to_end((layer, expert))
                found[expert] = slot
        self.hits += len(found)
        self.misses += len(missing)
        return found, missing

    def take(self, layer: int, experts: Sequence[int]) -> dict[int, int]:
        """Give places to experts that have none, at the cost of those unused for longest.

        What was just looked for keeps its place, as long as there are places for all of it.
        """
        taken = {}
        for expert in experts:
            slot = self._free.pop() if self._free else self._held.popitem(last=False)[1]
            taken[expert] = self._held[layer, expert] = slot
        return taken

    def drop(self, layer: int, experts: Iterable[int]) -> None:
        """Take their places from experts that were given some."""
        self._free.extend(self._held.pop((layer, expert)) for expert in experts)

    def clear(self, slots: range) -> None:
        """Take these slots out of use; `give_back` ends it."""
        self._held = OrderedDict(
            (expert, slot) for expert, slot in self._held.items() if slot not in slots
        )
        self._free = [slot for slot in self._free if slot not in slots]

    def give_back(self, slots: range) -> None:
        """Take slots that were cleared into use again; they hold nothing."""
        self._free.extend(slots)

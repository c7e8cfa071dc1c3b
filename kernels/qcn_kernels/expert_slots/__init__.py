"""Slots on a GPU for experts that lie in host memory: who has which. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.expert_slots import reference
from qcn_kernels.expert_slots.tables import MOST_SLOTS, OUT_OF_USE, SlotTables

__all__ = ["MOST_SLOTS", "OUT_OF_USE", "SlotTables", "place"]


def place(tables: SlotTables, first: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Give slots to experts of a layer that have none, as `reference.place`.

    On a GPU nothing is waited for: a CUDA graph may hold it.
    """
    if uses_triton(tables.used):
        from qcn_kernels.expert_slots import triton

        return triton.place(tables, first, chosen)
    return reference.place(tables, first, chosen)

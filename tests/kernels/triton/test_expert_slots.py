"""Experts get the slots that the reference gives them, and its tables are left behind."""

import pytest
import torch
from interpreted import Caller
from qcn_kernels.expert_slots import OUT_OF_USE, SlotTables, reference
from qcn_kernels.expert_slots.triton import BLOCK, place
from torch import Tensor

LAYERS, EXPERTS = 3, 12


def placed(
    slot_of: Tensor, expert_of: Tensor, used: Tensor, clock: Tensor, *, first: int, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """By the kernel: what is written in place must be an argument."""
    return place(SlotTables(slot_of, expert_of, used, clock), first, chosen)


def both_place(call: Caller, tables: SlotTables, layer: int, chosen: Tensor) -> int:
    """Return how many are to be copied."""
    given = dict(zip(SlotTables.__slots__, tables.tensors, strict=True))
    mine = {name: tensor.clone() for name, tensor in given.items()}
    slots, rows = call(placed, **mine, first=layer * EXPERTS, chosen=chosen)
    want, want_rows = reference.place(tables, layer * EXPERTS, chosen)
    assert torch.equal(slots, want)
    assert torch.equal(rows, want_rows)
    for name, tensor in given.items():
        assert torch.equal(mine[name], tensor), name
    return int((rows[0] >= 0).sum())


@pytest.mark.parametrize("slots", [24, 31, LAYERS * EXPERTS])
def test_any_choices_one_after_another(call: Caller, slots: int) -> None:
    """Of one token and of several that choose alike, some slots out of use for a while."""
    tables = SlotTables.empty(LAYERS * EXPERTS, slots, torch.device("cpu"))
    copied = 0
    for turn in range(25):
        if turn == 8:
            former = tables.expert_of[:12]
            tables.slot_of[former[former >= 0].long()] = -1
            tables.expert_of[:12], tables.used[:12] = -1, OUT_OF_USE
        if turn == 16:
            tables.used[:12] = 0
        drawn = torch.randint(EXPERTS, (int(torch.randint(1, 13, ())),))
        copied += both_place(call, tables, int(torch.randint(LAYERS, ())), drawn)
        held = tables.expert_of[tables.expert_of >= 0].long()
        assert torch.equal(tables.expert_of[tables.slot_of[held].long()].long(), held)
        assert tables.slot_of.ge(0).sum() == len(held)
    assert copied > 24


def test_drafts_choose_more_often_than_there_are_slots(call: Caller) -> None:
    """Sixteen tokens at once, on a card that holds a layer and no more."""
    tables = SlotTables.empty(LAYERS * EXPERTS, EXPERTS, torch.device("cpu"))
    for layer in range(LAYERS):
        assert both_place(call, tables, layer, torch.arange(48) % EXPERTS) == EXPERTS


def test_more_slots_than_are_looked_at_at_once(call: Caller) -> None:
    slots = BLOCK + 100
    tables = SlotTables.empty(LAYERS * EXPERTS, slots, torch.device("cpu"))
    tables.used.copy_(torch.randperm(slots) + 5)
    tables.clock.fill_(slots + 5)
    assert both_place(call, tables, 1, torch.tensor([3, 3, 11, 0])) == 3


def test_experts_that_have_slots_are_not_copied(call: Caller) -> None:
    tables = SlotTables.empty(LAYERS * EXPERTS, 24, torch.device("cpu"))
    assert both_place(call, tables, 2, torch.tensor([5, 1])) == 2
    assert both_place(call, tables, 2, torch.tensor([1, 5])) == 0
    assert both_place(call, tables, 1, torch.tensor([1, 5])) == 2

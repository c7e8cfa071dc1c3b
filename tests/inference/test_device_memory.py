"""A device's memory for states: pages shared and copied, what is resident, what goes first.

No kernel runs here, so the device may be the CPU: the books and the copies are the same.
"""

from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.config import ModelConfig, load_config
from qcn_inference.device_memory import DeviceBudget, DeviceMemory
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.kept import DeltaNetState, KvBlock, RecurrentPart
from qcn_inference.page_table import PageTable
from qcn_inference.pages import PAGE, Places
from qcn_inference.state import State
from random_checkpoints import random_checkpoint
from sampling import examples

PAGES = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Of two attention layers and a DeltaNet layer."""
    kinds = ["full_attention", "linear_attention", "full_attention"]
    folder = tmp_path_factory.mktemp("checkpoint")
    return load_config(random_checkpoint(folder, 7, num_hidden_layers=3, layer_types=kinds))


def memory_of(config: ModelConfig, checkpoints: int = 3) -> DeviceMemory:
    part = RecurrentPart.of_nothing(config, torch.device("cpu"))
    nbytes = part.convolution.nbytes + part.recurrent.nbytes
    budget = DeviceBudget(PAGES, checkpoints * nbytes)
    return DeviceMemory(config, torch.float32, torch.device("cpu"), budget)


def write(state: State, first: int, tokens: int) -> None:
    """Read tokens, numbered from `first` on; each one's keys and values are its number."""
    state.begin_pass([tokens], [])
    table = table_of(state)
    start = state.position
    numbers = torch.arange(first, first + tokens).float()
    places = Places.of(torch.tensor(table.pages), torch.arange(start, start + tokens))
    for pool in (table._pool.keys, table._pool.values):
        pool[:, places.page, :, places.offset] = numbers[:, None, None, None]
    state.end_pass(tokens)


def table_of(state: State) -> PageTable:
    assert isinstance(state._kv, PageTable)
    return state._kv


def numbers_of(block: KvBlock) -> list[int]:
    """The tokens of a block, by their keys; all of a token's keys and values are one number."""
    for tensor in (*block.keys, *block.values):
        assert torch.equal(tensor, block.keys[0][:1, :, :1].expand_as(tensor))
    return [int(number) for number in block.keys[0][0, :, 0]]


def new_state(config: ModelConfig, memory: DeviceMemory) -> State:
    return State(config, memory)


@dataclass
class Text:
    """A sequence that is alive, and its tokens' numbers."""

    state: State
    numbers: list[int]


@pytest.mark.long
@examples(sample=25, full=400)
@given(data=st.data())
def test_whatever_happens_every_sequence_reads_its_own_text(
    data: st.DataObject, config: ModelConfig
) -> None:
    """Sequences are read, forked, kept, dropped and resumed, while what is resident comes and goes.

    Where there is no room, the one that asked is told, and all others go on.
    """
    memory = memory_of(config)
    alive = [Text(new_state(config, memory), [])]
    kept: list[tuple[list[KvBlock], tuple[DeltaNetState, ...], list[int]]] = []
    count = 0
    for _ in range(data.draw(st.integers(1, 25), label="operations")):
        text = alive[data.draw(st.integers(0, len(alive) - 1), label="text")]
        match data.draw(
            st.sampled_from(["read", "read", "fork", "drop", "keep", "resume", "lose"])
        ):
            case "read":
                tokens = data.draw(st.integers(1, 150), label="tokens")
                try:
                    write(text.state, count, tokens)
                    text.numbers += range(count, count + tokens)
                except DeviceMemoryError:
                    alive.remove(text)
                    alive = alive or [Text(new_state(config, memory), [])]
                count += tokens
            case "fork":
                with suppress(DeviceMemoryError):
                    alive.append(Text(text.state.fork(), list(text.numbers)))
            case "drop" if len(alive) > 1:
                alive.remove(text)
            case "keep" if text.numbers:
                cuts = data.draw(
                    st.sets(st.integers(1, len(text.numbers)), max_size=3).map(sorted), label="cuts"
                )
                ends = [*[cut for cut in cuts if cut < len(text.numbers)], len(text.numbers)]
                starts = [0, *ends[:-1]]
                blocks = [text.state.kv_of(*span) for span in zip(starts, ends, strict=True)]
                kept.append((blocks, text.state.recurrent_part(), list(text.numbers)))
            case "resume" if kept:
                blocks, recurrent, numbers = kept[data.draw(st.integers(0, len(kept) - 1))]
                state = new_state(config, memory)
                try:
                    state.put_together(blocks, recurrent, len(numbers))
                    alive.append(Text(state, list(numbers)))
                except DeviceMemoryError:
                    pass
                del state
            case "lose" if kept:
                del kept[data.draw(st.integers(0, len(kept) - 1))]
        del text
        for one in alive:
            assert numbers_of(one.state.kv_of(0, len(one.numbers))) == one.numbers
        for blocks, _, numbers in kept:
            assert [n for block in blocks for n in numbers_of(block)] == numbers
        memory.check_integrity([table_of(one.state) for one in alive])


def test_what_is_resident_is_shared_and_not_copied(config: ModelConfig) -> None:
    """Three whole pages and a bit: a sequence that goes on from them takes one page, not four."""
    memory = memory_of(config)
    state = new_state(config, memory)
    write(state, 0, 3 * PAGE + 10)
    block = state.kv_of(0, 3 * PAGE + 10)
    del state
    resumed = new_state(config, memory)
    resumed.put_together([block], resumed.recurrent_part(), 3 * PAGE + 10)
    assert memory.pool.free == PAGES - 4 - 1


def test_sequences_come_before_what_is_resident(config: ModelConfig) -> None:
    memory = memory_of(config)
    first, second = new_state(config, memory), new_state(config, memory)
    write(first, 0, 4 * PAGE)
    write(second, 1000, 4 * PAGE)
    blocks = [first.kv_of(0, 4 * PAGE), second.kv_of(0, 4 * PAGE)]
    recurrent = first.recurrent_part()
    del first, second
    again = new_state(config, memory)
    again.put_together(blocks[:1], recurrent, 4 * PAGE)  # the first was used last
    greedy = new_state(config, memory)
    write(greedy, 2000, 6 * PAGE)
    assert memory.resident_bytes < 8 * memory.pool.page_bytes + memory._checkpoint_bytes()
    assert numbers_of(again.kv_of(0, 4 * PAGE)) == list(range(4 * PAGE))
    back = new_state(config, memory)
    with pytest.raises(DeviceMemoryError, match="room for 768 tokens, all of them of requests"):
        back.put_together(blocks[1:], recurrent, 4 * PAGE)
    del greedy, again
    back = new_state(config, memory)
    back.put_together(blocks[1:], recurrent, 4 * PAGE)  # from the host
    assert numbers_of(back.kv_of(0, 4 * PAGE)) == list(range(1000, 1000 + 4 * PAGE))


def test_resident_checkpoints_stay_within_their_bytes(config: ModelConfig) -> None:
    memory = memory_of(config, checkpoints=2)
    state = new_state(config, memory)
    kept = []
    for number in range(4):
        state.recurrent.recurrent.fill_(number)
        kept.append(state.recurrent_part())
        memory.check_integrity([table_of(state)])
    for number, checkpoint in enumerate(kept):
        state.put_together([], checkpoint, 0)
        assert (state.recurrent.recurrent == number).all()


def test_what_is_resident_can_be_dropped_at_any_moment(config: ModelConfig) -> None:
    memory = memory_of(config)
    state = new_state(config, memory)
    write(state, 0, 100)
    block, recurrent = state.kv_of(0, 100), state.recurrent_part()
    memory.drop_resident()
    assert memory.resident_bytes == 0
    memory.check_integrity([table_of(state)])
    again = new_state(config, memory)
    again.put_together([block], recurrent, 100)
    assert numbers_of(again.kv_of(0, 100)) == list(range(100))


def test_a_model_without_full_attention_needs_no_pages(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("linear")
    kinds = ["linear_attention"] * 2
    config = load_config(random_checkpoint(folder, 1, num_hidden_layers=2, layer_types=kinds))
    memory = memory_of(config)
    state = new_state(config, memory)
    state.begin_pass([500], [])
    state.end_pass(500)
    again = new_state(config, memory)
    again.put_together([state.kv_of(0, 500)], state.recurrent_part(), 500)
    assert again.position == 500
    assert memory.pool.free == PAGES

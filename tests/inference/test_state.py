"""A state is one value: however a text was read or forked, it is the same past."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qcn_inference.checkpoint import load_model
from qcn_inference.grid import BLOCK
from qcn_inference.model import Model
from qcn_inference.state import State
from random_checkpoints import random_checkpoint
from sampling import examples
from torch import Tensor

LENGTH = 150


def close(got: Tensor, want: Tensor) -> None:
    """In fp32 rounding is all that may differ; the tolerance is the one against transformers."""
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of both layer types, two key heads' worth of everything."""
    folder = random_checkpoint(
        tmp_path_factory.mktemp("checkpoint"),
        7,
        deviation=0.1,
        num_hidden_layers=3,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    )
    return load_model(folder)


@pytest.fixture(scope="module")
def text(model: Model) -> Tensor:
    numbers = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (LENGTH,), generator=numbers)


@pytest.fixture(scope="module")
def whole(model: Model, text: Tensor) -> Tensor:
    """Logits of the text read in one call."""
    return model.prefill(text, model.new_state(), all_logits=True)


def read(model: Model, ids: Tensor, state: State) -> Tensor:
    """Read ids in the way a generation does: a single one by decode, more by prefill."""
    if len(ids) == 1:
        return model.decode(int(ids[0]), state).unsqueeze(0)
    return model.prefill(ids, state, all_logits=True)


@pytest.mark.long
@examples(sample=15, full=150)
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=12).map(set).map(sorted))
def test_any_pieces_give_the_logits_of_the_whole(
    cuts: list[int], model: Model, text: Tensor, whole: Tensor
) -> None:
    state = model.new_state()
    pieces = torch.tensor_split(text, cuts)
    got = torch.cat([read(model, piece, state) for piece in pieces])
    close(got, whole)
    assert state.position == LENGTH


def test_a_prompt_longer_than_a_block_is_read_whole(model: Model, text: Tensor) -> None:
    ids = text.repeat(BLOCK // LENGTH + 1)
    assert len(ids) > BLOCK
    state = model.new_state()
    at_once = model.prefill(ids, model.new_state(), all_logits=True)
    apart = [model.prefill(part, state, all_logits=True) for part in torch.split(ids, 333)]
    close(torch.cat(apart), at_once)


def test_prefill_pauses_between_layers_and_ends_with_the_last_logits(
    model: Model, text: Tensor, whole: Tensor
) -> None:
    steps = model.prefill_steps(text, model.new_state())
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            logits = end.value
            break
        # Between steps the caller is outside inference mode and may use other states.
        assert not torch.is_inference_mode_enabled()
        model.decode(1, model.new_state())
        pauses += 1
    assert pauses == len(model.config.layer_types)
    close(logits, whole[-1:])


def test_a_state_left_in_the_middle_of_a_prefill_is_refused(model: Model, text: Tensor) -> None:
    state = model.new_state()
    steps = model.prefill_steps(text, state)
    next(steps)
    steps.close()
    with pytest.raises(RuntimeError, match="middle of a prefill"):
        model.decode(1, state)
    with pytest.raises(RuntimeError, match="middle of a prefill"):
        state.fork()


@pytest.mark.parametrize("ids", [[], [-1], [5, 10**6]])
def test_what_is_no_token_is_refused_and_the_state_stays_whole(
    ids: list[int], model: Model
) -> None:
    state = model.new_state()
    with pytest.raises(ValueError, match="token"):
        model.prefill(ids, state)
    if ids:
        with pytest.raises(ValueError, match="token"):
            model.decode(ids[-1], state)
    assert model.decode(1, state).isfinite().all()


@pytest.mark.long
@examples(sample=15, full=150)
@given(data=st.data())
def test_forks_never_see_each_other(data: st.DataObject, model: Model) -> None:
    """A tree of forks, each read from at random: every one equals its own text read alone."""
    tokens = st.lists(st.integers(0, model.config.vocab_size - 1), min_size=1, max_size=40)
    branches: list[tuple[State, list[int]]] = [(model.new_state(), [])]
    for _ in range(data.draw(st.integers(1, 12), label="operations")):
        index = data.draw(st.integers(0, len(branches) - 1), label="branch")
        state, ids = branches[index]
        match data.draw(st.sampled_from(["fork", "read", "read", "drop"])):
            case "fork":
                branches.append((state.fork(), list(ids)))
            case "read":
                new = data.draw(tokens, label="tokens")
                read(model, torch.tensor(new), state)
                ids += new
            case "drop" if len(branches) > 1:
                del branches[index]
        del state
    for state, ids in branches:
        alone = model.new_state()
        if ids:
            model.prefill(ids, alone)
        assert state.position == len(ids)
        close(model.decode(1, state), model.decode(1, alone))


def test_a_fork_of_a_kept_prefix_copies_no_keys_and_values(model: Model, text: Tensor) -> None:
    """Request after request from one prefix, each dropped before the next: the same buffers."""
    prefix = model.new_state()
    model.prefill(text, prefix)
    after_first = prefix.fork()
    model.decode(1, after_first)
    buffers = prefix._kv
    assert after_first._kv is buffers
    del after_first
    second = prefix.fork()
    model.decode(2, second)
    assert second._kv is buffers
    third = prefix.fork()
    model.decode(3, third)  # the second is alive and has written behind the prefix
    assert third._kv is not buffers

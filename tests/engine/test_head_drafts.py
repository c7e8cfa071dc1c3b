"""What the checkpoint's own head drafts changes how fast an answer comes, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import VOCAB_SIZE, finish, request_of, write_model
from qcn_inference.checkpoint import load_model
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid
from qcn_inference.memory import Memory
from qcn_inference.model import Model
from qcn_inference.mtp import MtpDrafter, MtpHead
from qcn_inference.request import Chunk, Finished, GenerationRequest, SamplingParams
from qcn_inference.state_cache import StateCache
from qcn_inference.step_cost import HEAD_ROWS, StepCost
from qcn_inference.tokenizer import Tokenizer
from torch import Tensor

TIE = 1e-3
PROMPT = [30 + 7 * n % 200 for n in range(60)]  # repeats nothing: the lookup has little to say
SAMPLED = SamplingParams(temperature=0.7, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), head=True)


def loaded(folder: Path, *, mtp: bool) -> Loaded:
    model = load_model(folder, mtp=mtp)
    tokenizer = Tokenizer(folder, model.config.vocab_size)
    return Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), 0))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of full length at every step."""
    monkeypatch.setattr(StepCost, "verifying", lambda *_: 0.01)
    monkeypatch.setattr(StepCost, "guessing", lambda *_: 0.0)


@dataclass
class Answer:
    """The tokens, how far ahead of the next best each was, and how it ended."""

    tokens: list[int]
    leads: list[float]
    finished: Finished


def answer(loaded: Loaded, request: GenerationRequest) -> Answer:
    chunks: list[Chunk] = []
    finished = finish(loaded.generate(request, chunks.append))
    shown = [token for chunk in chunks for token in chunk.tokens]
    leads = [token.top[0][1] - token.top[1][1] for token in shown]
    return Answer([token.token for token in shown], leads, finished)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0), SAMPLED])
def test_an_answer_is_the_same_as_without(folder: Path, sampling: SamplingParams) -> None:
    request = request_of(PROMPT, max_tokens=60, sampling=sampling, logprobs=2)
    drafted = answer(loaded(folder, mtp=True), request)
    plain = answer(loaded(folder, mtp=False), request)
    assert drafted.finished.drafted_tokens > 60
    for mine, theirs, lead in zip(drafted.tokens, plain.tokens, plain.leads, strict=True):
        if mine != theirs and lead < TIE:
            return  # either is right, and what follows may differ
        assert mine == theirs


@dataclass
class Watched:
    """Takes the head's place: guesses `answer`, rightly, and notes what it is shown."""

    answer: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    following: list[int] = field(default_factory=list)
    asked: int = 0

    def see(self, _: MtpDrafter, hidden: Tensor, following: Sequence[int]) -> None:
        self.hidden.append(hidden)
        self.following += following

    def propose(self, _: MtpDrafter, count: int) -> tuple[int, ...]:
        self.asked += count
        seen = len(self.following) + 1  # the first of the answer has no hidden state before it
        return tuple(self.answer[seen : seen + count]) if self.following else ()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(MtpDrafter, "see", lambda *given: watched.see(*given))
    monkeypatch.setattr(MtpDrafter, "propose", lambda *given: watched.propose(*given))
    return watched


@pytest.mark.usefixtures("eager")
def test_guesses_that_come_true_save_steps_and_it_is_shown_every_token_once(
    folder: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(PROMPT, max_tokens=41, sampling=SAMPLED, logprobs=2)
    watched.answer = answer(loaded(folder, mtp=False), request).tokens
    steps: list[int] = []
    verify = Model.verify

    def counted(model: Model, ids: Sequence[int], state: object) -> object:
        steps.append(len(ids))
        return verify(model, ids, state)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "verify", counted)
    with_head = loaded(folder, mtp=True)
    drafted = answer(with_head, request)
    assert drafted.tokens == watched.answer
    assert drafted.finished.accepted_tokens == drafted.finished.drafted_tokens
    assert len(steps) <= 2 + 40 // HEAD_ROWS[-1]

    shown = len(watched.following)
    assert watched.following == watched.answer[1 : 1 + shown]
    text = torch.tensor([*PROMPT, *watched.answer])
    model = with_head.model
    states = finish(model.hidden_steps(text, model.new_state(), all_tokens=True))
    torch.testing.assert_close(
        torch.cat(watched.hidden), states[len(PROMPT) :][:shown], atol=1e-3, rtol=0
    )


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("at", [1, 2, 7])
def test_where_there_is_no_room_for_guesses_an_answer_goes_on_without(
    folder: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that there is for them on a GPU is held by requests under way."""
    request = request_of(PROMPT, max_tokens=40, sampling=SAMPLED, logprobs=2)
    want = answer(loaded(folder, mtp=False), request)
    read, asked = MtpHead.read, list[int]()

    def full_from(head: MtpHead, hidden: Tensor, *more: Any) -> Tensor:
        asked.append(len(hidden))
        if len(asked) == at:
            raise DeviceMemoryError("the GPU has room for 64 tokens")
        return read(head, hidden, *more)

    monkeypatch.setattr(MtpHead, "read", full_from)
    got = answer(loaded(folder, mtp=True), request)
    assert got.tokens == want.tokens
    assert len(asked) == at  # it is not asked again


def test_all_requests_draft_within_the_same_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken when the first token is seen, and anew after it was given back."""
    taken: list[Memory] = []
    new_memory = MtpHead.new_memory

    def noted(head: MtpHead) -> Memory:
        taken.append(new_memory(head))
        return taken[-1]

    monkeypatch.setattr(MtpHead, "new_memory", noted)
    model = load_model(folder, mtp=True)
    hidden = torch.zeros(1, model.config.hidden_size)

    def draft() -> None:
        drafter = model.new_drafter()
        assert drafter is not None
        assert drafter.propose(2) == ()
        drafter.see(hidden, [5])

    assert model.new_drafter() is not None
    assert not taken
    draft()
    draft()
    assert len(taken) == 1
    model.give_back()
    draft()
    assert len(taken) == 2


def test_a_head_that_is_always_wrong_is_soon_asked_no_more(
    folder: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepCost, "verifying", lambda *_: 1.0)
    monkeypatch.setattr(StepCost, "guessing", lambda *_: 0.02)
    watched.answer = [VOCAB_SIZE - 1] * 500
    answered = 0
    for seed in range(20):  # an answer that goes on long enough to lose patience
        watched.asked, watched.following = 0, []
        params = SamplingParams(temperature=0.7, seed=seed)
        request = request_of(PROMPT, max_tokens=300, sampling=params, logprobs=2)
        answered = len(answer(loaded(folder, mtp=True), request).tokens)
        if answered > 100:
            break
    assert answered > 100
    assert 10 < watched.asked < 100

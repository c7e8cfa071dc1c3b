"""The model: embedding, decoder layers, head; prefill in passes, decode token by token, verify.

Passes. A prompt goes through all layers pass by pass (`passes.py`), so that what prefill needs
beside weights and state does not grow with the prompt. Each block of a pass has a chunk grid of its
own, which begins at its first token. Ids that are given without blocks are cut every BLOCK tokens
from the first one on: the same ids read in one call or in several then agree to rounding, not bit
for bit. Who needs that says where `grid.py` cuts.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from qcn_kernels.choice import uses_triton
from qcn_kernels.rms_norm import rms_norm
from qcn_kernels.rotary import rotary_tables
from qcn_kernels.sampling import greedy
from torch import Tensor
from torch.nn import functional

from qcn_inference.config import KvCacheDtype, ModelConfig
from qcn_inference.decoder import Decoder
from qcn_inference.device import room_for_states, working_bytes
from qcn_inference.device_memory import DeviceBudget, DeviceMemory
from qcn_inference.grid import BLOCK
from qcn_inference.layers import DecoderLayer, DraftSeat, Positions, Seat, SparseMoe
from qcn_inference.memory import HostMemory, Memory
from qcn_inference.mtp import MtpDrafter, MtpHead
from qcn_inference.offload.layers import Offload
from qcn_inference.pace import Pace
from qcn_inference.pages import PAGE, dtype_of_pages
from qcn_inference.passes import BESIDE_HOST, ON_GPU, ONE_BLOCK, Pass, passes
from qcn_inference.state import State
from qcn_inference.step_cost import ROWS, StepCost

LITTLE = 64_000_000
"""Operations of one token, below which one thread decodes it. To wake and await others for products
of so few rows costs more than it saves: on two quiet cores qcn-nano takes 6.5 ms a token with one
thread and 6.0 to 6.9 with two; beside four busy processes 7 with one and 16 to 200 with two."""


WARM_UP_TOKENS = 130
"""More than two chunks and two pages: every kernel of a short prefill runs."""


class Drafted:
    """Tokens that were run through the model and are not in a state yet, which waits for `commit`.

    The keys and values of the tokens stand behind the state's own, where the next ones are written
    over them.
    """

    def __init__(self, hidden: Tensor, logits: Tensor, commit: Callable[[int], None]) -> None:
        self.hidden = hidden  # fp32 [T, hidden], what the head was applied to
        self.logits = logits  # fp32 [T, vocab], behind each of the tokens
        self._commit = commit

    @cached_property
    def likeliest(self) -> list[int]:
        """The likeliest token behind each of them; on a GPU the device is awaited once for all."""
        tokens: list[int] = greedy(self.logits).tolist()
        return tokens

    @torch.inference_mode()
    def commit(self, tokens: int) -> None:
        """Read the first `tokens` of them into the state. Called once; 0 to T.

        On a GPU nothing is waited for.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= tokens <= len(self.logits):
            raise ValueError(f"{tokens} of {len(self.logits)} drafted tokens cannot be read")
        self._commit(tokens)


class Model:
    """A loaded `qwen3_next` model: weights, no sequence. One thread at a time may use it."""

    def __init__(
        self,
        config: ModelConfig,
        fingerprint: str,
        *,
        embedding: Tensor,
        layers: Iterable[DecoderLayer],
        norm: Tensor,
        head: Tensor,
        mtp: MtpHead | None = None,
        offload: Offload | None = None,
    ) -> None:
        """Take over weights; `qcn_inference.checkpoint.load_model` is the usual way to a model.

        Args:
            config: the shape of the weights.
            fingerprint: identity of weights and precision; states on disk carry it.
            embedding: [vocab, hidden].
            layers: in order; iterated over once for each block or token.
            norm: [hidden] fp32, 1 + weight of the last norm.
            head: [vocab, hidden]; the embedding itself where they are tied.
            mtp: the head that drafts, if it was loaded.
            offload: how experts lie in host memory, if they do.
        """
        self.config = config
        self.fingerprint = fingerprint
        self.device = embedding.device
        self.dtype = head.dtype  # of matrix products
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self.mtp = mtp
        self._pace = Pace(self.device)
        self._offload = offload
        self.kv_cache_dtype: KvCacheDtype = "auto"  # on a GPU
        self.step_cost = StepCost.of(config, offload.reads if offload is not None else None)
        on_gpu = BESIDE_HOST if offload is not None else ON_GPU
        self.pass_limits = on_gpu if uses_triton(embedding) else ONE_BLOCK
        self._memory: Memory | None = None
        self._memory_of_head: Memory | None = None
        self._decoder: Decoder | None = None

    @property
    def runs_kernels(self) -> bool:
        """Whether it runs by our Triton kernels."""
        return uses_triton(self._head)

    @property
    def runs_ahead(self) -> bool:
        """Whether `decode` returns before it is done, and takes a token that nobody has seen."""
        return self.runs_kernels

    @torch.inference_mode()
    def reserve(self, nbytes: int, kept: KvCacheDtype = "auto") -> None:
        """Take memory of the GPU for states; does nothing on the CPU, whose keys stay as they are.

        What was reserved before is given up: there must be no states in it.

        Args:
            nbytes: what states may take.
            kept: what their keys and values are kept in.

        Raises:
            DeviceMemoryError: it is too little.
        """
        dtype = self._head.dtype
        self._memory = self._decoder = None
        if self.runs_kernels:
            self.kv_cache_dtype, dtype = kept, dtype_of_pages(kept, dtype)
            budget = DeviceBudget.of(self.config, dtype, nbytes)
            memory = DeviceMemory(self.config, dtype, self.device, budget)
            self._memory = memory
            self._decoder = Decoder(self.config, memory, self)
            if self._offload is not None and self._offload.missing_on_cpu:
                self._decoder.uses_graphs = False  # the host has a say in each layer
        else:
            self._memory = HostMemory(self.config, dtype)

    @property
    def memory(self) -> Memory:
        """Where its states lie; on a GPU that nobody has reserved, in all of what is free."""
        if self._memory is None:
            self.reserve(room_for_states(self.device, working_bytes(self.config)))
        assert self._memory is not None
        return self._memory

    def warm_up(self) -> None:
        """On a GPU: compile the kernels and capture a graph, so that no request waits for it."""
        if not self.runs_kernels:
            return
        assert isinstance(self.memory, DeviceMemory)
        many = max(WARM_UP_TOKENS, self._tokens_for_large_tiles())
        for tokens in (many, WARM_UP_TOKENS, 2):  # the last in small tiles whatever the experts
            if tokens < self.memory.pool.size * PAGE:
                state = self.new_state()
                self.prefill([0] * tokens, state)
        for rows in (ROWS[0], ROWS[-1]):  # in smaller tiles and in larger ones
            self.verify([0] * rows, state).commit(1)
        greedy(self.decode(0, state).unsqueeze(0))  # sampling runs the same kernels
        assert self._decoder is not None
        with torch.inference_mode():
            measured = self._decoder.capture(state, ROWS)
        if self._offload is None:  # what was measured found all of its experts on the GPU
            self.step_cost = self.step_cost.measured_as(measured)

    def _tokens_for_large_tiles(self) -> int:
        """Tokens of which each expert has so many that its products run in other tiles."""
        from qcn_kernels.moe.tuned import most_many_from

        pairs = most_many_from(self._embedding)
        return -(-pairs * self.config.num_experts // max(1, self.config.num_experts_per_tok))

    def give_back(self) -> None:
        """Give up, on a GPU, what lies there only to save time: graphs, and what the host has."""
        if self._decoder is not None:
            self._decoder.drop_graphs()
        self._memory_of_head = None  # requests under way hold theirs
        if isinstance(self._memory, DeviceMemory):
            self._memory.drop_resident()

    def new_drafter(self) -> MtpDrafter | None:
        """Return what drafts for one request by the head, if that was loaded."""
        head = self.mtp
        if head is None:
            return None

        def memory() -> Memory:
            if self._memory_of_head is None:
                self._memory_of_head = head.new_memory()
            return self._memory_of_head

        return MtpDrafter(head, memory)

    @torch.inference_mode()
    def new_state(self) -> State:
        """Return the state of an empty sequence."""
        return State(self.config, self.memory)

    @torch.inference_mode()
    def prefill_steps(
        self,
        ids: Sequence[int] | Tensor,
        state: State,
        now: Pass | None = None,
        *,
        all_logits: bool = False,
    ) -> Generator[None, None, Tensor]:
        """Read `ids` into `state`, pausing after each layer.

        A caller may run other work between steps, on other states. A generator that is dropped
        before its end leaves `state` unusable: using it raises RuntimeError.

        Args:
            ids: at least one token id below vocab_size.
            state: advanced by len(ids), in place.
            now: the pass that they are, in a text that begins where `state` does. None: they are
                cut every BLOCK tokens, and read in as many passes as it takes.
            all_logits: whether to return the logits of every token, not only of the last.

        Returns:
            fp32 logits [1, vocab], or [T, vocab] with `all_logits`.

        Raises:
            ValueError: no ids, or one that is no token.
            DeviceMemoryError: there is no room for them on the GPU; `state` is unusable.
        """
        hidden = yield from self.hidden_steps(ids, state, now, all_tokens=all_logits)
        return self._projected(hidden)

    @torch.inference_mode()
    def hidden_steps(
        self,
        ids: Sequence[int] | Tensor,
        state: State,
        now: Pass | None = None,
        *,
        all_tokens: bool,
    ) -> Generator[None, None, Tensor]:
        """As `prefill_steps`; returns what the head is applied to, fp32 [T, hidden] or [1, hidden].

        From this an MTP head guesses on.
        """
        tokens = self._checked(ids)
        state.require_usable()
        start = state.position
        todo = [now] if now is not None else self._cut(start, len(tokens))
        hidden = []
        for part in todo:
            state.begin_pass(part.parts, part.kept)
            x = functional.embedding(tokens[part.start - start : part.end - start], self._embedding)
            x = x.to(torch.float32)
            positions = self._positions(torch.arange(part.start, part.end, device=self.device))
            for layer in self._layers:
                x = layer.prefill(x, state, positions)
                self._pace.layer_queued()
                yield
            state.end_pass(part.end - part.start)
            if all_tokens:
                hidden.append(self._normed(x))
        return torch.cat(hidden) if all_tokens else self._normed(x[-1:])

    def _cut(self, start: int, tokens: int) -> Iterable[Pass]:
        end = start + tokens
        blocks = [(at, min(at + BLOCK, end)) for at in range(start, end, BLOCK)]
        return passes(blocks, set(), self.pass_limits)

    def prefill(
        self,
        ids: Sequence[int] | Tensor,
        state: State,
        now: Pass | None = None,
        *,
        all_logits: bool = False,
    ) -> Tensor:
        """Run `prefill_steps` to its end and return its logits."""
        steps = self.prefill_steps(ids, state, now, all_logits=all_logits)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                logits: Tensor = end.value
                return logits

    @torch.inference_mode()
    def decode(self, token: int | Tensor, state: State) -> Tensor:
        """Read one token into `state` by the one-step recurrence; return fp32 logits [vocab].

        On a GPU nothing is waited for; `token` may be a tensor [1] int64 there, of which nobody
        has looked at the value.

        Raises:
            ValueError: `token` is none.
            DeviceMemoryError: there is no room for it on the GPU.
        """
        if isinstance(token, int) and not 0 <= token < self.config.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary")
        self._begin_tokens()
        if self._decoder is not None:
            return self._decoder.step(state, token)
        number = torch.as_tensor([token]) if isinstance(token, int) else token
        state.begin_step()
        with _threads(1 if self._takes_little(state.position) else torch.get_num_threads()):
            logits = self.decode_in(state, number, torch.tensor([state.position]))
        state.end_pass(1)
        return logits

    def decode_in(self, seat: Seat, token: Tensor, position: Tensor) -> Tensor:
        """Run one token [1] at a position [1], both int64; return fp32 logits [vocab].

        For `decode`, and for who keeps the sequence's past meanwhile: the state, or `decoder.py`.
        """
        x = functional.embedding(token, self._embedding)[0].to(torch.float32, copy=True)
        positions = self._positions(position)
        for layer in self._layers:
            x = layer.decode(x, seat, positions)
        return self._logits(x)

    def verify_in(self, seat: DraftSeat, tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Run a few drafted tokens [T] at positions [T], both int64; for `decoder.py`.

        Returns:
            What the head is applied to, [T, hidden], and logits [T, vocab]; fp32.
        """
        x = functional.embedding(tokens, self._embedding).to(torch.float32, copy=True)
        positions = self._positions(numbers)
        for layer in self._layers:
            x = layer.verify(x, seat, positions)
        hidden = self._normed(x)
        return hidden, self._projected(hidden)

    def _begin_tokens(self) -> None:
        """Let experts that lie in host memory come to the device as tokens ask for them."""
        if self._offload is not None and not self._offload.missing_on_cpu:
            for layer in self._layers:
                if isinstance(layer.mlp, SparseMoe) and layer.mlp.elsewhere is not None:
                    layer.mlp.elsewhere.begin_tokens()

    def _takes_little(self, position: int) -> bool:
        return self.config.prefill_operations(position, position + 1) < LITTLE

    @torch.inference_mode()
    def verify(self, ids: Sequence[int] | Tensor, state: State) -> Drafted:
        """Run drafted tokens through the model; agrees with as many calls of `decode` to rounding.

        `state` is unusable until the result's `commit` says how many of them it is to hold.

        Raises:
            ValueError: no ids, or one that is no token; on a GPU more than 16.
            DeviceMemoryError: there is no room for them on the GPU.
        """
        tokens = self._checked(ids)
        self._begin_tokens()
        if self._decoder is not None:
            hidden, logits, draft = self._decoder.verify(state, tokens)
            return Drafted(hidden, logits, draft.commit)
        start = state.position
        state.begin_draft(len(tokens))
        with _threads(1 if self._takes_little(start) else torch.get_num_threads()):
            x = functional.embedding(tokens, self._embedding).to(torch.float32)
            numbers = torch.arange(start, start + len(tokens), device=self.device)
            positions = self._positions(numbers)
            for layer in self._layers:
                x = layer.prefill(x, state, positions)
            hidden = self._normed(x)
            return Drafted(hidden, self._projected(hidden), state.end_draft)

    def _checked(self, ids: Sequence[int] | Tensor) -> Tensor:
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError("prefill needs a sequence of at least one token id")
        low, high = tokens.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"token ids reach from {low} to {high}; the vocabulary does not")
        return tokens.to(self.device)

    def _positions(self, numbers: Tensor) -> Positions:
        """Rotary tables of tokens by their numbers [T] int64."""
        cos, sin = rotary_tables(
            numbers, rotary_dim=self.config.rotary_dim, theta=self.config.rope_theta
        )
        return Positions(cos, sin)

    def _normed(self, x: Tensor) -> Tensor:
        return rms_norm(x, scale=self._norm, eps=self.config.rms_norm_eps)

    def _projected(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden.to(self._head.dtype), self._head).float()

    def _logits(self, x: Tensor) -> Tensor:
        return self._projected(self._normed(x))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads on this thread while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

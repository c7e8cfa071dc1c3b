"""The model: embedding, decoder layers, head; prefill in blocks, decode token by token, verify.

Blocks. A prompt goes through all layers BLOCK tokens at a time, so that what prefill needs beside
weights and state does not grow with the prompt. Block and chunk grid start at the first token of
each call of `prefill`: the same ids read in one call or in several agree to rounding, not bit for
bit. Who needs that cuts the ids where `grid.py` says, and reads block by block.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from qcn_kernels.rms_norm import rms_norm
from qcn_kernels.rotary import rotary_tables
from torch import Tensor
from torch.nn import functional

from qcn_inference.config import ModelConfig
from qcn_inference.grid import BLOCK
from qcn_inference.layers import DecoderLayer, DraftedDeltaNet, Positions
from qcn_inference.mtp import MtpHead
from qcn_inference.state import State

LITTLE = 64_000_000
"""Operations of one token, below which one thread decodes it. To wake and await others for products
of so few rows costs more than it saves: on two quiet cores qcn-nano takes 6.5 ms a token with one
thread and 6.0 to 6.9 with two; beside four busy processes 7 with one and 16 to 200 with two."""


class Drafted:
    """Tokens that were run through the model and are not in `state` yet, which waits for `commit`.

    Nothing of the state was copied: each DeltaNet layer's past is as it was, and the keys and
    values of the tokens stand behind the state's own, where the next ones are written over them.
    """

    def __init__(
        self, hidden: Tensor, logits: Tensor, state: State, parts: Sequence[DraftedDeltaNet]
    ) -> None:
        self.hidden = hidden  # fp32 [T, hidden], what the head was applied to
        self.logits = logits  # fp32 [T, vocab], behind each of the tokens
        self._state = state
        self._parts = parts

    @torch.inference_mode()
    def commit(self, tokens: int) -> None:
        """Read the first `tokens` of them into the state. Called once; 0 to T.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= tokens <= len(self.logits):
            raise ValueError(f"{tokens} of {len(self.logits)} drafted tokens cannot be read")
        for part in self._parts:
            part.commit(tokens)
        self._state.position += tokens
        self._state.end_reading()


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
    ) -> None:
        """Take over weights; `qcn_inference.checkpoint.load_model` is the usual way to a model.

        Args:
            config: the shape of the weights.
            fingerprint: identity of weights and precision; saved states carry it.
            embedding: [vocab, hidden].
            layers: in order; iterated over once for each block or token.
            norm: [hidden] fp32, 1 + weight of the last norm.
            head: [vocab, hidden]; the embedding itself where they are tied.
            mtp: the head that drafts, if it was loaded.
        """
        self.config = config
        self.fingerprint = fingerprint
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self.mtp = mtp

    @torch.inference_mode()
    def new_state(self) -> State:
        """Return the state of an empty sequence."""
        return State(self.config, dtype=self._head.dtype, fingerprint=self.fingerprint)

    @torch.inference_mode()
    def prefill_steps(
        self, ids: Sequence[int] | Tensor, state: State, *, all_logits: bool = False
    ) -> Generator[None, None, Tensor]:
        """Read `ids` into `state`, pausing after each layer.

        A caller may run other work between steps, on other states. A generator that is dropped
        before its end leaves `state` unusable: using it raises RuntimeError.

        Args:
            ids: at least one token id below vocab_size.
            state: advanced by len(ids), in place.
            all_logits: whether to return the logits of every token, not only of the last.

        Returns:
            fp32 logits [1, vocab], or [T, vocab] with `all_logits`.

        Raises:
            ValueError: no ids, or one that is no token.
        """
        hidden = yield from self.hidden_steps(ids, state, all_tokens=all_logits)
        return self._projected(hidden)

    @torch.inference_mode()
    def hidden_steps(
        self, ids: Sequence[int] | Tensor, state: State, *, all_tokens: bool
    ) -> Generator[None, None, Tensor]:
        """As `prefill_steps`; returns what the head is applied to, fp32 [T, hidden] or [1, hidden].

        From this an MTP head guesses on.
        """
        tokens = self._checked(ids)
        state.begin_reading(len(tokens))
        hidden = []
        for block in torch.split(tokens, BLOCK):
            x = functional.embedding(block, self._embedding).to(torch.float32)
            cos, sin = self._rotary(state.position, len(block))
            positions = Positions(cos.unsqueeze(1), sin.unsqueeze(1))
            for layer in self._layers:
                x = layer.prefill(x, state, positions)
                yield
            state.position += len(block)
            if all_tokens:
                hidden.append(self._normed(x))
        state.end_reading()
        return torch.cat(hidden) if all_tokens else self._normed(x[-1:])

    def prefill(
        self, ids: Sequence[int] | Tensor, state: State, *, all_logits: bool = False
    ) -> Tensor:
        """Run `prefill_steps` to its end and return its logits."""
        steps = self.prefill_steps(ids, state, all_logits=all_logits)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                logits: Tensor = end.value
                return logits

    @torch.inference_mode()
    def decode(self, token: int, state: State) -> Tensor:
        """Read one token into `state` by the one-step recurrence; return fp32 logits [vocab].

        Raises:
            ValueError: `token` is none.
        """
        if not 0 <= token < self.config.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary")
        state.begin_reading(1)
        with _threads(1 if self._takes_little(state.position) else torch.get_num_threads()):
            x = self._embedding[token].to(torch.float32, copy=True)  # layers add to it in place
            cos, sin = self._rotary(state.position, 1)
            positions = Positions(cos, sin)
            for layer in self._layers:
                x = layer.decode(x, state, positions)
            state.position += 1
            state.end_reading()
            return self._logits(x)

    def _takes_little(self, position: int) -> bool:
        return self.config.prefill_operations(position, position + 1) < LITTLE

    @torch.inference_mode()
    def verify(self, ids: Sequence[int] | Tensor, state: State) -> Drafted:
        """Run drafted tokens through the model; agrees with as many calls of `decode` to rounding.

        `state` is unusable until the result's `commit` says how many of them it is to hold.

        Raises:
            ValueError: no ids, or one that is no token.
        """
        tokens = self._checked(ids)
        state.begin_reading(len(tokens))
        with _threads(1 if self._takes_little(state.position) else torch.get_num_threads()):
            x = functional.embedding(tokens, self._embedding).to(torch.float32)
            cos, sin = self._rotary(state.position, len(tokens))
            positions = Positions(cos.unsqueeze(1), sin.unsqueeze(1))
            parts = []
            for layer in self._layers:
                x, part = layer.verify(x, state, positions)
                if part is not None:
                    parts.append(part)
            hidden = self._normed(x)
            return Drafted(hidden, self._projected(hidden), state, parts)

    def _checked(self, ids: Sequence[int] | Tensor) -> Tensor:
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError("prefill needs a sequence of at least one token id")
        low, high = tokens.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"token ids reach from {low} to {high}; the vocabulary does not")
        return tokens

    def _rotary(self, start: int, tokens: int) -> tuple[Tensor, Tensor]:
        return rotary_tables(
            torch.arange(start, start + tokens),
            rotary_dim=self.config.rotary_dim,
            theta=self.config.rope_theta,
        )

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

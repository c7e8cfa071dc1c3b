"""The multi-token-prediction head: one more decoder layer, which guesses the token after the next.

Where it is from: DeepSeek-V3 (arXiv 2412.19437, section 2.2), as Qwen3-Next and Qwen3.5 store it in
`mtp.*`. With h_i what the model's own head is applied to behind token t_i, and E the embedding:

    x_i = W [norm_e(E t_{i+1}) | norm_h(h_i)]      in_proj
    y_i = norm(layer(x)_i)                          causal over the x before it
    logits of t_{i+2} = H y_i                       H: the model's own head

The model has one such layer; for a token further it is applied again, to y_i in the place of
h_{i+1} and to the token that was just guessed.

What it has seen. The layer attends, so it must be shown the tokens before. It is shown those of one
request, from where `MtpDrafter.see` begins, and not the context in front, which comes from the
state cache: h_i knows all of that already, and a guess may be wrong at no cost but its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from qcn_kernels.choice import uses_triton
from qcn_kernels.rms_norm import rms_norm
from qcn_kernels.rotary import rotary_tables
from torch import Tensor
from torch.nn import functional

from qcn_inference.config import ModelConfig
from qcn_inference.device_memory import DeviceBudget, DeviceMemory
from qcn_inference.layers import DecoderLayer, Positions
from qcn_inference.memory import HostMemory, Memory
from qcn_inference.pages import PAGE
from qcn_inference.state import State

MOST_TOKENS = 1 << 15
"""That the head may be shown on a GPU, of all requests under way together, what they generate
included: 64 MiB of an 80 B model's keys and values. Where that is full, nothing is guessed."""


@dataclass(frozen=True, slots=True)
class MtpHead:
    """The weights of the head, and of the model what it shares."""

    config: ModelConfig  # of a model that has this layer alone
    embedding: Tensor  # [vocab, hidden], the model's
    embedding_norm: Tensor  # [hidden] fp32, 1 + weight
    hidden_norm: Tensor  # [hidden] fp32, 1 + weight
    in_proj: Tensor  # [hidden, 2 · hidden]: of the embedding | of the hidden state
    layer: DecoderLayer
    norm: Tensor  # [hidden] fp32, 1 + weight
    head: Tensor  # [vocab, hidden], the model's

    def new_memory(self) -> Memory:
        """Take memory for what the layer keeps of all requests that it drafts for."""
        if not uses_triton(self.head):
            return HostMemory(self.config, self.head.dtype)
        budget = DeviceBudget(pages=MOST_TOKENS // PAGE, checkpoint_bytes=0)
        return DeviceMemory(self.config, self.head.dtype, self.head.device, budget)

    def new_state(self, memory: Memory) -> State:
        """Return what the layer keeps of an empty sequence: keys and values, in `memory`."""
        return State(self.config, memory)

    @torch.inference_mode()
    def read(self, hidden: Tensor, following: Sequence[int] | Tensor, state: State) -> Tensor:
        """Read T tokens.

        Args:
            hidden: [T, hidden] fp32, the model's hidden state behind each.
            following: [T] ids, the token that followed each.
            state: of the tokens before; advanced by T, in place.

        Returns:
            [T, hidden] fp32: what the guess of the token after `following` is made from.
        """
        eps = self.config.rms_norm_eps
        ids = torch.as_tensor(following, device=self.embedding.device)
        embedded = functional.embedding(ids, self.embedding).to(torch.float32)
        both = torch.cat(
            (
                rms_norm(embedded, scale=self.embedding_norm, eps=eps),
                rms_norm(hidden, scale=self.hidden_norm, eps=eps),
            ),
            dim=-1,
        )
        x = functional.linear(both.to(self.in_proj.dtype), self.in_proj).to(torch.float32)
        state.begin_pass([len(ids)], [])
        numbers = torch.arange(state.position, state.position + len(ids), device=ids.device)
        cos, sin = rotary_tables(
            numbers,
            rotary_dim=self.config.rotary_dim,
            theta=self.config.rope_theta,
        )
        x = self.layer.prefill(x, state, Positions(cos, sin))
        state.end_pass(len(ids))
        return rms_norm(x, scale=self.norm, eps=eps)

    @torch.inference_mode()
    def logits(self, read: Tensor) -> Tensor:
        """Return fp32 logits [T, vocab] of the guesses, from what `read` returned."""
        return functional.linear(read.to(self.head.dtype), self.head).float()


class MtpDrafter:
    """Guesses how one request's text goes on; belongs to the model's thread."""

    def __init__(self, head: MtpHead, memory: Callable[[], Memory]) -> None:
        """Begin with nothing seen; `memory`, shared by all requests, is asked for when needed."""
        self._head = head
        self._memory = memory
        self._state: State | None = None
        self._last: Tensor | None = None

    def see(self, hidden: Tensor, following: Sequence[int]) -> None:
        """Take in tokens that are certain.

        Args:
            hidden: [T, hidden] fp32, the model's hidden state behind each.
            following: the token that followed each; the last is the newest of the text.

        Raises:
            DeviceMemoryError: there is no room for them.
        """
        if self._state is None:
            self._state = self._head.new_state(self._memory())
        self._last = self._head.read(hidden, following, self._state)[-1:]

    def propose(self, count: int) -> tuple[int, ...]:
        """Return the likeliest `count` tokens behind those seen; none where none were.

        What was seen stays as it was.

        Raises:
            DeviceMemoryError: there is no room for the guesses.
        """
        if self._last is None or self._state is None:
            return ()
        seen, read = self._state.position, self._last
        tokens: list[int] = []
        while True:
            tokens.append(int(self._head.logits(read).argmax()))
            if len(tokens) == count:
                break
            read = self._head.read(read, tokens[-1:], self._state)
        self._state.position = seen  # keys and values behind it are written over
        return tuple(tokens)

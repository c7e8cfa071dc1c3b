"""Choosing the next token, and knowing when to stop."""

import math
from typing import TYPE_CHECKING

import torch
from qcn_kernels.choice import uses_triton
from qcn_kernels.sampling import greedy, sample
from torch import Tensor

from qcn_inference.host_copies import Arriving
from qcn_inference.request import SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from qcn_inference.model import Drafted

# Below this, dividing by the temperature overflows fp32 long before it changes the choice.
GREEDY_BELOW = 1e-4


class Sampler:
    """Draws tokens for one request. The same seed and logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generators: dict[torch.device, torch.Generator] = {}
        self._before: tuple[torch.Generator, Tensor] | None = None  # the last draw, and its state

    def choose(self, logits: Tensor) -> int:
        """One token id from fp32 logits [V]."""
        return int(self.draw(logits))

    def choose_behind(self, drafted: "Drafted", row: int) -> int:
        """One token id from the logits behind one of a draft's tokens.

        Greedily it is among the likeliest ones, for which a device is awaited once for the draft.
        """
        if self._params.temperature < GREEDY_BELOW:
            return drafted.likeliest[row]
        return Arriving(self.draw(drafted.logits[row])).wait()

    def draw(self, logits: Tensor) -> Tensor:
        """One token id, [1] int64, from fp32 logits [V], on their device, which is not waited for.

        Greedy takes the first of equals.
        """
        params = self._params
        if params.temperature >= GREEDY_BELOW:
            generator = self._generator(logits.device)
            self._before = generator, generator.get_state()
        if params.min_p > 0 and params.temperature >= GREEDY_BELOW:
            least = logits.max() + params.temperature * math.log(params.min_p)
            logits = logits.masked_fill(logits < least, -math.inf)
        if uses_triton(logits):
            return self._drawn_by_kernels(logits.unsqueeze(0))
        if params.temperature < GREEDY_BELOW:
            return torch.argmax(logits, dim=-1, keepdim=True)
        count = min(params.top_k, len(logits)) if params.top_k > 0 else len(logits)
        kept, ids = torch.topk(logits / params.temperature, count)  # descending
        probabilities = torch.softmax(kept, dim=-1)
        # The smallest set whose mass reaches top_p: a token stays while the mass before it is short
        # of that.
        before = torch.cumsum(probabilities, dim=-1) - probabilities
        probabilities.masked_fill_((before >= params.top_p) & (before > 0), 0)
        drawn = torch.multinomial(probabilities, 1, generator=self._generator(logits.device))
        return ids[drawn]

    def _drawn_by_kernels(self, logits: Tensor) -> Tensor:
        params = self._params
        if params.temperature < GREEDY_BELOW:
            return greedy(logits)
        uniform = torch.rand(1, generator=self._generator(logits.device), device=logits.device)
        return sample(
            logits,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            uniform=uniform,
        )

    def take_back(self) -> None:
        """Undo the last draw, whether it returned or raised: the next one is of its numbers."""
        if self._before is not None:
            generator, state = self._before
            generator.set_state(state)

    def _generator(self, device: torch.device) -> torch.Generator:
        """The source of a device's random numbers, seeded when it is first used."""
        if device not in self._generators:
            generator = self._generators[device] = torch.Generator(device)
            if self._params.seed is None:
                generator.seed()
            else:
                generator.manual_seed(self._params.seed)
        return self._generators[device]


def token_logprobs(logits: Tensor, token: int, count: int) -> TokenLogprobs:
    """The log-probabilities of `token` and of the `count` most probable ones.

    `logits` are fp32 [V], as the model gave them.
    """
    values = torch.log_softmax(logits, dim=-1)
    top, ids = torch.topk(values, min(count, len(values)))
    return TokenLogprobs(
        token, float(values[token]), tuple(zip(ids.tolist(), top.tolist(), strict=True))
    )


class StopStrings:
    """Finds stop strings in text that arrives in pieces, wherever the pieces' borders lie.

    The stop string that is complete first ends the text; of several that end together, the longest.
    Text that may yet turn out to be the start of one is held back.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what may be shown, and the stop string met.

        After a stop string nothing may follow.
        """
        text, self._held = self._held + text, ""
        matches = [
            (at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0
        ]
        if matches:
            _, start, stop = min(matches)
            return text[:start], stop
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """The text that was held back, once no more will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` without completing it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0

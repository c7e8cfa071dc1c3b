"""Several tokens from one step of the model: what was drafted is verified all at once.

Two sources of drafts. A lookup in the prompt (`lookup.py`) costs nothing and is right where a text
repeats itself. The checkpoint's own head for multi-token prediction (`mtp.py`), where there is one,
guesses anywhere, and each of its guesses costs a layer and the model's head.

The rule. A token is chosen from the model's logits as ever, one after the other, by the request's
own sampler. While the chosen token is the one that was drafted, the logits behind it are there
already. Where it is another, the rest of the draft is dropped. So the choice never depends on the
draft: with temperature, top-k and top-p every token comes from the distribution it would come from
without (for a draft that is certain of itself this is the acceptance rule of arXiv 2211.17192: the
drafted token is kept with its probability, else one of the others is drawn with theirs), and greedy
keeps exact matches. One draw is made for each token, so the same seed gives the same text, as far
as `Model.verify` and `Model.decode` agree: to rounding. Two tokens whose chances are so near that
rounding decides may change places.

How long a draft is. A step over more rows costs more, whether kept or not (`step_cost.py`).
What they bring depends on how often proposals come true, which is reckoned for each length of match
apart: three tokens alike say little, thirty-two almost everything. Each proposal counts, drafted
or not: the next token tells whether it was right, so nothing need be tried to find out that it
would pay again. The expected tokens for each cost are compared, among `ROWS`, with those of a plain
step. On text that repeats nothing no draft is made, and what remains is the lookup.

Nothing here looks at a clock: the same request is drafted alike each time, so that its answer is
the same to the last bit. What steps cost is measured before the first request, if at all.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from qcn_inference.errors import DeviceMemoryError
from qcn_inference.host_copies import Arriving
from qcn_inference.lookup import GRAM, Lookup
from qcn_inference.model import Drafted, Model
from qcn_inference.sampling import Sampler
from qcn_inference.state import State
from qcn_inference.step_cost import HEAD_PRIOR, HEAD_ROWS, ROWS, WORTH, expected_by_head

MATCHES = (GRAM, 5, 9, 17, 32)
"""Lengths of match from which on proposals are counted together."""
PRIOR = (0.5, 0.65, 0.8, 0.9, 0.95)
"""How often a proposal comes true, for each of MATCHES, before anything is known of a request: of
9,817 tokens typed in this repository's history (`python -m benchmarks lookup` takes them again)."""
RATE = 1 / 16
"""Weight of the newest proposal in that: what was more than some 30 ago is forgotten."""


class Acceptance:
    """How often proposals have come true in one request."""

    def __init__(self) -> None:
        self._shares = list(PRIOR)
        self._head_share = HEAD_PRIOR

    def of(self, match: int) -> float:
        """The chance of the token that is proposed behind so long a match."""
        return self._shares[bisect_right(MATCHES, match) - 1]

    def count(self, match: int, *, came_true: bool) -> None:
        """Take in what became of a proposal."""
        place = bisect_right(MATCHES, match) - 1
        self._shares[place] += RATE * (came_true - self._shares[place])

    def expected_tokens(self, match: int, rows: int) -> float:
        """Tokens that a step over so many rows brings; each that comes true lengthens the match."""
        tokens = chance = 1.0
        for drafted in range(rows - 1):
            chance *= self.of(match + drafted)
            tokens += chance
        return tokens

    def count_by_head(self, *, came_true: bool) -> None:
        """Take in what became of a guess of the head."""
        self._head_share += RATE * (came_true - self._head_share)

    def expected_by_head(self, rows: int) -> float:
        """Tokens that a step over so many rows brings, the head's guesses behind the first."""
        return expected_by_head(self._head_share, rows)


class Speculation:
    """What is behind each chosen token of one request, from as few steps of the model as may be."""

    def __init__(self, model: Model, state: State, lookup: Lookup) -> None:
        """Go on from `state`, which holds what `lookup` was made of; both become its own."""
        self.drafted = 0
        """Tokens that were proposed and run through the model."""
        self.accepted = 0
        """Those of them that were chosen."""
        self._model = model
        self._state = state
        self._lookup = lookup
        self._cost = model.step_cost
        self._acceptance = Acceptance()
        self._next: int | None = None  # what the lookup proposes
        # None where there is no head, or none that is worth its cost in this request.
        self._head = model.new_drafter()
        self._by_head = False  # whether the draft is the head's
        self._draft: Sequence[int] = ()
        self._verified: Drafted | None = None
        self._taken = 0  # of the draft
        self._ahead: Tensor | None = None  # logits behind the token that was chosen last
        self._propose()

    def choose(self, sampler: Sampler, logits: Tensor, wanted: int) -> int:
        """Choose a token from the logits returned last, `wanted` more at most behind it.

        On a GPU, where no draft is in sight, the step behind the token is queued before anybody
        knows which it is: the device goes on while the host looks at it. Where the text ends with
        this token, one step was for nothing, and the state holds one token more than was shown.
        """
        if self._verified is not None:
            return sampler.choose_behind(self._verified, self._taken)
        token = sampler.draw(logits)
        arriving = Arriving(token)
        may_run_ahead = self._model.runs_ahead and wanted > 0 and self._head is None
        if may_run_ahead and not self._drafted(wanted):
            self._ahead = self._model.decode(token, self._state)
        return arriving.wait()

    def after(self, token: int, wanted: int) -> Tensor:
        """Return the logits behind a token that was chosen.

        Args:
            token: chosen from the logits returned last, or from those behind the state's text.
            wanted: how many more tokens may be chosen, this call's included; at least 1.
        """
        if self._next is not None:
            self._acceptance.count(self._lookup.match, came_true=token == self._next)
        self._lookup.push(token)
        self._propose()
        if self._ahead is not None:
            logits, self._ahead = self._ahead, None
            return logits
        if self._verified is not None:
            if self._taken < len(self._draft) and token == self._draft[self._taken]:
                self._taken += 1
                self.accepted += 1
                return self._verified.logits[self._taken]
            self._end_step(self._verified, token)
        self._draft, self._taken = self._drafted(wanted), 0
        # For the head a step is verified even without a draft: that tells the hidden state.
        if not self._draft and (self._head is None or wanted == 1):
            self._verified = None
            return self._model.decode(token, self._state)
        self.drafted += len(self._draft)
        self._verified = self._model.verify([token, *self._draft], self._state)
        return self._verified.logits[0]

    def _propose(self) -> None:
        self._next = next(iter(self._lookup.proposed(1)), None)

    def _end_step(self, verified: Drafted, token: int) -> None:
        """Take what was chosen of a step into the state; `token` is what followed it."""
        tokens, taken = self._draft, self._taken
        verified.commit(1 + taken)
        if self._head is not None:
            if self._by_head:
                for place in range(min(taken + 1, len(tokens))):
                    self._acceptance.count_by_head(came_true=place < taken)
            try:
                self._head.see(verified.hidden[: 1 + taken], [*tokens[:taken], token])
            except DeviceMemoryError:  # what there is for guesses, other requests hold
                self._head = None

    def _drafted(self, wanted: int) -> Sequence[int]:
        """The tokens to verify, by which a step promises most tokens for what it takes."""
        found = self._lookup.proposed(min(wanted, ROWS[-1]) - 1)
        by_match = partial(self._acceptance.expected_tokens, self._lookup.match)
        rows, promise = self._best(ROWS, len(found) + 1, by_match, 0.0)
        self._by_head = False
        if self._head is not None and wanted > 1:
            guessing = self._cost.guessing(self._state.position)
            by_head = self._acceptance.expected_by_head
            rows_by_head, promise_by_head = self._best(HEAD_ROWS, wanted, by_head, guessing)
            if rows_by_head == 1:
                self._head = None
            elif promise_by_head > promise:
                try:
                    guessed = self._head.propose(rows_by_head - 1)
                except DeviceMemoryError:
                    self._head = None
                else:
                    self._by_head = True
                    return guessed
        return found[: rows - 1]

    def _best(
        self, sizes: Sequence[int], most: int, expected: Callable[[int], float], guessing: float
    ) -> tuple[int, float]:
        """Return the rows that bring most tokens for their cost, and how many; 1: no draft."""
        best, promise = 1, WORTH
        for rows in sizes:
            if rows > most:
                break
            cost = self._cost.verifying(rows, self._state.position) + (rows - 1) * guessing
            if expected(rows) / cost > promise:
                best, promise = rows, expected(rows) / cost
        return best, promise

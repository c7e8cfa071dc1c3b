"""The search for a fix: the rule's own first, then a model, in two wordings.

"No acceptable fix found" is an ordinary outcome: what was tried and why it was refused is kept.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from qcn_indexer.tree import tree_of

from qcn_lsp.engine.answers import Chats, MalformedAnswer, ask_for_block
from qcn_lsp.engine.messages import EngineUnavailable, NoChatModel
from qcn_lsp.fixes.answer import candidate_of
from qcn_lsp.fixes.candidate import Candidate, Subject, deterministic
from qcn_lsp.fixes.evidence import Evidence
from qcn_lsp.fixes.findings import Scan
from qcn_lsp.fixes.ladder import quickly, without_tests
from qcn_lsp.fixes.place import Place, place_of
from qcn_lsp.fixes.prompt import (
    LONGEST_FUNCTION,
    Failed,
    Surroundings,
    exploit_request,
    fix_request,
)
from qcn_lsp.fixes.refusal import Refusal
from qcn_lsp.fixes.trial import EXPLOITABLE, Trials, UnfitExploit
from qcn_lsp.proving.outcomes import ProvingError

Report = Callable[[str], None]
CAPABLE = "this needs a capable model: one that follows instructions"


@dataclass(frozen=True)
class Tried:
    """A candidate that was refused, or an answer that held none."""

    origin: str
    refusal: Refusal


@dataclass(frozen=True)
class Accepted:
    """A candidate and what it has shown."""

    candidate: Candidate
    evidence: Evidence


@dataclass(frozen=True)
class Outcome:
    """What came of a search: a fix or none, what was refused, and why no model was asked."""

    accepted: Accepted | None
    tried: tuple[Tried, ...] = ()
    no_model: str = ""


class Search:
    """The means to find a fix: `chats` and `trials` are None where they may not be used.

    `no_model`, `no_tests` say why. `exploit`: an exploit test is asked for as well.
    """

    def __init__(
        self,
        scan: Scan,
        *,
        chats: Chats | None = None,
        no_model: str = "",
        trials: Trials | None = None,
        no_tests: str = "they were not asked for",
        exploit: bool = False,
        report: Report = lambda activity: None,
    ) -> None:
        self._scan, self._chats, self._no_model = cache(scan), chats, no_model
        self._trials, self._no_tests = trials, no_tests
        self._exploit, self._report = exploit, report

    async def run(self, subject: Subject, around: Surroundings | None = None) -> Outcome:
        """Return the first candidate that is accepted; raises what cancelling raises."""
        around = around or Surroundings()
        tried: list[Tried] = []
        own = deterministic(subject)
        if own is not None:
            self._report("Checking the rule's own fix")
            judged = await self._judged(subject, own, around)
            if isinstance(judged, Evidence):
                return Outcome(Accepted(own, judged))
            tried.append(Tried(own.origin, judged))
        try:
            accepted = await self._ask(subject, around, tried)
        except NoChatModel as problem:
            return Outcome(None, tuple(tried), f"{_sentence(problem)}; {CAPABLE}")
        except EngineUnavailable as problem:
            return Outcome(None, tuple(tried), str(problem))
        no_model = "" if accepted is not None or self._chats is not None else self._no_model
        return Outcome(accepted, tuple(tried), no_model)

    async def _ask(
        self, subject: Subject, around: Surroundings, tried: list[Tried]
    ) -> Accepted | None:
        """Ask the model, and once more in other words; adds what was refused to `tried`."""
        if self._chats is None:
            return None
        place = place_of(subject, await asyncio.to_thread(tree_of, subject.path, subject.text))
        if place.end - place.start > LONGEST_FUNCTION:
            self._no_model = f"the function is longer than {LONGEST_FUNCTION} characters"
            raise EngineUnavailable(self._no_model)
        failed: Failed | None = None
        for number in (1, 2):
            self._report("Asking the model" if number == 1 else "Asking in other words")
            answer = await self._chats.chat(fix_request(subject, place, around, failed))
            candidate = candidate_of(answer, subject, place, number)
            self._report("Checking what it wrote")
            judged = candidate
            if isinstance(candidate, Candidate):
                result = await self._judged(subject, candidate, around)
                if isinstance(result, Evidence):
                    return Accepted(candidate, result)
                judged = result
            assert isinstance(judged, Refusal)
            tried.append(Tried(f"the model's answer {number}", judged))
            failed = Failed(answer.text, judged)
        return None

    async def _judged(
        self, subject: Subject, candidate: Candidate, around: Surroundings
    ) -> Evidence | Refusal:
        """Have a candidate climb as far as the means allow."""
        judged = await asyncio.to_thread(quickly, subject, candidate, self._scan)
        if isinstance(judged, Refusal):
            return judged
        if self._trials is None:
            return without_tests(judged, self._no_tests)
        self._report("Running the project's tests")
        tested = await self._trials.tested(candidate, judged)
        if isinstance(tested, Refusal) or not self._exploit:
            return tested
        return await self._exploited(subject, candidate, tested, around)

    async def _exploited(
        self, subject: Subject, candidate: Candidate, evidence: Evidence, around: Surroundings
    ) -> Evidence | Refusal:
        """Have the model write an exploit test, and try it on both texts."""
        assert self._trials is not None
        why = "" if self._chats is not None else self._no_model
        if subject.path.suffix not in EXPLOITABLE:
            why = "exploit tests are written for Python and JavaScript alone"
        if self._chats is None or why:
            return _not_exploited(evidence, why)
        self._report("Asking for an exploit test")
        place = place_of(subject, tree_of(subject.path, subject.text))
        request = exploit_request(subject, place, _fixed(subject, place, candidate), around)
        try:
            block = await ask_for_block(self._chats, request)
            self._report("Running the exploit test")
            return await self._trials.exploited(candidate, evidence, block.text)
        except (UnfitExploit, MalformedAnswer, ProvingError, EngineUnavailable) as problem:
            return _not_exploited(evidence, _sentence(problem))


def _fixed(subject: Subject, place: Place, candidate: Candidate) -> str:
    """The part as the candidate has it: the same part, longer or shorter at its end."""
    behind = len(subject.text) - place.end
    grown = len(candidate.text) - behind
    return candidate.text[place.start : grown]


def _not_exploited(evidence: Evidence, why: str) -> Evidence:
    told = f"an exploit test: {why}"
    return replace(evidence, unchecked=(*evidence.unchecked, told))


def _sentence(problem: Exception) -> str:
    return str(problem).rstrip(".")

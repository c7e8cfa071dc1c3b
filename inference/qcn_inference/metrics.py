"""What the engine counts, as Prometheus text. Names begin with `qcn_`; units stand in the names."""

from collections.abc import Callable
from functools import partial

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from qcn_inference.request import Finished, Refreshed

TIERS = ("memory", "disk")


class Metrics:
    """One engine's counters. Counting is safe from any thread."""

    def __init__(
        self,
        *,
        queue_length: Callable[[], int],
        cache_bytes: Callable[[], dict[str, int]],
        state: Callable[[], str],
        states: tuple[str, ...],
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self._prompt_tokens = Counter(
            "qcn_prompt_tokens", "Prompt tokens, cached ones included", registry=registry
        )
        self._cached_tokens = Counter(
            "qcn_cached_tokens", "Prompt tokens that were not read again", registry=registry
        )
        self._generated_tokens = Counter(
            "qcn_generated_tokens", "Tokens generated", registry=registry
        )
        self._drafted_tokens = Counter(
            "qcn_drafted_tokens", "Tokens that prompt lookup proposed", registry=registry
        )
        self._accepted_tokens = Counter(
            "qcn_accepted_tokens", "Drafted tokens that were generated", registry=registry
        )
        self._requests = Counter(
            "qcn_requests", "Completion requests, by how they ended", ["outcome"], registry=registry
        )
        self._prefill = Counter(
            "qcn_prefill_seconds", "Wall time from start to first logits", registry=registry
        )
        self._decode = Counter(
            "qcn_decode_seconds", "Wall time from first logits to end", registry=registry
        )
        self._context_tokens = Counter(
            "qcn_context_tokens",
            "Tokens of refreshed contexts, by whether they were known already",
            ["kind"],
            registry=registry,
        )
        self._restored_tokens = Counter(
            "qcn_context_tokens_restored", "Those that were known from disk", registry=registry
        )
        cached = Gauge(
            "qcn_cache_bytes", "States of texts that were read", ["tier"], registry=registry
        )
        for tier in TIERS:
            cached.labels(tier).set_function(partial(_of_tier, cache_bytes, tier))
        queue = Gauge("qcn_queue_length", "Requests waiting or running", registry=registry)
        queue.set_function(queue_length)
        states_gauge = Gauge(
            "qcn_state", "1 for the state that the engine is in", ["state"], registry=registry
        )
        for name in states:
            states_gauge.labels(name).set_function(partial(_is_state, state, name))
        memory = Gauge(
            "qcn_resident_memory_bytes", "Resident memory of the process", registry=registry
        )
        memory.set_function(lambda: psutil.Process().memory_info().rss)

    def finished(self, finished: Finished) -> None:
        """Count a completion that ran to its end."""
        self.ended(finished.reason)
        self._prompt_tokens.inc(finished.prompt_tokens)
        self._cached_tokens.inc(finished.cached_tokens)
        self._generated_tokens.inc(finished.completion_tokens)
        self._drafted_tokens.inc(finished.drafted_tokens)
        self._accepted_tokens.inc(finished.accepted_tokens)
        self._prefill.inc(finished.prompt_seconds)
        self._decode.inc(finished.predicted_seconds)

    def refreshed(self, refreshed: Refreshed) -> None:
        """Count a refresh of a context."""
        self._context_tokens.labels("reused").inc(refreshed.reused)
        self._context_tokens.labels("computed").inc(refreshed.computed)
        self._restored_tokens.inc(refreshed.restored)

    def ended(self, outcome: str) -> None:
        """Count a request by its outcome."""
        self._requests.labels(outcome).inc()

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


def _is_state(state: Callable[[], str], name: str) -> float:
    return float(state() == name)


def _of_tier(cache_bytes: Callable[[], dict[str, int]], tier: str) -> float:
    return float(cache_bytes().get(tier, 0))

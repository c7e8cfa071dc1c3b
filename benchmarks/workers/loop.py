"""The loop of a worker that is written in Python."""

import json
import os
import sys
import time
from typing import Protocol


class Runtime(Protocol):
    """A loaded model; both calls are greedy and return the most likely next token."""

    def prefill(self, ids: list[int], variant: str) -> int:
        """Read a prompt from an empty state."""
        ...

    def decode(self, token: int) -> int:
        """Read one token more."""
        ...


def serve(runtime: Runtime) -> None:
    """Answer requests until stdin ends.

    Request: `prompt` (token ids), `steps` (tokens to decode), `forced` (the tokens to decode, or
    null for the model's own choices), `variant`.
    Answer: `tokens` (steps + 1 choices of the model, the first after the prompt), and wall and CPU
    seconds of both parts.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        forced = request["forced"]
        began = _clocks()
        tokens = [runtime.prefill(request["prompt"], request["variant"])]
        read = _clocks()
        for step in range(request["steps"]):
            tokens.append(runtime.decode(forced[step] if forced else tokens[-1]))
        ended = _clocks()
        answer = {
            "tokens": tokens,
            "prefill_seconds": read[0] - began[0],
            "decode_seconds": ended[0] - read[0],
            "prefill_cpu_seconds": read[1] - began[1],
            "decode_cpu_seconds": ended[1] - read[1],
        }
        print(json.dumps(answer), file=answers, flush=True)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()

"""How completions have gone: kept in memory only, for nobody but the user to see."""

from collections import deque
from dataclasses import dataclass, field

LATENCIES = 60  # of the last completions: a minute or two of typing


@dataclass(slots=True)
class Tally:
    """Suggestions since the server's start, by what the client says became of them.

    `milliseconds`: how long the engine's last answers took. `refused`: why the last request for a
    suggestion was not taken to the model (a secret, an excluded language), without the file's text.
    """

    accepted: int = 0
    rejected: int = 0
    milliseconds: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    refused: str | None = None

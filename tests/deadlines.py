"""How long a test waits for what should come at once. It ends a hang, and nothing is judged by it.

Long, because a machine may be slow, busy, or both: what took two seconds at a desk has taken a
minute beside eight other processes on two cores. Shorter than pytest's own limit, so that the
test that hangs says what it was waiting for.
"""

DEADLINE_SECONDS = 300.0

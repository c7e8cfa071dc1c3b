"""How far the first reading of a workspace folder is, on the editor's progress bar.

First its files are found, ranked and laid out, here; then the engine reads their tokens, which
takes most of the time and fills the bar. The engine is asked now and then, until it has read all.
"""

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcn_lsp.engine.dialects import OwnEngine
    from qcn_lsp.status import ProgressBar

PAUSE_SECONDS = 1.0  # between two looks at how far the engine is


async def show_reading(engine: "OwnEngine", name: str, bar: "ProgressBar") -> None:
    """Show how far the engine has read the context of this name, until it reads it no more.

    Raises `EngineUnavailable` where the engine is gone, or has lost the context.
    """
    while (view := await engine.describe_context(name)).get("reading"):
        bar.show(*how_far(view))
        await asyncio.sleep(PAUSE_SECONDS)


def how_far(view: dict[str, Any]) -> tuple[int, str]:
    """Return the percentage of a context that is read, and the files and tokens in words."""
    tokens, segments = view["tokens"], view["segments"]
    read = max(view["checkpoints"], default=0)
    files = sum(segment["start"] + segment["tokens"] <= read for segment in segments)
    words = f"{files:,} of {len(segments):,} files, {read:,} of {tokens:,} tokens"
    return 100 * read // tokens if tokens else 0, words

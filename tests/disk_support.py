"""What the tests of the disk cache share: an engine's insides, opened and left again and again."""

import hashlib
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

from deadlines import DEADLINE_SECONDS as DEADLINE_SECONDS
from engine_support import finish
from qcn_inference.checkpoint import load_model
from qcn_inference.disk_cache import DiskCache, fingerprint_of
from qcn_inference.disk_entry import EntryFormat
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid, as_array
from qcn_inference.model import Model
from qcn_inference.request import Refreshed
from qcn_inference.state_cache import StateCache
from qcn_inference.tokenizer import Tokenizer
from torch import Tensor

REPO = "shop"


def new_session(
    model: Model,
    tokenizer: Tokenizer,
    root: Path,
    *,
    memory: int = 2**30,
    disk: int | None = 2**30,
    salt: bytes = b"",
) -> Loaded:
    """An engine as it is after its start, with what is on disk; `salt` makes it another model's."""
    fingerprint = hashlib.sha256(fingerprint_of(model, tokenizer) + salt).digest()
    cache = StateCache(model.config, Grid(tokenizer), memory)
    entries = EntryFormat(fingerprint, model.new_state())
    return Loaded(model, tokenizer, cache, DiskCache(root, entries, disk))


def refresh(
    session: Loaded, ids: Sequence[int], keep: Sequence[int], *, repo: str = REPO, name: str = "c"
) -> Refreshed:
    """Read a layout as the service does."""
    tokens = as_array(ids)
    return finish(session.refresh(tokens, [*keep, len(ids)], context=name, repo=repo))


def flush(session: Loaded) -> None:
    """Wait until what was read is on disk, and look at the books."""
    assert session.disk is not None
    assert session.disk.flush(DEADLINE_SECONDS)
    session.cache.check_integrity()
    session.disk.check_integrity()


def leave(session: Loaded) -> None:
    """End a session as the engine does."""
    flush(session)
    assert session.disk is not None
    session.disk.close(DEADLINE_SECONDS)


def logits_behind(session: Loaded, ids: Sequence[int], tail: Sequence[int]) -> Tensor:
    """The logits of a completion whose own text is `tail`."""
    prompt = as_array([*ids, *tail])
    reading = session.cache.read(prompt)
    state = reading.start(session.model)
    for part in reading.passes(session.model.pass_limits):
        logits = session.model.prefill(prompt[part.start : part.end], state, part)
        reading.took(part, state)
    return logits


def files_of(root: Path) -> dict[str, bytes]:
    """Every entry on disk, by its path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.state")}


def refresh_for_ever(
    model_folder: Path, root: Path, layouts: Sequence[Sequence[int]], begun: Event
) -> None:
    """Read layouts in turn and write them at once, until this process is killed."""
    from qcn_inference import disk_cache

    disk_cache.WINDOW_SECONDS = 0.0
    model = load_model(model_folder)
    tokenizer = Tokenizer(model_folder, model.config.vocab_size)
    session = new_session(model, tokenizer, root)
    assert session.disk is not None
    while True:  # in memory all is known from the second time on: it does nothing but write
        for number, layout in enumerate(layouts):
            refresh(session, layout, [len(layout) // 2], name=str(number))
        flush(session)
        begun.set()
        session.disk.forget(REPO)

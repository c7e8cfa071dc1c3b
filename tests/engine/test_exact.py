"""What the cache gives is what a fresh engine process gives, whatever happened to a repository.

A repository on disk and in open buffers, changed as people and git change it; the layouts that the
server's own `Repository` makes of it; a real engine over HTTP, whose cache is too small for all of
it. After any of that a completion is asked of this engine and of a process that has just been
started and given the same layout: the log-probabilities agree bit for bit. And what the cached
state gives agrees with transformers, within the tolerance of `tests/inference/test_parity.py`.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from engine_support import VOCAB_SIZE, EngineClient, finish, forked_engine, write_tokenizer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from layout_reader import read
from oracle import Oracle
from qcn_indexer.layout import Layout
from qcn_indexer.layout import Segment as Shown
from qcn_indexer.overlay import Deleted, Event, Limits, Overlay, Renamed, Written
from qcn_inference.checkpoint import load_model
from qcn_inference.contexts import Segment
from qcn_inference.fim import InfillText, infill_prompt
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid
from qcn_inference.state_cache import StateCache
from qcn_inference.tokenizer import REPO_NAME, Tokenizer
from qcn_nano.ship import DATA as NANO
from random_checkpoints import draw_config, draw_tensors, write_checkpoint
from sampling import count, examples
from torch import Tensor

from qcn_lsp.context.repository import Repository

Start = Callable[[Path], AbstractContextManager[EngineClient]]

CONTEXT_LENGTH = 8192
BUDGET = 5000  # tokens of a layout: files of more than one block are shown whole
# About a third of what a layout takes, so that much of it is dropped again and again.
CACHE_BYTES = 2**20
NAMES = ["a.py", "b.py", "lib/c.py", "lib/d.py"]
BRANCHES = ["main", "other"]


def source(lines: int, kind: int, changed: int) -> str:
    """Some lines of code, one of them changed: versions of one text, mostly."""
    return "".join(
        f"v{kind}_{n} = {'changed' if n == changed else n * kind}\n" for n in range(lines)
    )


PATHS = st.sampled_from(NAMES)
TEXTS = st.builds(source, st.sampled_from([0, 3, 12, 40, 75]), st.integers(1, 3), st.integers(0, 9))
HERE = "# here\n" * 12


@pytest.fixture(scope="session")
def repository_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two branches, on the first of them."""
    root = tmp_path_factory.mktemp("template") / "shop"
    root.mkdir()
    git(root, "init", "-q", "-b", BRANCHES[0])
    for branch, kind in zip(BRANCHES, (1, 2), strict=True):
        if branch != BRANCHES[0]:
            git(root, "checkout", "-q", "-b", branch)
            git(root, "mv", "a.py", "lib/e.py")
        for lines, name in zip((5, 40, 75), NAMES[:3], strict=True):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(source(lines, kind, kind))
        commit(root)
    git(root, "checkout", "-q", BRANCHES[0])
    return root


def git(root: Path, *command: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *command], check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", "some")


class Workspace(RuleBasedStateMachine):
    """One user's day, at random."""

    template: Path  # these three are set by the test
    start: Start  # an engine whose cache is small, and its user's cache directory
    start_fresh: Callable[[], AbstractContextManager[EngineClient]]

    def __init__(self) -> None:
        super().__init__()
        self.running = ExitStack()
        self.root = Path(tempfile.mkdtemp(prefix="qcn-")) / "shop"
        shutil.copytree(self.template, self.root)
        self.buffers: dict[PurePosixPath, str] = {}
        self.ignored: str | None = None
        self.begin()
        self.repository = Repository(self.root, count=self.count, budget=BUDGET)
        self.repository.read({})
        self.tell(self.engine)

    def begin(self) -> None:
        self.engine = self.running.enter_context(self.start(self.root.parent / "cache"))

    def count(self, text: str) -> int:
        answer = self.engine.post("/tokenize", content=text, count_only=True)
        tokens: int = answer["count"]
        return tokens

    # --- What happens to files ------------------------------------------------------------------

    @rule(name=PATHS, text=TEXTS)
    def write(self, name: str, text: str) -> None:
        """A file is created, or changed by another program."""
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_text(text)
        self.look(name)

    @rule(name=PATHS)
    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        self.look(name)

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        if (self.root / old).exists():
            (self.root / new).parent.mkdir(exist_ok=True)
            (self.root / old).rename(self.root / new)
        self.look(old, new)

    @rule(branch=st.sampled_from(BRANCHES), committed=st.booleans())
    def switch(self, branch: str, committed: bool) -> None:
        if committed:
            commit(self.root)
        git(self.root, "clean", "-fdq")
        git(self.root, "checkout", "-qf", branch)
        ignore = self.root / ".gitignore"
        self.ignored = ignore.read_text().strip() if ignore.exists() else None
        self.look(".")

    @rule(name=st.none() | PATHS)
    def ignore(self, name: str | None) -> None:
        """What has been read of a file must be forgotten."""
        self.ignored = name
        (self.root / ".gitignore").write_text(f"{name}\n" if name else "")
        self.look(".")

    def look(self, *names: str) -> None:
        seen = self.repository.look([PurePosixPath(name) for name in names])
        self.repository.take_in(seen)

    # --- What happens in the editor -------------------------------------------------------------

    @rule(name=PATHS, text=TEXTS)
    def edit(self, name: str, text: str) -> None:
        self.buffers[PurePosixPath(name)] = text

    @precondition(lambda self: self.buffers)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.buffers)))
        self.write(str(path), self.buffers[path])

    @precondition(lambda self: self.buffers)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        del self.buffers[data.draw(st.sampled_from(sorted(self.buffers)))]

    @rule(name=PATHS, typed=st.sampled_from(["", "v", "v1_", "x = v1_2 + "]), wait=st.booleans())
    def complete(self, name: str, typed: str, wait: bool) -> None:
        """The cached answer is that of a fresh process; `wait`: its layout has been read."""
        path = PurePosixPath(name)
        self.repository.show(self.buffers, path)
        self.read_as_it_is(but=path)
        self.tell(self.engine, wait=wait)
        answer = self.ask(self.engine, name, typed)
        with self.start_fresh() as fresh:
            if answer["context_tokens"]:
                self.tell(fresh)
                from_nothing = self.ask(fresh, name, typed)
                assert answer["context_tokens"] == from_nothing["context_tokens"]
            else:  # too much of it had to be read first: answered without
                from_nothing = self.ask(fresh, name, typed, context=None)
        assert answer["choices"] == from_nothing["choices"]

    def read_as_it_is(self, but: PurePosixPath) -> None:
        """Nothing in the layout is older than what is in the editor, or else on disk."""
        for path, (kind, text) in read(self.repository.layout.segments).items():
            assert str(path) != self.ignored
            if kind == "file" and path != but:
                now = self.buffers.get(path)
                assert text == ((self.root / path).read_text() if now is None else now)

    def ask(
        self, engine: EngineClient, name: str, typed: str, *, context: str | None = "shop"
    ) -> dict[str, Any]:
        start = f"<|file_sep|>{name}\n<|fim_prefix|>{HERE}{typed}"
        answer: dict[str, Any] = engine.post(
            "/v1/completions",
            prompt=f"{start}<|fim_suffix|>\n<|fim_middle|>",
            context=context,
            max_tokens=1,
            logprobs=20,
            temperature=0,
        )
        return answer

    # --- What happens to what was read ----------------------------------------------------------

    @rule()
    def compact(self) -> None:
        anew = self.repository.compacted(self.buffers)
        assert self.repository.swap(anew, self.repository.layout)
        self.tell(self.engine)

    @rule(kind=st.integers(1, 3))
    def evict(self, kind: int) -> None:
        """Another window reads its own repository, for which there is no room."""
        files = [Shown(PurePosixPath(n), source(75, kind, 0), "base", "file") for n in NAMES]
        put(self.engine, f"window {kind}", Layout(tuple(files)))

    @rule()
    def restart(self) -> None:
        """The engine leaves, and is started anew with what it has on disk."""
        self.running.close()
        self.begin()
        self.tell(self.engine)

    def tell(self, engine: EngineClient, *, wait: bool = True) -> None:
        """Give an engine the layout, as the server does."""
        if self.repository.purge and engine is self.engine:
            engine.client.delete("/v1/contexts/shop")
            self.repository.purge = False
        put(engine, "shop", self.repository.layout, wait=wait)

    def teardown(self) -> None:
        try:
            self.complete("a.py", "v", True)
        finally:
            self.running.close()
            shutil.rmtree(self.root.parent)


def put(engine: EngineClient, name: str, layout: Layout, *, wait: bool = True) -> None:
    segments = [
        {
            "hash": segment.hash,
            "path": str(segment.path),
            "text": segment.text,
            "zone": segment.zone,
            "hot": segment.hot,
        }
        for segment in layout.segments
    ]
    body = {"repo": "shop", "wait": wait, "segments": segments}
    answer = engine.client.put(f"/v1/contexts/{name}", json=body)
    assert answer.status_code == (200 if wait else 202), answer.text


def small_checkpoint(folder: Path, seed: int, dtype: torch.dtype, **changes: object) -> Path:
    """A random checkpoint with a tokenizer, stored in the type that it is to run in."""
    config = draw_config(seed) | {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": CONTEXT_LENGTH,
        "eos_token_id": VOCAB_SIZE - 1,
        **changes,
    }
    tensors = draw_tensors(config, seed, deviation=0.05)
    write_tokenizer(folder)
    return write_checkpoint(folder, config, {name: t.to(dtype) for name, t in tensors.items()})


def live(model: Path, template: Path, how: settings, cache_bytes: int) -> None:
    class Bound(Workspace):
        pass

    Bound.template = template
    Bound.start = staticmethod(
        lambda home: forked_engine(model, cache_home=home, cache_bytes=cache_bytes)
    )
    Bound.start_fresh = staticmethod(lambda: forked_engine(model))
    run_state_machine_as_test(Bound, settings=settings(how, stateful_step_count=20))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(count(sample=1, full=3)))
def test_whatever_happens_the_cache_gives_what_a_fresh_process_gives(
    seed: int, dtype: torch.dtype, repository_folder: Path, tmp_path: Path
) -> None:
    model = small_checkpoint(tmp_path / "model", seed, dtype)
    live(model, repository_folder, examples(sample=2, full=8), CACHE_BYTES)


@pytest.mark.long
def test_the_embedded_model_gives_what_a_fresh_process_gives(repository_folder: Path) -> None:
    live(NANO, repository_folder, examples(sample=1, full=4), 8 * CACHE_BYTES)


# --- The oracle ----------------------------------------------------------------------------------

BASE = [("README.md", 40, 1), ("lib/prices.py", 75, 2), ("main.py", 30, 3)]
CHANGES: list[Event] = [
    Written(PurePosixPath("lib/prices.py"), source(75, 2, 7)),
    Renamed(PurePosixPath("README.md"), PurePosixPath("docs.md")),
    Written(PurePosixPath("lib/tax.py"), source(20, 1, 3)),
    Written(PurePosixPath("lib/prices.py"), source(75, 2, 8)),
    Deleted(PurePosixPath("docs.md")),
]


def read_change_by_change(loaded: Loaded) -> tuple[list[int], int, Tensor]:
    """A layout of several files and entries, then a completion's prompt, all through the cache.

    Returns the prompt's ids, how many of them were cached, and the logits of the rest [T, V].
    """
    tokenizer = loaded.tokenizer

    def count(text: str) -> int:
        return len(tokenizer.encode_plain(text))

    files = [
        Shown(PurePosixPath(name), source(lines, kind, 0), "base", "file")
        for name, lines, kind in BASE
    ]
    overlay = Overlay.over(files, limits=Limits(4000, rewrite=0), count=count)
    for event in [None, *CHANGES]:
        overlay = overlay if event is None else overlay.after(event)
        ids = [tokenizer.control_id(REPO_NAME), *tokenizer.encode_plain("shop\n")]
        for shown in overlay.layout.segments:
            ids += Segment.of(tokenizer, str(shown.path), shown.text).ids
        finish(loaded.refresh(ids, [len(ids)]))
    here = InfillText(HERE + "x = v1_", "\n" + HERE, "main.py")
    prompt = infill_prompt(tokenizer, here, CONTEXT_LENGTH, context=ids)
    reading = loaded.cache.read(prompt.ids, prompt.keep)
    state = reading.start(loaded.model)
    logits = [
        loaded.model.prefill(prompt.ids[start:end], state, all_logits=True)
        for start, end in reading.blocks
    ]
    loaded.cache.check_integrity()
    return list(prompt.ids), reading.position, torch.cat(logits)


def loaded_from(folder: Path) -> Loaded:
    model = load_model(folder, dtype=torch.float32)
    tokenizer = Tokenizer(folder, model.config.vocab_size)
    return Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), 2**28))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(count(sample=2, full=12)))
def test_behind_a_context_read_change_by_change_we_agree_with_transformers(
    seed: int, tmp_path: Path
) -> None:
    """With every expert for every token: which ones are chosen is no matter of rounding then."""
    experts = draw_config(seed)["num_experts"]
    folder = small_checkpoint(tmp_path, seed, torch.float32, num_experts_per_tok=experts)
    ids, cached, logits = read_change_by_change(loaded_from(folder))
    assert cached > 2000
    want, _ = Oracle(folder).prefill(torch.tensor(ids))
    torch.testing.assert_close(logits, want[cached:], atol=1e-4, rtol=0)


def test_the_embedded_model_agrees_with_transformers_behind_such_a_context() -> None:
    ids, cached, logits = read_change_by_change(loaded_from(NANO))
    assert cached > 2000
    want, _ = Oracle(NANO).prefill(torch.tensor(ids))
    torch.testing.assert_close(logits, want[cached:], atol=1e-3, rtol=0)

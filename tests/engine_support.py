"""What the engine's tests share: a small tokenizer and checkpoint, engines over real HTTP."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import httpx
from deadlines import DEADLINE_SECONDS as DEADLINE_SECONDS
from qcn_inference.__main__ import main
from qcn_inference.request import Chunk, Finished, GenerationRequest, Prompt, SamplingParams
from random_checkpoints import draw_config, draw_mtp_head, draw_tensors, write_checkpoint
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As in the published tokenizers: added, but not flagged special.
TOOL_TOKENS = ["<tool_call>", "</tool_call>"]
CONTROL_STRINGS = SPECIAL_TOKENS + TOOL_TOKENS

VOCAB_SIZE = 512  # of the test models; the tokenizer has fewer entries, as published ones have
CONTEXT_LENGTH = 1024
# Of a model whose answers take minutes, so that none ends by itself while a test looks at it.
LONG_CONTEXT = 2**17
LONG_ANSWER = 100_000  # tokens

DAMAGED = "the state cache is damaged"
"""What an engine logs when `check_integrity` fails, which it asks whenever it is idle."""

T = TypeVar("T")


def write_tokenizer(folder: Path, *, without: Iterable[str] = ()) -> Path:
    """Write a `tokenizer.json` of about 460 tokens, in all but size as Qwen's.

    `without` leaves out special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # A text that stays: what is drawn and rounded in tests should not change with their sources.
    text = Path(__file__).with_name("tokenizer_text.txt").read_text()
    tokenizer.train_from_iterator([text], trainer)
    wanted = [name for name in SPECIAL_TOKENS if name not in set(without)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in wanted])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in TOOL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_model(
    folder: Path,
    *,
    context_length: int = CONTEXT_LENGTH,
    without: Iterable[str] = (),
    head: bool = False,
) -> Path:
    """Write a random checkpoint with a tokenizer; fp32, a few hundred thousand parameters.

    Greedily it repeats itself and never ends but with its context, at a thousand tokens a second.
    `without` leaves out special tokens; `head` adds a head for drafts.
    """
    write_tokenizer(folder, without=without)
    config = draw_config(7) | {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": context_length,
        "eos_token_id": VOCAB_SIZE - 1,
    }
    tensors = draw_tensors(config, 7, deviation=0.05)
    if head:
        tensors |= draw_mtp_head(config, 8, deviation=0.05)
    return write_checkpoint(folder, config, tensors)


def request_of(
    ids: list[int],
    *,
    max_tokens: int = 8,
    keep: tuple[int, ...] = (),
    sampling: SamplingParams | None = None,
    **more: Any,
) -> GenerationRequest:
    """Make a greedy request for ids."""
    return GenerationRequest(
        prompt=lambda: Prompt(ids, keep),
        max_tokens=max_tokens,
        sampling=sampling or SamplingParams(temperature=0),
        **more,
    )


def finish(steps: Generator[None, None, T]) -> T:
    """Run a job to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def text_of(chunks: Iterable[Chunk]) -> str:
    """Join the text of chunks."""
    return "".join(chunk.text for chunk in chunks)


def answer_of(
    generate: Callable[..., Generator[None, None, Finished]], request: GenerationRequest
) -> tuple[str, Finished]:
    """Answer a request on its own."""
    chunks: list[Chunk] = []
    finished = finish(generate(request, chunks.append))
    return text_of(chunks), finished


class EngineClient:
    """A client of an engine's process; `has_left` tells when that is no more."""

    def __init__(self, client: httpx.Client, has_left: Callable[[], bool]) -> None:
        self.client = client
        self._has_left = has_left

    def until(self, state: str) -> dict[str, Any]:
        """Poll `/health` until it tells `state`; return what it said."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            assert not self._has_left(), "the engine has left"
            try:
                health: dict[str, Any] = self.client.get("/health").json()
            except httpx.TransportError:
                time.sleep(0.02)  # not bound yet
                continue
            if health["state"] == state:
                return health
            assert health["state"] != "errored", health["error"]
            time.sleep(0.02)
        raise AssertionError(f"the engine did not become {state}")

    def post(self, path: str, **body: Any) -> Any:
        """Post a JSON body; return the JSON answer of a call that succeeded."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path: str, **body: Any) -> list[str]:
        """Post a JSON body with `stream`; return the data of the events."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            answer.read()
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.text.split("\n\n")
        assert events.pop() == ""  # each ends in an empty line
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]


class EngineProcess(EngineClient):
    """`python -m qcn_inference serve` and a client of it."""

    def __init__(self, process: subprocess.Popen[str], client: httpx.Client, socket: Path) -> None:
        super().__init__(client, lambda: process.poll() is not None)
        self.process = process
        self.socket = str(socket)

    def log(self) -> str:
        """End the process and return what it logged."""
        self.process.terminate()
        _, log = self.process.communicate(timeout=DEADLINE_SECONDS)
        return log


def parsed(events: Iterable[str]) -> list[Any]:
    """Read the events that are JSON."""
    return [json.loads(event) for event in events if event != "[DONE]"]


@contextmanager
def start_engine(
    model: Path | str, *arguments: str, cache: Path | None = None
) -> Generator[subprocess.Popen[str]]:
    """Start `serve` with one thread; it is gone afterwards, and its cache was never damaged.

    It keeps contexts on disk only where a user's cache directory is given. It does not leave when
    tests of others take long; an argument may say otherwise.
    """
    arguments = ("--idle-minutes", "inf", *arguments)
    if cache is None:
        arguments = ("--disk-cache-mib", "0", *arguments)
    process = subprocess.Popen(
        [sys.executable, "-m", "qcn_inference", *serve_arguments(model), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ if cache is None else {**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            _, log = process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()  # one that did not leave fails the test, and goes all the same
    print(log)  # pytest shows it with a test that failed
    assert DAMAGED not in log


@contextmanager
def engine_on(
    socket: Path, model: Path | str, *arguments: str, cache: Path | None = None
) -> Generator[EngineProcess]:
    """Start an engine on a Unix socket, with a client."""
    with (
        start_engine(model, "--socket", str(socket), *arguments, cache=cache) as process,
        client_on(socket) as client,
    ):
        yield EngineProcess(process, client, socket)


class ForkedEngine(EngineClient):
    """An engine in a process that was forked, and a client of it."""

    def __init__(self, process: BaseProcess, client: httpx.Client) -> None:
        super().__init__(client, lambda: process.exitcode is not None)
        self._process = process

    def leave(self) -> None:
        """Ask the process to end, and wait until it has."""
        self._process.terminate()
        self._process.join(DEADLINE_SECONDS)

    def kill(self) -> None:
        """End the process as it stands."""
        self._process.kill()
        self._process.join(DEADLINE_SECONDS)


@contextmanager
def forked_engine(
    model: Path | str,
    *arguments: str,
    cache_home: Path | None = None,
    cache_bytes: int | None = None,
) -> Generator[ForkedEngine]:
    """A ready engine in a fresh process, forked from one that has imported torch and done nothing.

    For tests that need many: a start takes a tenth of what it takes otherwise. Its user's cache
    directory is `cache_home`, or an empty one; what it keeps of texts in memory is held to
    `cache_bytes`. Its cache was never damaged.
    """
    with tempfile.TemporaryDirectory(prefix="qcn-") as folder:
        socket, log = Path(folder) / "s", Path(folder) / "log"
        given = [*serve_arguments(model), "--socket", str(socket), *arguments]
        home = cache_home or Path(folder) / "cache"
        process = _FORKS.Process(
            target=_serve, args=(given, str(log), str(home), cache_bytes), daemon=True
        )
        process.start()
        try:
            with client_on(socket) as client:
                engine = ForkedEngine(process, client)
                engine.until("ready")
                yield engine
        finally:
            process.terminate()
            process.join(DEADLINE_SECONDS)
            process.kill()
        assert DAMAGED not in log.read_text()


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["qcn_inference.generate", "qcn_inference.service.server"])


def _serve(arguments: list[str], log: str, cache_home: str, cache_bytes: int | None) -> None:
    """The forked process."""
    os.environ["XDG_CACHE_HOME"] = cache_home
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), sys.stderr.fileno())
    if cache_bytes is not None:
        from qcn_inference.service import engine

        engine.CACHE_BYTES = cache_bytes
    sys.exit(main(arguments))


def serve_arguments(model: Path | str) -> list[str]:
    """The command to serve a model with one thread."""
    return ["serve", "--model", str(model), "--threads", "1"]


def client_on(socket: Path) -> httpx.Client:
    """A client of the engine on a Unix socket."""
    transport = httpx.HTTPTransport(uds=str(socket))
    return httpx.Client(transport=transport, base_url="http://engine", timeout=DEADLINE_SECONDS)

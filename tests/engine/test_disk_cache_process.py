"""The disk cache of real engines: left, killed, side by side, without room, told to forget."""

import itertools
import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from context_support import BASE, Layout, body_of, put, source, view
from disk_support import files_of
from engine_support import (
    DEADLINE_SECONDS,
    LONG_ANSWER,
    EngineClient,
    EngineProcess,
    ForkedEngine,
    engine_on,
    forked_engine,
)
from qcn_inference.disk_files import name_of
from sampling import count

Start = Callable[..., ForkedEngine]
ENTRY = ("1.py", "v = 1\n", "overlay")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A user's cache directory."""
    return tmp_path / "cache"


@pytest.fixture
def start(model_folder: Path, cache: Path) -> Iterator[Start]:
    """Starts engines on one cache; they are gone afterwards."""
    with ExitStack() as running:

        def begin(*arguments: str) -> ForkedEngine:
            serving = forked_engine(model_folder, *arguments, cache_home=cache)
            return running.enter_context(serving)

        yield begin


def answer(engine: EngineClient, name: str) -> Any:
    """What a completion behind a context is told, log-probabilities and all."""
    asked = {"prompt": "<|file_sep|>typed.py\nv", "max_tokens": 4, "logprobs": 20, "temperature": 0}
    done = engine.post("/v1/completions", context=name, **asked)
    assert done["context_tokens"] > 0
    return done["choices"]


def test_what_an_earlier_engine_read_is_forgotten_though_its_context_is_unknown(
    start: Start, cache: Path
) -> None:
    """A file became ignored while no engine was there: the one that starts knows no context."""
    first = start()
    put(first, "shop", BASE)
    first.leave()
    assert files_of(cache)
    again = start()
    assert again.client.delete("/v1/contexts/shop").status_code == 404  # of which repository?
    assert again.client.delete("/v1/contexts/shop?repo=shop").status_code == 200
    assert not files_of(cache)
    assert put(again, "shop", BASE)["restored"] == 0


def test_a_restart_goes_on_where_it_stopped(start: Start) -> None:
    first = start()
    layout = [*BASE, ENTRY]
    tokens = put(first, "shop", layout)["tokens"]
    said = answer(first, "shop")
    first.leave()
    again, fresh = start(), start("--disk-cache-mib", "0")
    restored = put(again, "shop", layout)
    assert (restored["reused"], restored["restored"], restored["computed"]) == (tokens, tokens, 0)
    assert put(fresh, "shop", layout)["computed"] == tokens
    assert answer(again, "shop") == answer(fresh, "shop") == said
    figures = view(again, "shop")["bytes"]
    assert 0 < figures["disk_used"] <= figures["disk_budget"]
    metrics = again.client.get("/metrics").text
    assert f"qcn_context_tokens_restored_total {tokens:.1f}" in metrics
    assert f'qcn_cache_bytes{{tier="disk"}} {float(figures["disk_used"])}' in metrics
    assert view(fresh, "shop")["bytes"]["disk_used"] is None


def test_a_requests_own_text_stays_off_the_disk(start: Start, cache: Path) -> None:
    engine = start()
    put(engine, "shop", BASE)
    answer(engine, "shop")
    engine.post("/v1/completions", prompt="v = 1\n" * 100, max_tokens=1)
    put(engine, "shop", BASE)
    engine.leave()
    with_requests = files_of(cache)
    for path in cache.rglob("*.state"):
        path.unlink()
    engine = start()
    put(engine, "shop", BASE)
    engine.leave()
    assert files_of(cache).keys() == with_requests.keys()


@pytest.mark.long
def test_an_engine_that_is_killed_is_followed_by_one_that_answers_the_same(
    start: Start, cache: Path
) -> None:
    """Killed while layout after layout is sent to it, again and again on one cache."""
    draw = random.Random(5)
    layouts: list[Layout] = [[*BASE, ("1.py", source(n, n), "overlay")] for n in range(4)]
    fresh = start("--disk-cache-mib", "0")
    expected = []
    for layout in layouts:
        put(fresh, "shop", layout)
        expected.append(answer(fresh, "shop"))
    first = start()
    put(first, "shop", layouts[0])
    first.leave()
    for _ in range(count(sample=2, full=12)):
        engine = start()
        assert put(engine, "shop", layouts[0])["computed"] == 0
        for layout, said in zip(layouts, expected, strict=True):
            put(engine, "shop", layout)
            assert answer(engine, "shop") == said
        sending = threading.Thread(target=partial(_send_for_ever, engine))
        sending.start()
        time.sleep(draw.uniform(0, 1.5))  # the moment is to be a random one
        engine.kill()
        sending.join()


def _send_for_ever(engine: EngineClient) -> None:
    """Something new to write whenever it looks."""
    with suppress(httpx.TransportError):  # until it is killed
        for number in itertools.count():
            put(engine, f"shop-{number % 4}", [*BASE, ("new.py", f"v = {number}\n", "overlay")])


def test_of_two_engines_on_one_cache_one_is_killed_and_the_other_goes_on(
    start: Start, cache: Path
) -> None:
    one, two = start(), start()
    for engine in (one, two):
        put(engine, "shop", BASE)
    one.kill()
    tokens = put(two, "shop", [*BASE, ENTRY])["tokens"]
    said = answer(two, "shop")
    two.leave()
    three = start()
    assert put(three, "shop", [*BASE, ENTRY])["restored"] == tokens
    assert answer(three, "shop") == said


@pytest.mark.parametrize("disk", ["64", "0"])
def test_a_purge_takes_all_of_a_repository_whatever_the_engine_knows_of_it(
    start: Start, cache: Path, disk: str
) -> None:
    first = start()
    put(first, "one", BASE)
    put(first, "two", [*BASE, ENTRY])
    other = body_of(BASE) | {"repo": "other"}
    assert first.client.put("/v1/contexts/other", json=other).status_code == 200
    first.leave()
    before = files_of(cache)
    again = start("--disk-cache-mib", disk)
    put(again, "one", BASE)
    purged = again.client.delete("/v1/contexts", params={"repo": "shop"})
    assert purged.status_code == 200
    assert purged.json()["deleted"] == 1
    assert purged.json()["files"] > 0
    assert again.client.get("/v1/contexts/one").status_code == 404
    again.leave()
    left = files_of(cache)
    assert len(left) == len(before) - purged.json()["files"]
    third = start()
    assert put(third, "one", BASE)["reused"] == 0
    found = third.client.put("/v1/contexts/other", json=other).json()
    assert found["restored"] == found["tokens"]


def test_a_purge_names_its_repository(engine: EngineProcess) -> None:
    refused = engine.client.delete("/v1/contexts")
    assert refused.status_code == 400
    assert "?repo=" in refused.json()["error"]["message"]
    nothing = engine.client.delete("/v1/contexts", params={"repo": "nobody's"})
    assert nothing.json() == {"deleted": 0, "files": 0}


def test_a_purge_needs_no_model(
    start: Start, socket_path: Path, tmp_path: Path, cache: Path
) -> None:
    first = start()
    put(first, "shop", BASE)
    first.leave()
    assert files_of(cache)
    with engine_on(socket_path, tmp_path / "no model", cache=cache) as broken:
        broken.until("errored")
        purged = broken.client.delete("/v1/contexts", params={"repo": "shop"})
        assert purged.json()["files"] > 0
    assert files_of(cache) == {}


def test_a_deleted_context_leaves_the_disk(start: Start, cache: Path) -> None:
    engine = start()
    put(engine, "shop", BASE)
    engine.leave()
    assert files_of(cache)
    engine = start()
    put(engine, "shop", BASE)
    assert engine.client.delete("/v1/contexts/shop").json()["deleted"]
    assert files_of(cache) == {}
    engine.leave()
    assert files_of(cache) == {}


def test_a_refresh_that_has_not_begun_ends_with_its_context(start: Start, cache: Path) -> None:
    """What is deleted is not read again by a job that was waiting."""
    engine = start()
    body = body_of(BASE) | {"wait": False}
    assert engine.client.put("/v1/contexts/shop", json=body).status_code == 202
    assert engine.client.delete("/v1/contexts/shop").json()["deleted"]
    assert put(engine, "shop", BASE)["reused"] == 0


def test_a_deletion_is_done_though_a_layout_is_put_while_it_waits(
    long_model_folder: Path, cache: Path, socket_path: Path
) -> None:
    """By another window, say."""
    long = {"prompt": "a = ", "max_tokens": LONG_ANSWER, "temperature": 0, "stream": True}
    with engine_on(socket_path, long_model_folder, cache=cache) as engine:
        engine.until("ready")
        put(engine, "shop", BASE)
        while not files_of(cache):
            time.sleep(0.01)
        with (
            engine.client.stream("POST", "/v1/completions", json=long) as busy,
            ThreadPoolExecutor(1) as pool,
        ):
            deletion = pool.submit(engine.client.delete, "/v1/contexts/shop")
            while "qcn_queue_length 3.0" not in engine.client.get("/metrics").text:
                time.sleep(0.01)
            body = body_of(BASE) | {"repo": "another", "wait": False}
            assert engine.client.put("/v1/contexts/shop", json=body).status_code == 202
            busy.close()
            assert deletion.result(DEADLINE_SECONDS).json() == {"id": "shop", "deleted": True}
        assert not [path for path in files_of(cache) if name_of("shop") in path]


def test_without_room_it_says_so_once_and_goes_on(
    model_folder: Path, socket_path: Path, cache: Path
) -> None:
    with engine_on(socket_path, model_folder, cache=cache) as engine:
        engine.until("ready")
        resource.prlimit(engine.process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        tokens = put(engine, "shop", BASE)["tokens"]
        while (problem := engine.client.get("/health").json()["disk_cache_problem"]) is None:
            time.sleep(0.02)  # it is written by and by
        assert put(engine, "shop", [*BASE, ENTRY])["reused"] == tokens
        assert answer(engine, "shop")
        assert view(engine, "shop")["bytes"]["disk_used"] is None
        assert engine.log().count("contexts are not kept on disk") == 1
    assert "File too large" in problem


def test_without_a_home_it_says_so_once_and_goes_on(
    model_folder: Path, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.devnull)
    with engine_on(socket_path, model_folder, "--disk-cache-mib", "64") as engine:
        engine.until("ready")
        put(engine, "shop", BASE)
        assert answer(engine, "shop")
        assert engine.client.delete("/v1/contexts/shop").json()["deleted"]
        assert engine.log().count("contexts are not kept on disk") == 1


def test_memory_is_bounded_by_its_option(start: Start) -> None:
    engine = start("--cache-mib", "3")
    put(engine, "shop", BASE)
    assert view(engine, "shop")["bytes"]["budget"] == 3 << 20

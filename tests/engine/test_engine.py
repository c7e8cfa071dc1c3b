"""The engine in this process: what a client sees when something in it breaks."""

import asyncio
import logging
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from engine_support import DEADLINE_SECONDS, request_of
from qcn_inference import device as devices
from qcn_inference.checkpoint import load_model
from qcn_inference.config import KvCacheDtype
from qcn_inference.errors import DeviceMemoryError
from qcn_inference.model import Model
from qcn_inference.passes import ONE_BLOCK, Pass, PassLimits
from qcn_inference.planning import onto_gpu
from qcn_inference.planning.machine import Machine
from qcn_inference.scheduler import Priority
from qcn_inference.service.activity import Activity
from qcn_inference.service.app import create_app
from qcn_inference.service.engine import CacheBudgets, Engine, EngineState
from qcn_inference.service.errors import ApiError
from qcn_inference.state_cache import Reading, StateCache
from safetensors.torch import load_file, save_file

SECRET = "text of the user's"


async def ready_engine(folder: Path) -> Engine:
    engine = Engine(folder, "small", 1, Activity())
    engine.start()
    await asyncio.wait_for(engine.settled.wait(), DEADLINE_SECONDS)
    return engine


async def complete(engine: Engine) -> int:
    """Ask for three tokens; return how many were generated."""
    running = engine.submit(request_of([40, 41], max_tokens=3), Priority.COMPLETION, None)
    _ = [chunk async for chunk in running.chunks()]
    return running.result().completion_tokens


def client_of(engine: Engine) -> httpx.AsyncClient:
    app = create_app(engine, token=None, leave=lambda *, at_once: None)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://engine")


async def test_a_damaged_cache_is_emptied_and_work_goes_on(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(_: StateCache) -> None:
        raise AssertionError("3 bytes held, 4 booked, 5 allowed")

    engine = await ready_engine(model_folder)
    monkeypatch.setattr(StateCache, "check_integrity", damaged)
    assert await complete(engine) == 3
    assert await complete(engine) == 3
    await asyncio.to_thread(engine.close)
    assert engine.state is EngineState.READY
    assert "3 bytes held, 4 booked" in caplog.text
    assert len(engine.ready().cache) == 0


async def test_a_failure_of_the_models_thread_is_told_and_nobody_waits(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: StateCache) -> None:
        raise OSError("no reason")

    engine = await ready_engine(model_folder)
    monkeypatch.setattr(StateCache, "check_integrity", failing)
    assert await complete(engine) == 3
    await asyncio.to_thread(engine.close)
    assert engine.state is EngineState.ERRORED
    with pytest.raises(ApiError, match="the engine has failed"):
        await complete(engine)
    async with client_of(engine) as client:
        assert "restart it" in (await client.get("/health")).json()["error"]


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.gate.weight"])
async def test_weights_that_give_no_numbers_are_told_before_anything_is_asked(
    name: str, model_folder: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(model_folder, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors[name][-1, -1] = float("nan")
    save_file(tensors, damaged / "model.safetensors")
    engine = await ready_engine(damaged)
    assert engine.state is EngineState.ERRORED
    assert str(damaged) in str(engine.error)
    assert "no finite numbers" in str(engine.error)
    await asyncio.to_thread(engine.close)


def prefills_raise(engine: Engine, monkeypatch: pytest.MonkeyPatch, *raised: Exception) -> None:
    """Let the model's next prefills raise these, and those behind them be as ever."""
    model = engine.ready().model
    errors = list(raised)
    prefill_steps = model.prefill_steps

    def steps(*arguments: Any, **named: Any) -> Generator[None, None, Any]:
        yield
        if errors:
            raise errors.pop(0)
        return (yield from prefill_steps(*arguments, **named))

    monkeypatch.setattr(model, "prefill_steps", steps)


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


async def test_a_pass_that_does_not_fit_the_gpu_is_read_again_in_smaller_ones(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that lies there only to be at hand was dropped; nobody notices."""
    engine = await ready_engine(model_folder)
    happened: list[str] = []
    model, limits = engine.ready().model, PassLimits(64, 1 << 20, 8)
    monkeypatch.setattr(model, "pass_limits", limits)
    monkeypatch.setattr(model, "give_back", lambda: happened.append("dropped"))
    read_in = Reading.passes

    def noting(reading: Reading, within: PassLimits) -> Iterator[Pass]:
        happened.append(f"passes of {within.tokens}")
        return read_in(reading, ONE_BLOCK)

    monkeypatch.setattr(Reading, "passes", noting)
    prefills_raise(engine, monkeypatch, FULL)
    assert await complete(engine) == 3
    assert happened == ["passes of 64", "dropped", "passes of 16"]
    await asyncio.to_thread(engine.close)


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([FULL, FULL], "less text"),
        ([DeviceMemoryError("the GPU has room for 64 tokens")], "room for 64 tokens"),
    ],
)
async def test_a_request_that_does_not_fit_the_gpu_fails_alone(
    errors: list[Exception], told: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await ready_engine(model_folder)
    prefills_raise(engine, monkeypatch, *errors)
    with pytest.raises(ApiError, match=told) as failed:
        await complete(engine)
    assert failed.value.kind == "out_of_memory"
    assert await complete(engine) == 3
    await asyncio.to_thread(engine.close)
    assert engine.state is EngineState.READY


@pytest.mark.parametrize(
    "full", [FULL, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")]
)
async def test_a_step_for_which_memory_does_not_suffice_twice_fails_its_request_alone(
    full: Exception, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time without drafts, and with all given back that could be spared."""
    engine = await ready_engine(model_folder)
    model = engine.ready().model
    happened: list[str] = []

    def refused(*_: object) -> None:
        happened.append("refused")
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(model, "give_back", lambda: happened.append("gave back"))
        patch.setattr(model, "decode", refused)
        patch.setattr(model, "verify", refused)
        with pytest.raises(ApiError, match="End other programs on the GPU") as failed:
            await complete(engine)
    assert failed.value.kind == "out_of_memory"
    assert happened[:3] == ["refused", "gave back", "refused"]
    assert await complete(engine) == 3
    await asyncio.to_thread(engine.close)
    assert engine.state is EngineState.READY


async def test_a_lost_gpu_is_told_with_the_remedy_and_nobody_waits(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The language server finds it errored and starts another, as ever."""
    engine = await ready_engine(model_folder)
    lost = torch.AcceleratorError("CUDA error: unspecified launch failure")
    prefills_raise(engine, monkeypatch, lost)
    with pytest.raises(ApiError):
        await complete(engine)
    await asyncio.to_thread(engine.close)
    assert engine.state is EngineState.ERRORED
    told = r"^cpu does not answer any more.*start the engine again"  # where this test runs
    with pytest.raises(ApiError, match=told):
        await complete(engine)


async def test_a_gpu_that_is_lost_when_its_memory_is_given_back_is_told_as_that(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await ready_engine(model_folder)

    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(engine.ready().model, "give_back", lost)
    prefills_raise(engine, monkeypatch, DeviceMemoryError("the GPU has room for 64 tokens"))
    with pytest.raises(ApiError, match="room for 64 tokens"):
        await complete(engine)
    await asyncio.to_thread(engine.close)
    assert engine.state is EngineState.ERRORED
    with pytest.raises(ApiError, match=r"does not answer any more.*start the engine again"):
        await complete(engine)


async def test_a_gpu_that_cannot_be_used_is_an_error_that_health_tells(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    engine = Engine(model_folder, "small", 1, Activity(), device="cuda")
    engine.start()
    await asyncio.wait_for(engine.settled.wait(), DEADLINE_SECONDS)
    async with client_of(engine) as client:
        health = await client.get("/health")
    assert health.status_code == 503
    assert "built without CUDA" in health.json()["error"]
    await asyncio.to_thread(engine.close)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DeviceMemoryError("the weights take 9 MiB"), r"the weights take 9 MiB"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), r"cuda:0 failed while"),
    ],
)
async def test_where_the_gpu_is_full_or_lost_the_model_is_loaded_onto_the_cpu_if_left_to_us(
    error: Exception, told: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(devices, "choose", lambda _: (torch.device("cuda", 0), None))
    monkeypatch.setattr(devices, "describe", str)
    monkeypatch.setattr(
        devices, "require_room", lambda device, *_: full() if device.type == "cuda" else None
    )
    monkeypatch.setattr(devices, "make_current", lambda _: None)
    monkeypatch.setattr(onto_gpu, "measure", lambda _: Machine(2**40, 1e10, 1e12))
    engine = Engine(model_folder, "small", 1, Activity(), device="auto")
    engine.start()
    await asyncio.wait_for(engine.settled.wait(), DEADLINE_SECONDS)
    assert await complete(engine) == 3
    async with client_of(engine) as client:
        health = (await client.get("/health")).json()
    assert health["device"] == "cpu"
    assert health["device_problem"].startswith(told)
    await asyncio.to_thread(engine.close)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
async def test_where_a_kernel_cannot_be_launched_the_model_runs_on_the_cpu_or_says_why_not(
    wanted: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a kernel that is first launched when the model is warmed up."""
    pytest.importorskip("triton")
    from triton_faults import take_more_than_there_is

    def onto_gpu_that_is_another(folder: Path, *rest: Any) -> Model:
        monkeypatch.setattr(Model, "warm_up", lambda _: take_more_than_there_is())
        try:
            return on_cpu(folder, rest[-2])
        finally:
            monkeypatch.setattr(Model, "warm_up", lambda _: None)

    monkeypatch.setattr(devices, "choose", lambda _: (torch.device("cuda", 0), None))
    monkeypatch.setattr(devices, "describe", str)
    monkeypatch.setattr(devices, "room_for_states", lambda *_: 64 << 20)
    monkeypatch.setattr(onto_gpu, "load_onto_gpu", onto_gpu_that_is_another)
    engine = Engine(model_folder, "small", 1, Activity(), device=wanted)
    engine.start()
    await asyncio.wait_for(engine.settled.wait(), DEADLINE_SECONDS)
    async with client_of(engine) as client:
        health = (await client.get("/health")).json()
    told = (
        r"no kernel of ours runs on cuda:0: .*OutOfResources: .*shared memory.*GPU's name, or set"
    )
    if wanted == "auto":
        assert await complete(engine) == 3
        assert (health["device"], health["error"]) == ("cpu", None)
        assert re.match(told, health["device_problem"])
    else:
        assert health["state"] == "errored"
        assert re.match(told, health["error"])
    await asyncio.to_thread(engine.close)


@pytest.mark.parametrize("message", ["CUDA out of memory.", "Triton Error [CUDA]: out of memory"])
async def test_a_gpu_that_is_filled_before_the_first_pass_has_less_for_states(
    message: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes what was left for the work, once memory for states is reserved."""
    happened: list[int | str] = []
    reserve = Model.reserve

    def reserved(model: Model, nbytes: int, kept: KvCacheDtype) -> None:
        happened.append(nbytes >> 20)
        reserve(model, nbytes, kept)

    def full_at_first(_: Model) -> None:
        happened.append("warms up")
        if len(happened) < 6:
            raise RuntimeError(message) if "Triton" in message else torch.OutOfMemoryError(message)

    monkeypatch.setattr(Model, "reserve", reserved)
    monkeypatch.setattr(Model, "warm_up", full_at_first)
    monkeypatch.setattr(devices, "choose", lambda _: (torch.device("cuda", 0), None))
    monkeypatch.setattr(devices, "describe", str)
    monkeypatch.setattr(devices, "room_for_states", lambda *_: 1600 << 20)
    monkeypatch.setattr(onto_gpu, "load_onto_gpu", lambda folder, *rest: on_cpu(folder, rest[-2]))
    engine = Engine(model_folder, "small", 1, Activity(), device="auto")
    engine.start()
    await asyncio.wait_for(engine.settled.wait(), DEADLINE_SECONDS)
    assert await complete(engine) == 3
    assert happened == [1600, "warms up", 800, "warms up", 400, "warms up"]
    assert (engine.device, engine.device_problem) == ("cuda:0", None)
    await asyncio.to_thread(engine.close)


def on_cpu(folder: Path, ready: Callable[[Model], None]) -> Model:
    """Load a model as onto a GPU that this machine need not have."""
    model = load_model(folder)
    ready(model)
    return model


async def test_beside_another_model_it_takes_its_share_of_the_gpu_and_says_so(
    model_folder: Path, long_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other wants more, for its longer context; of a GPU too small for both it has the rest."""
    limits: list[int] = []
    monkeypatch.setattr(devices, "choose", lambda _: (torch.device("cuda", 0), None))
    monkeypatch.setattr(devices, "describe", str)
    monkeypatch.setattr(devices, "memory", lambda _: (0, 64 << 20))
    monkeypatch.setattr(devices, "limit_memory", lambda _, nbytes: limits.append(nbytes))
    monkeypatch.setattr(devices, "make_current", lambda _: None)
    monkeypatch.setattr(onto_gpu, "measure", lambda _: Machine(2**40, 1e10, 1e12))
    for own, other in ((model_folder, long_model_folder), (long_model_folder, model_folder)):
        engine = Engine(own, "small", 1, Activity(), device="cuda", beside=other)
        engine.start()
        await asyncio.wait_for(engine.settled.wait(), DEADLINE_SECONDS)
        assert engine.error is not None
        assert engine.error.endswith(
            f"This model may take {limits[-1] >> 20} MiB of the GPU: the rest is kept for "
            f"{other.name}, which is set beside it."
        )
        await asyncio.to_thread(engine.close)
    assert limits == [60 << 20, 0]
    bounded = CacheBudgets(gpu=10)
    engine = Engine(model_folder, "small", 1, Activity(), bounded, "cuda", long_model_folder)
    engine.start()
    await asyncio.wait_for(engine.settled.wait(), DEADLINE_SECONDS)
    assert limits[-1] == 10 << 20
    await asyncio.to_thread(engine.close)


async def test_a_defect_is_an_error_answer_and_its_message_is_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(tmp_path, "none", 1, Activity())

    def failing() -> bytes:
        raise OSError(SECRET)

    monkeypatch.setattr(engine.metrics, "render", failing)
    async with client_of(engine) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "internal_error"
    assert SECRET not in answer.text + caplog.text
    assert "OSError" in caplog.text


async def test_every_change_of_state_is_logged(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = await ready_engine(model_folder)
    await asyncio.to_thread(engine.close)
    states = [record.message for record in caplog.records if "state:" in record.message]
    assert states == ["state: loading", "state: ready"]

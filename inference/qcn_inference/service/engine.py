"""The engine behind the service: one model, its thread, and what state they are in.

The process answers before torch is imported. The model's thread imports it, loads the model, and
then works through the scheduler until the end; nothing else touches the model. States go `starting`
→ `loading` → `ready`, or end in `errored`, in which the process stays so that clients can read why.
An exit code would tell only whoever started it, and the engine is shared.
"""

import asyncio
import gc
import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

from qcn_inference.chat_template import ChatTemplate, NoTemplate, find_template
from qcn_inference.config import KvCacheDtype
from qcn_inference.contexts import Contexts
from qcn_inference.disk_files import default_folder, purge
from qcn_inference.errors import LOST_REMEDY, CheckpointError, DeviceError, DeviceMemoryError
from qcn_inference.metrics import Metrics
from qcn_inference.request import Finished, GenerationRequest, RequestError
from qcn_inference.scheduler import Closed, Priority, QueueFull, Scheduler, Steps, Superseded
from qcn_inference.service.activity import Activity
from qcn_inference.service.errors import ApiError, as_api_error
from qcn_inference.service.guard import without_message
from qcn_inference.service.rendering import Renderer
from qcn_inference.service.running import Running

if TYPE_CHECKING:
    import torch

    from qcn_inference.generate import Loaded
    from qcn_inference.model import Model

log = logging.getLogger(__name__)

T = TypeVar("T")

# Room for what was read: this many bytes, or this part of the weights if that is more. For each
# token the embedded model keeps 1 kB, an 80 B model 24; a checkpoint takes 0.5 MB or 77.
CACHE_BYTES = 256 * 2**20
CACHE_PART_OF_WEIGHTS = 1 / 50
# Where the weights are on a GPU: a part of the host's memory.
CACHE_PART_BESIDE_GPU = 8
# How long to go on writing what is not on disk yet when leaving.
FLUSH_SECONDS = 3
# How long to wait for the model's thread when leaving: one step takes well under a second,
# importing torch several.
JOIN_SECONDS = 15

# How a request that did not fail, yet has no result, is counted.
OUTCOMES: dict[type[BaseException], str] = {
    Superseded: "superseded",
    Closed: "closed",
    RequestError: "invalid",
}


class EngineState(StrEnum):
    """Each change is logged."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    ERRORED = "errored"


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of weights read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class CacheBudgets:
    """MiB that may be taken by what was read; None leaves it to the model or the machine."""

    memory: int | None = None
    disk: int | None = None  # 0 keeps nothing there
    device: int | None = None  # of a GPU, what is being read included
    gpu: int | None = None  # of a GPU in all, weights included; None or 0: what is free
    kept: KvCacheDtype = "auto"  # what a GPU keeps keys and values in


class _Leaving(BaseException):
    """Ends the loading of a model that nobody waits for any more."""


class Engine:
    """Loads the model in `folder` on a thread of its own and answers with it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        threads: int | None,
        activity: Activity,
        budgets: CacheBudgets = CacheBudgets(),
        device: str = "cpu",
        beside: Path | None = None,
    ) -> None:
        """`beside`: another model's folder, for whose engine a GPU must have room as well."""
        self.folder = folder
        self.name = name
        self.activity = activity
        self.state = EngineState.STARTING
        self.progress: Progress | None = None
        self.error: str | None = None
        self.loaded: Loaded | None = None
        self.contexts = Contexts()
        self.device: str | None = None  # where the model is, once that is known
        self.device_problem: str | None = None  # why it is not on a GPU, where one is
        self.chat_template: ChatTemplate | None = None
        self.chat_problem: str | None = None  # why there is none
        self.chat_turn: str | None = None  # what it has in front of a repository, once known
        self._renderer: Renderer | None = None
        self.scheduler = Scheduler(after_error=self._after_error)
        self.metrics = Metrics(
            queue_length=lambda: self.scheduler.live_jobs,
            cache_bytes=self._cache_bytes,
            state=lambda: self.state,
            states=tuple(EngineState),
        )
        self.settled = asyncio.Event()  # loaded, or known that it cannot be
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._budgets = budgets
        self._wanted_device = device
        self._beside = beside
        self._kept_for_other = ""  # said with what does not fit
        self._on_disk = default_folder()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """End all completions; blocks until the model's thread has finished its step.

        And until what was read of contexts is on disk, if that does not take long.
        """
        self._closing.set()
        self.scheduler.close()
        self._thread.join(JOIN_SECONDS)
        if self.loaded is not None and self.loaded.disk is not None:
            self.loaded.disk.close(FLUSH_SECONDS)

    def forget_on_disk(self, repo: str) -> int:
        """Remove what is on disk of repositories of this name; returns the number of files.

        Also where this engine keeps nothing there: another may have. Raises OSError.
        """
        disk = None if self.loaded is None else self.loaded.disk
        return purge(self._on_disk, repo) if disk is None else disk.forget(repo)

    def _cache_bytes(self) -> dict[str, int]:
        """Bytes of each tier."""
        if self.loaded is None:
            return {}
        disk = self.loaded.disk
        return {"memory": self.loaded.cache.nbytes, "disk": 0 if disk is None else disk.nbytes}

    def ready(self) -> "Loaded":
        """What is loaded.

        Raises:
            ApiError: it is not, or not yet.
        """
        if self.error is not None:
            raise ApiError(503, "unavailable", self.error)
        if self.loaded is None:
            message = f"the model is not ready yet: {self.state}"
            raise ApiError(503, "unavailable", message, {"Retry-After": "1"})
        return self.loaded

    def infilling(self) -> "Loaded":
        """What is loaded, to fill in the middle.

        Raises:
            ApiError: it is not, or not made for that.
        """
        loaded = self.ready()
        if not loaded.tokenizer.infills:
            problem = (
                "the model's tokenizer has no tokens to fill in the middle with: ask"
                " /v1/chat/completions, or set `completion.format` to `auto` or `chat`"
            )
            raise ApiError(400, "no_infill", problem)
        return loaded

    def renderer(self) -> Renderer:
        """What renders the checkpoint's chat template.

        Raises:
            ApiError: it has none.
        """
        if self._renderer is None:
            if self.chat_template is None:
                raise ApiError(400, "no_chat_template", str(self.chat_problem))
            self._renderer = Renderer(self.chat_template)
        return self._renderer

    async def close_renderer(self) -> None:
        """End the process of the template."""
        if self._renderer is not None:
            await self._renderer.close()

    def submit(
        self, request: GenerationRequest, priority: Priority, supersede: str | None
    ) -> Running:
        """Queue a completion.

        Raises:
            ApiError: the queue is full, or the engine is not ready.
        """
        loaded = self.ready()
        running = Running()
        future = self.submit_job(loaded.generate(request, running.emit), priority, supersede)
        future.add_done_callback(self._count)
        running.follow(future)
        return running

    def submit_job(self, steps: Steps[T], priority: Priority, supersede: str | None) -> Future[T]:
        """Queue any job for the model's thread.

        Raises:
            ApiError: the queue is full, or the engine is leaving.
        """
        try:
            return self.scheduler.submit(steps, priority=priority, supersede=supersede)
        except QueueFull:
            self.metrics.ended("refused")
            raise ApiError(
                503, "overloaded", "too many requests are waiting", {"Retry-After": "1"}
            ) from None
        except Closed as error:
            raise as_api_error(error) from None

    def _count(self, future: Future[Finished]) -> None:
        if future.cancelled():
            self.metrics.ended("cancelled")
            return
        error = future.exception()
        if error is None:
            self.metrics.finished(future.result())
        elif type(error) in OUTCOMES:
            self.metrics.ended(OUTCOMES[type(error)])
        else:
            self.metrics.ended("failed")
            log.error("a completion failed:\n%s", without_message(error))

    def _become(self, state: EngineState) -> None:
        self.state = state
        log.info("state: %s", state)
        if state in (EngineState.READY, EngineState.ERRORED) and not self._closing.is_set():
            self._loop.call_soon_threadsafe(self._on_settled)

    def _on_settled(self) -> None:
        self.activity.touch()
        self.settled.set()

    def _work(self) -> None:
        """The model's thread."""
        try:
            self._load()
        except _Leaving:
            return
        except (CheckpointError, DeviceError) as error:
            self._fail(str(error))
            return
        except Exception as error:
            self._fail(f"{self.folder} cannot be loaded: {type(error).__name__}: {error}")
            log.exception("loading failed")
            return
        import torch

        try:
            with torch.inference_mode():
                self.scheduler.run(when_idle=self._check_cache)
        except DeviceError as error:  # the GPU is lost
            self._fail(str(error))
            self.scheduler.close()
        except (
            Exception
        ) as error:  # jobs fail alone, so this is a defect of ours: say so, do not hang
            log.error("the model's thread failed:\n%s", without_message(error))
            self._fail(f"the engine has failed ({type(error).__name__}): restart it")
            self.scheduler.close()

    def _after_error(self, error: Exception) -> None:
        """Make room after a request for which the GPU's memory did not suffice; give up a lost GPU.

        Raises:
            DeviceError: nothing can be computed any more in this process.
        """
        from qcn_inference.device import is_lost, is_out_of_memory

        if is_out_of_memory(error) and self.loaded is not None:
            log.warning("a request did not fit the GPU's memory: what it kept there is dropped")
            try:
                self.loaded.model.give_back()
            except RuntimeError as worse:
                error = worse
        if is_lost(error):
            log.error("the GPU failed:\n%s", without_message(error))
            raise DeviceError(
                f"{self.device} does not answer any more ({type(error).__name__}). {LOST_REMEDY}"
            ) from error

    def _check_cache(self) -> None:
        """Look for damage while nobody waits; go on without what was kept if there is any."""
        cache = self.ready().cache
        try:
            cache.check_integrity()
        except AssertionError as error:
            log.error("the state cache is damaged and was emptied: %s", error)
            cache.clear()

    def _fail(self, message: str) -> None:
        self.error = message
        log.error("%s", message)
        self._become(EngineState.ERRORED)

    def _load(self) -> None:
        from qcn_inference.config import load_config
        from qcn_inference.tokenizer import Tokenizer

        # What is read in a moment comes first: nobody should wait for torch or the weights to hear
        # that the folder is not there.
        tokenizer = Tokenizer(self.folder, load_config(self.folder).vocab_size)
        self._find_template()

        # What is imported stays: looking through it for garbage is a third of the time it takes.
        gc.disable()
        try:
            import torch

            from qcn_inference.disk_cache import DiskCache, fingerprint_of
            from qcn_inference.disk_entry import EntryFormat
            from qcn_inference.generate import Loaded
            from qcn_inference.grid import Grid
            from qcn_inference.state_cache import StateCache
        finally:
            gc.freeze()
            gc.enable()

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._become(EngineState.LOADING)
        model = self._load_model()
        cache = StateCache(model.config, Grid(tokenizer), self._room())
        disk = None
        if self._budgets.disk != 0:
            entries = EntryFormat(fingerprint_of(model, tokenizer), model.new_state())
            room = None if self._budgets.disk is None else self._budgets.disk << 20
            disk = DiskCache(self._on_disk, entries, room)
        self.loaded = Loaded(model, tokenizer, cache, disk)
        self._become(EngineState.READY)

    def _find_template(self) -> None:
        try:
            self.chat_template = find_template(self.folder)
        except NoTemplate as reason:
            self.chat_problem = str(reason)
            log.info("no chats: %s", reason)
        else:
            template = self.chat_template
            log.info("chat template: %s, SHA-256 %s", template.path, template.sha256)

    def _load_model(self) -> "Model":
        """Load it onto the device that is wanted, or that there is.

        Raises:
            CheckpointError: it cannot be loaded.
            DeviceError: the GPU that was asked for cannot be used, or is too small.
        """
        from qcn_inference import device as devices

        device, problem = devices.choose(self._wanted_device)
        if problem is None:
            try:
                return self._load_onto(device)
            except DeviceError as error:
                if self._wanted_device != "auto":
                    raise
                problem = str(error)
        self.device_problem = problem
        log.warning("the model runs on the CPU: %s", problem)
        with suppress(RuntimeError):  # of a GPU that is lost
            devices.give_back()
        return self._load_onto(devices.CPU)

    def _load_onto(self, device: "torch.device") -> "Model":
        from qcn_inference import device as devices
        from qcn_inference.checkpoint import load_model

        self.device = devices.describe(device)
        log.info("loading onto %s", self.device)
        make_ready = partial(self._make_ready, device)
        try:
            if device.type != "cpu" and (most := self._most_of(device)) is not None:
                devices.limit_memory(device, most)
            if device.type != "cpu":
                from qcn_inference.planning.onto_gpu import load_onto_gpu

                report = self._on_progress
                return load_onto_gpu(self.folder, device, report, make_ready, self._budgets.kept)
            model = load_model(self.folder, mtp=True, progress=self._on_progress)
            make_ready(model)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(f"{error}{self._kept_for_other}") from error
        except Exception as error:
            failed = None if device.type == "cpu" else devices.failed(self.device, error)
            if failed is None:
                raise
            if isinstance(failed, DeviceMemoryError):
                raise DeviceMemoryError(f"{failed}{self._kept_for_other}") from error
            log.exception("%s failed", self.device)
            raise failed from error
        return model

    def _make_ready(self, device: "torch.device", model: "Model") -> None:
        """Give a model memory for states, as much as leaves enough for its work, and try it."""
        from qcn_inference import device as devices

        room = devices.room_for_states(device, devices.working_bytes(model.config))
        if self._budgets.device is not None:
            room = min(room, self._budgets.device << 20)

        def take(nbytes: int) -> None:
            model.reserve(nbytes, self._budgets.kept)
            model.warm_up()  # here, since another program may have taken what was left for work

        devices.take_most(room, take)
        self._try(model)

    def _try(self, model: "Model") -> None:
        """Refuse weights that give no numbers: they would answer all the same, with anything.

        Two tokens show it of all layers and the head, but not of the experts that they pass by.
        """
        import torch

        logits = model.prefill([0, 0], model.new_state())
        if not torch.isfinite(logits).all():
            raise CheckpointError(
                self.folder,
                "what the model computes are no finite numbers: its weights are damaged, or not "
                "those of its config.json",
                "Download them again; compare their checksums with the publisher's",
            )

    def _most_of(self, device: "torch.device") -> int | None:
        """Bytes that may be taken of a GPU in all; None: what is free."""
        from qcn_inference.planning.onto_gpu import share_beside

        if self._budgets.gpu:
            return self._budgets.gpu << 20
        if self._beside is None or self._beside == self.folder:
            return None
        try:
            most = share_beside(self.folder, self._beside, device, self._budgets.kept)
        except CheckpointError as error:  # of this model it is told when that is loaded
            log.warning("no part of the GPU is kept for another model: %s", error)
            return None
        log.info("%d MiB of the GPU at most, the rest is kept for %s", most >> 20, self._beside)
        self._kept_for_other = (
            f" This model may take {most >> 20} MiB of the GPU: the rest is kept for "
            f"{self._beside.name}, which is set beside it."
        )
        return most

    def _room(self) -> int:
        """Bytes of memory for what was read."""
        if self._budgets.memory is not None:
            return self._budgets.memory << 20
        if self.device != "cpu":  # the weights are not in this memory
            return max(CACHE_BYTES, psutil.virtual_memory().total // CACHE_PART_BESIDE_GPU)
        weights = 0 if self.progress is None else self.progress.total
        return max(CACHE_BYTES, int(weights * CACHE_PART_OF_WEIGHTS))

    def _on_progress(self, done: int, total: int) -> None:
        if self._closing.is_set():
            raise _Leaving
        self.progress = Progress(done, total)

"""What the editor shows about the server: the state of the engine, work in hand, and problems.

Three ways to the user, by how much they ask of them. The notification `didChangeStatus`, in the
shape of Copilot's language server ({busy, kind, message}), feeds a status bar and is sent on
change only. Work-done progress shows a model being loaded, once for each load, and a workspace
folder being read for the first time, which the user may end. A message box (`window/showMessage`)
is for what only the user can put right, and is shown once.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal
from weakref import WeakValueDictionary

from lsprotocol import types

from qcn_lsp.engine.messages import EngineState, EngineStatus

if TYPE_CHECKING:
    from pygls.lsp.server import LanguageServer

logger = logging.getLogger(__name__)

DID_CHANGE_STATUS = "didChangeStatus"

Kind = Literal["Normal", "Warning", "Error", "Inactive"]
_FOREMOST = (EngineState.ERRORED, EngineState.EXITED, EngineState.STARTING, EngineState.LOADING)


@dataclass(frozen=True, slots=True)
class Status:
    """The parameters of `didChangeStatus`."""

    busy: bool
    kind: Kind
    message: str


class StatusReporter:
    """Tells the client how the server is doing, and only what has changed."""

    def __init__(self, server: "LanguageServer") -> None:
        self._server = server
        self._engines: dict[str, EngineStatus] = {}  # by model
        self._in_hand = 0
        self._enabled = True
        self._failure = ""
        self._sent: Status | None = None
        self._told: set[str] = set()
        self._loading: dict[str, ProgressBar] = {}  # by model
        self._bars: WeakValueDictionary[str | int, ProgressBar] = WeakValueDictionary()

    @property
    def current(self) -> Status:
        """The status as the client should know it."""
        busy = self._in_hand > 0
        if not self._enabled:
            return Status(busy, "Inactive", "qcn is turned off by the setting qcn.enable.")
        engine = self._foremost_engine()
        state, message = engine.state, engine.message
        model = engine.model or "the model"
        if state is EngineState.ERRORED:
            return Status(busy, "Error", message)
        if state is EngineState.EXITED:
            return Status(busy, "Warning", message)
        if state is EngineState.STARTING:
            return Status(True, "Normal", message or "Starting the engine")
        if state is EngineState.LOADING:
            return Status(True, "Normal", f"Loading {model}")
        if self._failure:
            return Status(busy, "Warning", self._failure)
        return Status(busy, "Normal", "")

    def _foremost_engine(self) -> EngineStatus:
        """Return the status of that engine of which the user should know first."""
        for state in _FOREMOST:
            for status in self._engines.values():
                if status.state is state:
                    return status
        return EngineStatus(EngineState.STOPPED)

    def engine_changed(self, model: str, status: EngineStatus) -> None:
        """Take note of the new status of a model's engine."""
        self._engines[model] = status
        self._failure = ""
        if status.state is EngineState.ERRORED:
            self.tell([status.message], types.MessageType.Error)
        self._show_progress(model, status)
        self._send()

    def set_enabled(self, enabled: bool) -> None:
        """Take note of whether the user wants anything from us."""
        self._enabled = enabled
        self._send()

    def failed(self, message: str) -> None:
        """Take note that a request found no answer although the engine is there."""
        self._failure = message
        self._send()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be busy while the block runs; its success ends what `failed` began."""
        self._in_hand += 1
        self._send()
        try:
            yield
            self._failure = ""
        finally:
            self._in_hand -= 1
            self._send()

    def tell(
        self, messages: Iterable[str], kind: types.MessageType = types.MessageType.Warning
    ) -> None:
        """Show each message to the user, unless they have seen it."""
        for message in messages:
            if message and message not in self._told:
                self._told.add(message)
                self._server.window_show_message(types.ShowMessageParams(kind, message))

    def _send(self) -> None:
        if self.current != self._sent:
            self._sent = self.current
            self._server.protocol.notify(DID_CHANGE_STATUS, asdict(self.current))

    def progress_bar(
        self, title: str, cancel: Callable[[], None] | None = None, *, measured: bool = True
    ) -> "ProgressBar | None":
        """Show the progress of something; None where the client does not show any.

        `cancel` is called when the user wants it ended; without it there is no such button.
        What is not `measured` shows that it goes on, and its message, but no percentage.
        """
        window = self._server.client_capabilities.window
        if not (window and window.work_done_progress):
            return None
        bar = ProgressBar(self._server, title, cancel, measured=measured)
        self._bars[bar.token] = bar
        return bar

    def cancel_progress(self, token: str | int) -> None:
        """Hear that the user wants what a bar shows to end."""
        if bar := self._bars.get(token):
            bar.cancel()

    def _show_progress(self, model: str, status: EngineStatus) -> None:
        bar = self._loading.get(model)
        if status.state is EngineState.LOADING:
            bar = bar or self.progress_bar(f"Loading {status.model or 'the model'}")
            if bar is not None:
                self._loading[model] = bar
                bar.show(100 * status.done // status.total if status.total else 0)
        elif bar is not None:
            bar.end("Loaded" if status.state is EngineState.READY else "Not loaded")
            del self._loading[model]


class ProgressBar:
    """One progress bar in the editor, from the client's consent to its end.

    Notifications about a token may be sent only after the client has accepted it; what happens
    until then is caught up with.
    """

    def __init__(
        self,
        server: "LanguageServer",
        title: str,
        cancel: Callable[[], None] | None,
        *,
        measured: bool,
    ) -> None:
        self.token = f"qcn-{uuid.uuid4().hex}"
        self._server = server
        self._title = title
        self._cancel = cancel
        self._measured = measured
        self._begun = False
        self._end: types.WorkDoneProgressEnd | None = None
        self._wanted: tuple[int, str | None] = (0, None)
        self._shown: tuple[int, str | None] = (0, None)
        self._creation = asyncio.ensure_future(self._create())

    def show(self, percentage: int, message: str | None = None) -> None:
        """Show how far it is; a bar does not go back."""
        self._wanted = (max(percentage, self._wanted[0]), message)
        if self._begun and self._end is None and self._wanted != self._shown:
            self._shown = self._wanted
            self._notify(types.WorkDoneProgressReport(message=message, percentage=self._percentage))

    @property
    def _percentage(self) -> int | None:
        return self._wanted[0] if self._measured else None

    def cancel(self) -> None:
        """End what it shows, if that has not ended and can be."""
        if self._cancel is not None and self._end is None:
            self._cancel()

    def end(self, message: str) -> None:
        """Take the bar away; what comes after that changes nothing."""
        if self._end is None:
            self._end = types.WorkDoneProgressEnd(message=message)
            if self._begun:
                self._notify(self._end)

    async def _create(self) -> None:
        try:
            await self._server.window_work_done_progress_create_async(
                types.WorkDoneProgressCreateParams(token=self.token)
            )
        except Exception as error:  # whatever the client objects to, it goes on without a bar
            logger.info("the client shows no progress: %s", error)
            return
        if self._end is not None:
            return  # over before it could begin
        self._begun = True
        self._shown = self._wanted
        self._notify(
            types.WorkDoneProgressBegin(
                title=self._title,
                message=self._wanted[1],
                percentage=self._percentage,
                cancellable=self._cancel is not None,
            )
        )

    def _notify(
        self,
        value: types.WorkDoneProgressBegin
        | types.WorkDoneProgressReport
        | types.WorkDoneProgressEnd,
    ) -> None:
        self._server.progress(types.ProgressParams(token=self.token, value=value))

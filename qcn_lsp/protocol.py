"""What pygls 2.1.1 does not do as the specification says, put right in one place.

pygls gives us the message types (lsprotocol), the register of features and commands, the
server's capabilities and the sending of requests and notifications. Receiving is ours, from the
bytes of a message to its one answer; `QcnProtocol.receive` is its door, and pygls' own
(`structure_message`, `handle_message`, `_handle_request` and what they call) is not used. Each
mend is named where it is made.

M1 decoding. The specification: a message is JSON in utf-8, anything else a ParseError with id null.
   pygls: no answer.
M2 shape. One JSON-RPC 2.0 object, anything else an InvalidRequest. pygls: no answer to arrays,
   numbers and other versions; a key `"jsonrpc"` deep inside params ends without one too, because
   its JSON hook takes every object for a message.
M3 params. Malformed ones are InvalidParams. pygls: no answer, a popup.
M4 life cycle. Before `initialize` ServerNotInitialized, after `shutdown` InvalidRequest;
   `initialize` once; `exit` ends with 0 after `shutdown`, else with 1. pygls serves before
   `initialize`, initializes twice, is silent after `shutdown` and always ends with 0.
M5 one answer. Each request is answered exactly once. pygls: a result that JSON cannot hold gets
   no answer; client ids share a table with ours, so that a stray response ends a request.
M6 cancelling. The request is still answered, with RequestCancelled. pygls: the answer waits for
   the handler, and a command's coroutine runs on.
M7 order. Messages take effect in the order they came in. pygls: an async handler starts after
   later messages may have changed the documents.
M8 responses. pygls: one that does not fit its type leaves our request waiting for ever.
M9 documents. pygls' `Workspace` keeps, and mis-edits, a copy of each text; it is never made here,
   `QcnServer.documents` holds the texts.
M10 privacy. pygls logs every message with the source text in it. Here no content is logged.
M11 tomorrow's clients. Unknown capabilities are ignored. pygls: one enumeration value that
   lsprotocol does not know fails `initialize`.
M12 capabilities. pygls offers commands where there are none, and never that the text of documents
   can be asked for.
M13 far positions. A line or column past the end is the end. lsprotocol: 2^31 and more is malformed.

The reading loop, the end of input, the exit code and the watch over the parent process are in
`lifecycle`; framing and the guard around standard output in `stdio`.

Rejected: patching pygls' methods one by one. The defects sit in how its receiving path shares
state (one table of ids, one JSON hook for all depths), so that a patch per defect would touch
every method of it and still depend on the rest.
"""

import asyncio
import enum
import json
import logging
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from cattrs import BaseValidationError, Converter, transform_error
from lsprotocol import converters, types
from pygls import exceptions as rpc
from pygls.capabilities import ServerCapabilitiesBuilder
from pygls.constants import ATTR_EXECUTE_IN_THREAD
from pygls.protocol import LanguageServerProtocol
from pygls.protocol.language_server import _prepare_command_arguments

from qcn_lsp.stdio import BrokenFrame

if TYPE_CHECKING:
    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

_LONGEST_ID_SHOWN = 60  # characters, of what may be a megabyte

Handler = Callable[[Any], Any]
MessageId = int | str


class Phase(enum.Enum):
    """Where in its life the server is."""

    UNINITIALIZED = enum.auto()
    RUNNING = enum.auto()
    SHUT_DOWN = enum.auto()


class QcnProtocol(LanguageServerProtocol):
    """The receiving half of the language server protocol, and the life cycle.

    Runs on the event loop's thread; only sending is safe from other threads.
    """

    _server: "QcnServer"

    def __init__(self, server: "QcnServer", converter: Converter) -> None:
        super().__init__(server, converter)
        self.phase = Phase.UNINITIALIZED
        self.exit_code: int | None = None
        """Set once `exit` was received: the code the process ends with."""
        # Requests being worked on. Who takes an entry out sends the answer: hence exactly one.
        self._in_work: dict[MessageId, asyncio.Future[Any]] = {}

    def _register_builtin_features(self) -> None:
        """Replace pygls' own handlers; `QcnServer` adds those that concern documents (M9)."""
        builtin: dict[str, Handler] = {
            types.INITIALIZE: self._initialize,
            types.SHUTDOWN: self._shut_down,
            types.EXIT: self._exit,
            types.CANCEL_REQUEST: self._cancel,
            types.WORKSPACE_EXECUTE_COMMAND: self._execute_command,
        }
        for method, handler in builtin.items():
            self.fm.add_builtin_feature(method, handler)

    # --- Receiving -------------------------------------------------------------------------

    def receive(self, frame: bytes | BrokenFrame) -> None:
        """Take in one message. Never raises: what is wrong with it is answered or logged."""
        if isinstance(frame, BrokenFrame):
            self._refuse(None, rpc.JsonRpcParseError(f"Parse Error: {frame.problem}"))
            return
        try:
            message = _decode(frame)
        except ValueError as error:
            self._refuse(None, rpc.JsonRpcParseError(f"Parse Error: {error}"))
            return
        self._dispatch(message)

    def _dispatch(self, message: object) -> None:
        """Tell requests, notifications and responses apart (M2)."""
        if not isinstance(message, dict):
            what = "batches are not part of this protocol" if isinstance(message, list) else ""
            self._refuse(None, _invalid_request(what or "a message is a JSON object"))
            return
        msg_id, method = message.get("id"), message.get("method")
        known_id = msg_id if _is_message_id(msg_id) else None
        if "method" not in message and "id" in message and self._is_ours(msg_id):
            self._take_response(message)
        elif message.get("jsonrpc") != "2.0":
            self._refuse(known_id, _invalid_request('expected "jsonrpc": "2.0"'))
        elif "method" not in message and {"result", "error"} & message.keys():
            logger.warning("ignored a response to %s, which was not asked", _short(msg_id))
        elif not isinstance(method, str):
            self._refuse(known_id, _invalid_request("the method must be a string"))
        elif "id" not in message:
            self._take_notification(method, message.get("params"))
        elif known_id is None:
            self._refuse(None, _invalid_request("an id must be an integer or a string"))
        else:
            self._take_request(known_id, method, message.get("params"))

    def _take_request(self, msg_id: MessageId, method: str, raw_params: object) -> None:
        logger.debug("request %s: %s", _short(msg_id), method)
        try:
            if msg_id in self._in_work:
                raise _invalid_request(f"request {_short(msg_id)} is still being worked on")
            self._check_phase(method)
            handler = self._handler(method, is_request=True)
            params = self._structure(method, raw_params)
        except rpc.JsonRpcException as refusal:
            self._refuse(msg_id, refusal)
            return
        self._work_on(msg_id, method, partial(handler, params))

    def _take_notification(self, method: str, raw_params: object) -> None:
        logger.debug("notification: %s", method)
        if self.phase is not Phase.RUNNING and method != types.EXIT:
            logger.warning("ignored %s: the server is %s", method, self.phase.name.lower())
            return
        try:
            handler = self._handler(method, is_request=False)
            params = self._structure(method, raw_params)
        except rpc.JsonRpcMethodNotFound:
            logger.debug("ignored %s: nothing here listens to it", method)
            return
        except rpc.JsonRpcInvalidParams as error:
            logger.error("ignored a malformed %s: %s", method, error.message)
            self._server.on_malformed_notification(method, raw_params)
            return
        try:
            result = handler(params)
        except (Exception, SystemExit):
            logger.exception("%s failed", method)
            return
        if isawaitable(result):
            task = asyncio.ensure_future(_contained(result))
            task.add_done_callback(partial(_log_failure, method))

    def _check_phase(self, method: str) -> None:
        """Refuse requests at the wrong time of life (M4)."""
        initializing = method == types.INITIALIZE
        if self.phase is Phase.SHUT_DOWN:
            raise _invalid_request("the server is shut down")
        if self.phase is Phase.UNINITIALIZED and not initializing:
            raise rpc.JsonRpcServerNotInitialized(f"{method} came before initialize")
        if self.phase is Phase.RUNNING and initializing:
            raise _invalid_request("the server is already initialized")

    def _handler(self, method: str, *, is_request: bool) -> Handler:
        """Return what runs for a method: our own part, then the feature registered for it."""
        steps: list[Handler] = []
        if own := self.fm.builtin_features.get(method):
            steps.append(own)
        if feature := self.fm.features.get(method):
            steps.append(self._in_thread(feature) if _runs_in_thread(feature) else feature)
        _, response_type, _, _ = types.METHOD_TO_TYPES.get(method, (None,) * 4)
        wrong_kind = method in types.METHOD_TO_TYPES and is_request != bool(response_type)
        if wrong_kind or not steps:
            raise rpc.JsonRpcMethodNotFound(f"Method Not Found: {method}")
        return steps[0] if len(steps) == 1 else _in_turn(*steps)

    def _in_thread(self, function: Callable[..., Any]) -> Handler:
        def start(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            loop = asyncio.get_running_loop()
            return loop.run_in_executor(
                self._server.thread_pool, partial(function, *args, **kwargs)
            )

        return start

    def _structure(self, method: str, raw_params: object) -> Any:
        """Turn the params into the method's type; those of methods of our own stay as they are.

        Only whole, and only here: pygls' hook looked at every object in the message (M2).
        """
        params_type: Any
        if method in _WITHOUT_PARAMS or method not in types.METHOD_TO_TYPES:
            return raw_params
        _, _, params_type, _ = types.METHOD_TO_TYPES[method]
        if not isinstance(raw_params, dict):
            raise rpc.JsonRpcInvalidParams(f"Invalid Params: {method} expects an object")
        if method == types.INITIALIZE:
            raw_params = self._understood(raw_params)
        try:
            return self._converter.structure(raw_params, params_type)
        except Exception as error:
            # cattrs collects what its hooks raise, but passes on what pre-checks raise.
            raise rpc.JsonRpcInvalidParams(f"Invalid Params: {_reason(error)}") from error

    # --- One answer to each request (M5) ----------------------------------------------------

    def _work_on(self, msg_id: MessageId, method: str, call: Callable[[], Any]) -> None:
        """Run a handler and answer with what comes of it."""
        try:
            result = call()
        except (Exception, SystemExit) as error:
            self._answer_failure(msg_id, method, error)
            return
        if not isawaitable(result):
            self._answer(msg_id, method, result)
            return
        work = asyncio.ensure_future(_contained(result))
        self._in_work[msg_id] = work
        work.add_done_callback(partial(self._finish, msg_id, method))

    def _finish(self, msg_id: MessageId, method: str, work: asyncio.Future[Any]) -> None:
        error = None if work.cancelled() else work.exception()  # asked for, lest asyncio complain
        if self._in_work.get(msg_id) is not work:
            return  # cancelled and answered; a late result is dropped
        del self._in_work[msg_id]
        if work.cancelled():
            self._refuse(msg_id, _cancelled())
        elif error is not None:
            self._answer_failure(msg_id, method, error)
        else:
            self._answer(msg_id, method, work.result())

    def _cancel(self, params: types.CancelParams) -> None:
        """Answer a cancelled request at once, and end the work on it (M6)."""
        work = self._in_work.pop(params.id, None)
        if work is not None:  # else answered already: the two messages crossed
            self._refuse(params.id, _cancelled())
            work.cancel()

    def _answer(self, msg_id: MessageId, method: str, result: object) -> None:
        try:
            body = self._encode({"jsonrpc": "2.0", "id": msg_id, "result": result})
        except Exception as error:
            self._answer_failure(msg_id, method, error)
            return
        self._write(body)

    def _answer_failure(self, msg_id: MessageId, method: str, error: BaseException) -> None:
        if isinstance(error, rpc.JsonRpcException):
            self._refuse(msg_id, error)
            return
        logger.error("%s failed", method, exc_info=error)
        reason = "".join(traceback.format_exception_only(error)).strip()
        self._refuse(msg_id, rpc.JsonRpcInternalError(f"{method} failed: {reason}"))

    def _refuse(self, msg_id: MessageId | None, error: rpc.JsonRpcException) -> None:
        # Editors cancel as fast as their user types, and show what is logged as errors.
        level = logging.DEBUG if isinstance(error, rpc.JsonRpcRequestCancelled) else logging.INFO
        logger.log(level, "answered %s with %d: %s", _short(msg_id), error.code, error.message)
        answer = {"code": error.code, "message": error.message}
        self._write(self._encode({"jsonrpc": "2.0", "id": msg_id, "error": answer}))

    # --- Sending -----------------------------------------------------------------------------

    def _send_data(self, data: Any) -> None:
        """Send a request or notification of ours, and keep its content out of the log (M10)."""
        self._write(self._encode(data))

    def _encode(self, message: Any) -> bytes:
        # ASCII only, so that lone surrogates get through, and NaN, which is no JSON, does not.
        plain = self._converter.unstructure(message)
        return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode("ascii")

    def _write(self, body: bytes) -> None:
        if self.writer is None:
            raise RuntimeError("the protocol has no way out yet")
        self.writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    # --- Responses to our requests (M8) ------------------------------------------------------

    def _is_ours(self, msg_id: object) -> TypeGuard[MessageId]:
        return _is_message_id(msg_id) and msg_id in self._request_futures

    def _take_response(self, message: dict[str, Any]) -> None:
        msg_id = message["id"]
        future = self._request_futures.pop(msg_id)
        response_type = self._result_types.pop(msg_id, None)
        if not future.set_running_or_notify_cancel():
            return
        if (error := message.get("error")) is not None:
            future.set_exception(_error_of_client(error))
            return
        result = message.get("result")
        try:
            if response_type is not None:
                whole = {"jsonrpc": "2.0", "id": msg_id, "result": result}
                result = self._converter.structure(whole, response_type).result
        except Exception as reason:
            problem = f"the client's response does not fit: {_reason(reason)}"
            future.set_exception(rpc.JsonRpcInternalError(problem))
        else:
            future.set_result(result)

    # --- Life cycle (M4) ---------------------------------------------------------------------

    def _initialize(self, params: types.InitializeParams) -> types.InitializeResult:
        self.client_capabilities = params.capabilities
        encoding = types.PositionEncodingKind(
            ServerCapabilitiesBuilder.choose_position_encoding(params.capabilities)
        )
        self._server.on_initialize(params, encoding)
        builder: Any = ServerCapabilitiesBuilder(
            self.client_capabilities,
            {*self.fm.features, *self.fm.builtin_features},
            self.fm.feature_options,
            list(self.fm.commands),
            types.TextDocumentSyncKind.Incremental,
            position_encoding=encoding,
        )
        self.server_capabilities = builder.build()
        if not self.fm.commands:  # M12
            self.server_capabilities.execute_command_provider = None
        texts = self.fm.feature_options.get(types.WORKSPACE_TEXT_DOCUMENT_CONTENT)
        if isinstance(texts, types.TextDocumentContentOptions):
            workspace = self.server_capabilities.workspace or types.WorkspaceOptions()
            workspace.text_document_content = texts
            self.server_capabilities.workspace = workspace
        self.phase = Phase.RUNNING
        return types.InitializeResult(
            capabilities=self.server_capabilities, server_info=self.server_info
        )

    def _understood(self, raw_params: dict[str, Any]) -> dict[str, Any]:
        """Leave out the capabilities that lsprotocol does not know (M11)."""

        def fits(capabilities: object) -> bool:
            try:
                self._converter.structure(capabilities, types.ClientCapabilities)
            except Exception:
                return False
            return True

        kept = dict(raw_params)
        if kept.get("trace") not in (None, "off", "messages", "verbose"):
            del kept["trace"]  # vscode-languageclient has a fourth: "compact"
        groups = kept.get("capabilities")
        if isinstance(groups, dict) and not fits(groups):
            kept["capabilities"] = {
                name: {key: value for key, value in group.items() if fits({name: {key: value}})}
                for name, group in groups.items()
                if isinstance(group, dict)
            }
            logger.warning("left out client capabilities that this version does not know")
        return kept

    def _shut_down(self, _params: None) -> None:
        self.phase = Phase.SHUT_DOWN
        self._cancel_all()

    def _exit(self, _params: None) -> None:
        self.exit_code = 0 if self.phase is Phase.SHUT_DOWN else 1

    def close(self) -> None:
        """Leave no request waiting, neither the client's nor ours."""
        self._cancel_all()
        for future in list(self._request_futures.values()):
            future.cancel()
        self._request_futures.clear()

    def _cancel_all(self) -> None:
        for msg_id in list(self._in_work):
            self._cancel(types.CancelParams(id=msg_id))

    # --- Commands ----------------------------------------------------------------------------

    def _execute_command(self, params: types.ExecuteCommandParams) -> Any:
        """Run a command as any request's handler, so that cancelling ends its coroutine (M6)."""
        command = self.fm.commands.get(params.command)
        if command is None:
            raise rpc.JsonRpcInvalidParams(f"Invalid Params: no command {params.command!r}")
        params.arguments = params.arguments or ()
        try:
            args, kwargs = _prepare_command_arguments(command, params, self._converter)
        except Exception as error:
            raise rpc.JsonRpcInvalidParams(f"Invalid Params: {_reason(error)}") from error
        start = self._in_thread(command) if _runs_in_thread(command) else command
        return start(*args, **kwargs)


def make_converter() -> Converter:
    """Return lsprotocol's converter, with positions clamped to the protocol's range (M13)."""
    converter = converters.get_converter()
    largest = 2**31 - 1

    def position(value: Any, _type: type) -> types.Position:
        line, character = int(value["line"]), int(value["character"])
        return types.Position(line=min(line, largest), character=min(character, largest))

    converter.register_structure_hook(types.Position, position)
    return converter


_WITHOUT_PARAMS = (types.SHUTDOWN, types.EXIT, types.INITIALIZED)


def _runs_in_thread(handler: Handler) -> bool:
    return bool(getattr(handler, ATTR_EXECUTE_IN_THREAD, False))


def _in_turn(own: Handler, feature: Handler) -> Handler:
    """Return a handler that does our own part and then the feature's."""

    def both(params: Any) -> Any:
        result = own(params)
        return feature(params) if result is None else result

    return both


def _decode(body: bytes) -> object:
    """Read JSON as its standard has it; raises ValueError (M1)."""

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _is_message_id(value: object) -> TypeGuard[MessageId]:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _invalid_request(problem: str) -> rpc.JsonRpcInvalidRequest:
    return rpc.JsonRpcInvalidRequest(f"Invalid Request: {problem}")


def _short(msg_id: object) -> str:
    """Return a message's id for the log: a client may send one of any length."""
    text = repr(msg_id)
    return text if len(text) <= _LONGEST_ID_SHOWN else text[: _LONGEST_ID_SHOWN - 1] + "…"


def _cancelled() -> rpc.JsonRpcRequestCancelled:
    return rpc.JsonRpcRequestCancelled("Request Cancelled")


def _error_of_client(error: object) -> rpc.JsonRpcException:
    fields = error if isinstance(error, dict) else {}
    code, message = fields.get("code"), fields.get("message")
    return rpc.JsonRpcException(
        message if isinstance(message, str) else f"the client answered with {error!r}",
        code if isinstance(code, int) else None,
        fields.get("data"),
    )


def _reason(error: Exception) -> str:
    if isinstance(error, BaseValidationError):
        return "; ".join(transform_error(error))
    return str(error) or type(error).__name__


async def _contained(work: Awaitable[Any]) -> Any:
    """Keep a handler's `sys.exit` from ending the event loop."""
    try:
        return await work
    except SystemExit as error:
        raise RuntimeError("the handler tried to end the server") from error


def _log_failure(method: str, task: asyncio.Future[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed", method, exc_info=error)

"""Where the settings come from: `initializationOptions`, and the client's section `qcn`.

The options sent with `initialize` hold until the client says more, and go on holding for what it
does not mention. A client that answers `workspace/configuration` is asked, at the start and
after each change; from any other, the settings are taken out of `didChangeConfiguration`.

Where there are several workspace folders, a client that is asked is asked for each one's as well.
One that knows no difference answers the same for all.

While a question is open, what the user chose is not known here: a completion that is asked for
behind a change waits for the answer, so that whoever turns qcn off is offered nothing more.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsprotocol import types

from qcn_lsp.settings import SECTION, in_folder, parse_settings

if TYPE_CHECKING:
    from concurrent.futures import Future

    from qcn_lsp.server import QcnServer

logger = logging.getLogger(__name__)

# How long a completion waits for the answer of a client that has been asked.
PATIENCE_SECONDS = 1.0


class Configuration:
    """Keeps `QcnServer.settings` up to date with the client."""

    def __init__(self, server: "QcnServer") -> None:
        self._server = server
        self._initial: object = None
        self._questions = 0
        self._settled = asyncio.Event()
        self._settled.set()

    async def settled(self) -> None:
        """Return when the client has answered; a question it leaves open is waited for once."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._settled.wait()
        except TimeoutError:
            logger.warning("the client has not told its settings: those known hold until it does")
            self._settled.set()

    def on_initialize(self, params: types.InitializeParams) -> None:
        """Work with the options the client starts us with; problems are told once we may speak."""
        self._initial = params.initialization_options
        self._server.settings, _ = parse_settings(self._initial)
        _set_log_level(self._server)

    def on_initialized(self) -> None:
        """Settle the settings with the client, now that both sides may speak."""
        workspace = self._server.client_capabilities.workspace
        change = workspace.did_change_configuration if workspace else None
        if change and change.dynamic_registration:
            self._watch_changes()
        if self._can_ask:
            self._ask()
        else:
            self._apply(None)

    def on_change(self, params: types.DidChangeConfigurationParams) -> None:
        """Hear that the configuration changed."""
        if self._can_ask:
            self._ask()
        elif isinstance(params.settings, Mapping) and SECTION in params.settings:
            self._apply(params.settings[SECTION])

    def on_folders(self) -> None:
        """Hear that there are other workspace folders than before."""
        if self._can_ask:
            self._ask()

    @property
    def _can_ask(self) -> bool:
        workspace = self._server.client_capabilities.workspace
        return bool(workspace and workspace.configuration)

    def _watch_changes(self) -> None:
        registration = types.Registration(
            id="qcn-configuration",
            method=types.WORKSPACE_DID_CHANGE_CONFIGURATION,
            register_options=types.DidChangeConfigurationRegistrationOptions(section=SECTION),
        )
        self._server.client_register_capability(
            types.RegistrationParams(registrations=[registration])
        ).add_done_callback(_log_refusal)

    def _ask(self) -> None:
        """Ask the client for the section; of several questions, the last one's answer counts.

        The answer is taken in a callback, not awaited: so it is in force before the message
        behind it is looked at.
        """
        self._questions += 1
        self._settled.clear()
        roots = self._server.workspace_roots
        folders = roots if len(roots) > 1 else []
        scopes = [None, *(root.as_uri() for root in folders)]
        items = [types.ConfigurationItem(scope_uri=scope, section=SECTION) for scope in scopes]
        self._server.workspace_configuration(
            types.ConfigurationParams(items=items)
        ).add_done_callback(partial(self._take_answer, self._questions, folders))

    def _take_answer(
        self, question: int, folders: Sequence[Path], answer: "Future[Sequence[object]]"
    ) -> None:
        if question != self._questions:
            return
        self._settled.set()
        if answer.cancelled():
            return
        if error := answer.exception():
            logger.warning("the client did not tell its settings: %s", error)
            self._apply(None)  # the options we started with
        else:
            section, *of_folders = [*(answer.result() or ()), None]
            # Less than was asked for leaves the rest as everywhere.
            self._apply(section, dict(zip(folders, of_folders[:-1], strict=False)))

    def _apply(self, section: object, of_folders: Mapping[Path, object] | None = None) -> None:
        settings, problems = parse_settings(_merged(self._initial, section))
        in_folders = {}
        for root, own_section in (of_folders or {}).items():
            own, own_problems = parse_settings(_merged(self._initial, own_section))
            in_folders[root] = in_folder(settings, own)
            problems += [f"{root.name}: {one}" for one in own_problems if one not in problems]
        self._server.apply_settings(settings, in_folders)
        _set_log_level(self._server)
        self._server.status.tell(problems)


def _merged(base: object, over: object) -> Any:
    """Return `over` with what it leaves unset taken from `base`."""
    base, over = _section(base), _section(over)
    if over is None:
        return base
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {key: _merged(base.get(key), over.get(key)) for key in {**base, **over}}


def _section(raw: object) -> object:
    """Take off the section's name, with which some clients wrap the settings."""
    return raw[SECTION] if isinstance(raw, Mapping) and set(raw) == {SECTION} else raw


def _log_refusal(answer: "Future[None]") -> None:
    """Say that we shall hear of no change, though the client promised to tell."""
    if not answer.cancelled() and (error := answer.exception()):
        logger.warning("the client does not report changes of settings: %s", error)


def _set_log_level(server: "QcnServer") -> None:
    logging.getLogger("qcn_lsp").setLevel(server.settings.log.level.upper())

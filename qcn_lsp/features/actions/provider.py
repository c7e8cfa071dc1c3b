"""What plugs into code actions: a provider offers actions for a place, and carries one out.

Offering is cheap and starts nothing: an editor asks with every move of the cursor. Carrying out may
take as long as a model takes; it is asked for by a `Ticket` that has been to the client and back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lsprotocol import types

from qcn_lsp.documents import Document
from qcn_lsp.features.actions.ticket import Ticket
from qcn_lsp.scan.finding import TextEdit


@dataclass(frozen=True, slots=True)
class Asked:
    """For what actions are wanted: characters `start` up to `end` of `document`.

    `automatic`: not asked for by hand, so that only what is worth a light bulb is offered, and
    nothing waits for more than a moment.
    """

    document: Document
    start: int
    end: int
    diagnostics: tuple[types.Diagnostic, ...]
    automatic: bool


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file and its edits, whose offsets count characters of `document`'s text.

    `is_open`: the editor has it open, in this version; else it is as it lies on disk.
    """

    document: Document
    edits: tuple[TextEdit, ...]
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that there is not yet."""

    uri: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """One step that the user can undo as one.

    `label` says what it is and who wrote it; `needs_confirmation` asks editors that can to show it
    before it is applied.
    """

    label: str
    files: tuple[ChangedFile, ...] = ()
    new_files: tuple[NewFile, ...] = ()
    description: str = ""
    needs_confirmation: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """Markdown to be read; `title` is a short line of plain text."""

    title: str
    markdown: str


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """Carried out, and nothing came of it; `reason` is a sentence for the user."""

    reason: str


Outcome = Change | Shown | NothingToDo


class ActionFailed(Exception):  # noqa: N818 - an outcome, not a mistake
    """The action could not be carried out; str() is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An action for the menu.

    `action` and `arguments` are what the provider wants to be told when it is chosen, with the
    characters `start` up to `end` of the document. `change` is given where it is known already, as
    for deterministic edits; `shows` marks an action that changes nothing. `disabled` says why it
    cannot be chosen.
    """

    title: str
    kind: str
    action: str
    start: int
    end: int
    arguments: Mapping[str, str] = field(default_factory=dict)
    diagnostics: tuple[types.Diagnostic, ...] = ()
    by_model: bool = False
    shows: bool = False
    disabled: str = ""
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """An action that was chosen, for characters `start` up to `end` of `document`.

    `document` is open in the version that the ticket names. `report` shows the user how far it is;
    `draft` a text as far as it is written, where the client can show one that grows.
    """

    ticket: Ticket
    document: Document
    start: int
    end: int
    report: Callable[[str], None]
    draft: Callable[[Shown], None]


class Provider(Protocol):
    """A source of actions."""

    name: str
    """Unique among the providers; it stands in tickets."""
    kinds: tuple[str, ...]
    """The kinds of action that it may offer."""
    actions: frozenset[str]
    """The names by which `carry_out` knows its actions; a ticket with another is refused."""

    async def offers(self, asked: Asked) -> Sequence[Offer]:
        """Return the actions for a place: without a model, an engine or the network."""
        ...

    async def carry_out(self, order: Order) -> Outcome:
        """Carry out an action; cancelled when the user does not want it any more.

        Raises `ActionFailed`, `EngineUnavailable` or `Superseded`.
        """
        ...

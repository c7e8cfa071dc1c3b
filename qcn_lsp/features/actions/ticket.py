"""What stands for an action while it is with the client: the `data` of a code action.

It comes back from the client, perhaps much later, and is believed no more than any other input: it
is parsed strictly, and names a document, its version and a range, which are looked up again.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from lsprotocol import types
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from qcn_lsp.documents import Document

_LARGEST = 2**31 - 1  # the protocol's own bound for lines, columns and versions

_Word = Annotated[str, StringConstraints(min_length=1, max_length=100)]
_Uri = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
_Text = Annotated[str, StringConstraints(max_length=4_000)]
_Count = Annotated[int, Field(ge=0, le=_LARGEST)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _Position(_Strict):
    line: _Count
    character: _Count


class _Range(_Strict):
    start: _Position
    end: _Position

    def to_lsp(self) -> types.Range:
        """Return it as the protocol's type."""
        return types.Range(
            types.Position(self.start.line, self.start.character),
            types.Position(self.end.line, self.end.character),
        )


class MalformedTicket(ValueError):  # noqa: N818 - str() is for the client's log
    """What came back from the client is no ticket."""


class Ticket(_Strict):
    """An action of a provider, for a range of a document in a version with a certain text."""

    provider: _Word
    action: _Word
    title: _Text
    uri: _Uri
    version: Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
    digest: _Word
    range: _Range
    arguments: Annotated[dict[_Word, _Text], Field(max_length=16)] = {}

    @classmethod
    def of(
        cls,
        provider: str,
        action: str,
        *,
        title: str,
        document: Document,
        digest: str,
        span: types.Range,
        arguments: Mapping[str, str],
    ) -> "Ticket":
        """Return the ticket of an action; texts that are too long for one are cut.

        `digest` is that of the document, which names its text beside the version: an editor that
        opens a document again counts anew.
        """
        start, end = span.start, span.end
        return cls(
            provider=provider,
            action=action,
            title=title,
            uri=document.uri,
            version=document.version,
            digest=digest,
            range=_Range(
                start=_Position(line=start.line, character=start.character),
                end=_Position(line=end.line, character=end.character),
            ),
            arguments={name: text[:4_000] for name, text in arguments.items()},
        )

    @classmethod
    def read(cls, data: object) -> "Ticket":
        """Return the ticket that a client sent back; raises `MalformedTicket`."""
        return _validated(cls, data)

    def to_data(self) -> dict[str, Any]:
        """Return it as plain JSON, for a client to keep."""
        return self.model_dump()


class Instruction(_Strict):
    """The argument of the command `qcn.refactor`: what to do with a range of a document."""

    uri: _Uri
    range: _Range
    instruction: Annotated[str, StringConstraints(min_length=1, max_length=4_000)]

    @classmethod
    def read(cls, data: object) -> "Instruction":
        """Return the argument that a client sent; raises `MalformedTicket`."""
        return _validated(cls, data)


_Model = TypeVar("_Model", bound=_Strict)


def _validated(model: type[_Model], data: object) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        where = ", ".join(".".join(map(str, problem["loc"])) or "all of it" for problem in problems)
        raise MalformedTicket(f"this is not as the server made it, in: {where}") from None

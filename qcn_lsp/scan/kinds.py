"""What kind of value an expression of Python surely has, where a fix depends on it.

    bytes   bytes
    ascii   a str of ASCII characters
    text    a str
    tar     a `tarfile.TarFile`

Told from how the value is made, and from the annotations of parameters; a name is followed only
where one of its values surely reaches the place. Anything else has no kind.
"""

import re

from ast_grep_py import SgNode

from qcn_lsp.scan.source import Definition, Source, Span, span_of

_DEEPEST = 4  # names followed one after another
_MADE_BY = {
    "bytes": re.compile(
        r".*\.digest|bytes\.fromhex|base64\.(?:\w+_)?[ab]\d+(?:en|de)code|os\.urandom|"
        r"binascii\.(?:un)?hexlify|secrets\.token_bytes"
    ),
    "ascii": re.compile(r".*\.hexdigest|secrets\.token_(?:hex|urlsafe)"),
    "text": re.compile(r"str|.*\.decode"),
    "tar": re.compile(r"tarfile\.open|tarfile\.TarFile(?:\.\w+)?"),
}
_ENCODED = re.compile(r"(?s).*\.encode\(\s*(?:[\"'][\w-]+[\"'])?\s*\)")
_LITERAL = re.compile(r"(?s)(\w*)[\"'].*")
_ANNOTATED = {"bytes": "bytes", "str": "text", "tarfile.TarFile": "tar"}


def surely(kind: str, node: SgNode, source: Source) -> bool:
    """Whether the value is of that kind, whatever happens."""
    found = _kind(node, source, 0)
    return found == kind or (kind == "text" and found == "ascii")


def _kind(node: SgNode, source: Source, depth: int) -> str:
    text = node.text()
    if node.kind() == "string" and (literal := _LITERAL.fullmatch(text)):
        if "b" in literal[1].lower():
            return "bytes"
        return "ascii" if text.isascii() and "\\" not in text and "f" not in literal[1] else "text"
    if node.kind() == "call":
        if _ENCODED.fullmatch(text):
            return "bytes"
        call = source.call_at(node)
        name = call.name if call else ""
        return next((kind for kind, made in _MADE_BY.items() if made.fullmatch(name)), "")
    if node.kind() == "identifier" and depth < _DEEPEST:
        place = span_of(node)
        values = source.reaching(text, place)
        if not values:
            return _annotated(node, source)
        kinds = {"" if one.adds else _kind(one.value, source, depth + 1) for one in values}
        if len(kinds) == 1 and values[-1].block.holds(place) and not _behind(values, place):
            return kinds.pop()
    return ""


def _behind(values: list[Definition], place: Span) -> bool:
    """Whether a value is given only behind the place, as to a global name."""
    return any(one.place.start > place.start for one in values)


def _annotated(name: SgNode, source: Source) -> str:
    """Return the kind that a parameter's annotation states."""
    function = source.function_around(name)
    parameters = function.field("parameters") if function else None
    for parameter in parameters.children() if parameters else ():
        annotation, written = parameter.field("type"), parameter.child(0)
        if parameter.kind() != "typed_parameter" or annotation is None or written is None:
            continue
        if written.kind() == "identifier" and written.text() == name.text():
            return _ANNOTATED.get(source.full_name(annotation.text()), "")
    return ""

"""The edits of a rule's fix, made for one place."""

import re
from collections.abc import Callable

from ast_grep_py import SgNode

from qcn_lsp.scan.finding import TextEdit
from qcn_lsp.scan.kinds import surely
from qcn_lsp.scan.rules import Fix
from qcn_lsp.scan.source import Call, Source, span_of

_REFERENCE = re.compile(r"\$(\w+)")


def edits_of(
    fix: Fix,
    source: Source,
    node: SgNode,
    part: Callable[[str], SgNode | None],
    call: Call | None,
) -> tuple[TextEdit, ...]:
    """Return the edits that mend this place; none where the fix is not safe there."""

    def named(name: str) -> SgNode | None:
        return node if name == "match" else _called(name, call) or part(name)

    def text_of(name: str) -> str:
        found = named(name)
        return source.text[slice(*span_of(found))] if found else ""

    def asked(name: str) -> str:
        if name.startswith("name:"):
            return source.full_name(re.sub(r"\s+", "", text_of(name[5:])))
        return text_of(name)

    if not all(re.fullmatch(want, asked(name)) for name, want in fix.only_if.items()):
        return ()
    for name, kind in fix.kinds.items():
        found = named(name)
        if found is None or not surely(kind, found, source):
            return ()
    if fix.append:
        edit = _append(fix.append, source, call)
    else:
        target = named(fix.replace)
        if target is None:
            return ()
        place = span_of(target)
        new = _REFERENCE.sub(lambda found: text_of(found[1]), fix.by)
        edit = TextEdit(place.start, place.end, new)
    if edit is None:
        return ()
    return (*_import(fix.imports, source), edit)


def _called(name: str, call: Call | None) -> SgNode | None:
    """Return what a call calls, or the object whose method that is."""
    if call is None or name not in ("callee", "object"):
        return None
    return call.callee if name == "callee" else call.callee.field("object")


def _append(argument: str, source: Source, call: Call | None) -> TextEdit | None:
    """Return the edit that adds an argument behind the others."""
    if call is None:
        return None
    given = [*call.positional, *call.named.values()]
    if not given:
        end = span_of(call.node).end - 1
        return TextEdit(end, end, argument) if source.text[end : end + 1] == ")" else None
    last = max(span_of(one).end for one in given)
    return TextEdit(last, last, f", {argument}")


def _import(module: str, source: Source) -> tuple[TextEdit, ...]:
    """Return the edit that imports a module of Python's, or none where the text does already."""
    if not module:
        return ()
    before = 0
    for child in source.root.children():
        text = child.text()
        if child.kind() == "import_statement" and re.search(
            rf"(?:import|,)\s+{module}\s*(?:,|$)", text
        ):
            return ()
        said = child.child(0) if child.kind() == "expression_statement" else None
        opening = child.kind() == "comment" or (said is not None and said.kind() == "string")
        imported = child.kind() in ("import_statement", "future_import_statement")
        if not (imported or opening or child.kind() == "import_from_statement"):
            break
        before = span_of(child).end
    line_end = next((end for end in ("\r\n", "\n", "\r") if end in source.text), "\n")
    if before == 0:
        return (TextEdit(0, 0, f"import {module}{line_end}"),)
    return (TextEdit(before, before, f"{line_end}import {module}"),)

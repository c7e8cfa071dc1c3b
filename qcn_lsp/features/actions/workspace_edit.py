"""A change as the client takes it: the richest form of `WorkspaceEdit` that it understands."""

from collections.abc import Sequence

from lsprotocol import types

from qcn_lsp.features.actions.abilities import Abilities
from qcn_lsp.features.actions.provider import ActionFailed, Change, ChangedFile, NewFile
from qcn_lsp.scan.finding import TextEdit

_ANNOTATION = "qcn"

_DocumentChange = types.TextDocumentEdit | types.CreateFile | types.RenameFile | types.DeleteFile


def workspace_edit(
    change: Change, abilities: Abilities, encoding: types.PositionEncodingKind
) -> types.WorkspaceEdit:
    """Return `change` for this client; raises `ActionFailed` where it can make no new file."""
    if change.new_files and not abilities.creates:
        raise ActionFailed("This editor makes no new files for a language server.")
    if not abilities.document_changes:
        return types.WorkspaceEdit(
            changes={
                file.document.uri: [_text_edit(file, edit, encoding) for edit in file.edits]
                for file in change.files
            }
        )
    annotated = _ANNOTATION if abilities.annotations else None
    changes: list[_DocumentChange] = []
    for new in change.new_files:
        changes += _creation(new, annotated)
    for file in change.files:
        version = file.document.version if file.is_open else None
        edits = [_text_edit(file, edit, encoding) for edit in file.edits]
        changes.append(_edited(file.document.uri, version, edits, annotated))
    annotation = types.ChangeAnnotation(
        label=change.label,
        needs_confirmation=change.needs_confirmation,
        description=change.description or None,
    )
    return types.WorkspaceEdit(
        document_changes=changes,
        change_annotations={_ANNOTATION: annotation} if annotated else None,
    )


def _creation(new: NewFile, annotated: str | None) -> list[_DocumentChange]:
    start = types.Position(0, 0)
    text = types.TextEdit(range=types.Range(start, start), new_text=new.text)
    # A file that has come to be there meanwhile is not overwritten: the client refuses the change.
    options = types.CreateFileOptions(overwrite=False, ignore_if_exists=False)
    return [
        types.CreateFile(uri=new.uri, options=options, annotation_id=annotated),
        _edited(new.uri, None, [text], annotated),
    ]


def _edited(
    uri: str, version: int | None, edits: Sequence[types.TextEdit], annotated: str | None
) -> types.TextDocumentEdit:
    document = types.OptionalVersionedTextDocumentIdentifier(uri=uri, version=version)
    if annotated is None:
        return types.TextDocumentEdit(text_document=document, edits=list(edits))
    return types.TextDocumentEdit(
        text_document=document,
        edits=[
            types.AnnotatedTextEdit(
                annotation_id=annotated, range=edit.range, new_text=edit.new_text
            )
            for edit in edits
        ],
    )


def _text_edit(
    file: ChangedFile, edit: TextEdit, encoding: types.PositionEncodingKind
) -> types.TextEdit:
    document = file.document
    span = types.Range(
        document.position_at(edit.start, encoding), document.position_at(edit.end, encoding)
    )
    return types.TextEdit(range=span, new_text=edit.text)

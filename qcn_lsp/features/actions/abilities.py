"""What a client can do with code actions and edits, read once from its capabilities."""

from dataclasses import dataclass

from lsprotocol import types


@dataclass(frozen=True, slots=True)
class Abilities:
    """Each is named by what the client can do; all are false for one that says nothing."""

    literals: bool = False  # takes code actions; else commands only
    resolves: bool = False  # asks for an action's edit when it is chosen, and keeps its data
    disabled: bool = False  # shows actions that cannot be chosen, with the reason
    model_tag: bool = False  # marks what a model writes
    applies: bool = False  # applies an edit that the server sends by itself
    document_changes: bool = False  # takes edits for a certain version of a document
    creates: bool = False  # makes new files
    annotations: bool = False  # shows what an edit is, and asks whether to apply it
    shows_documents: bool = False  # opens a document for the user to read
    asks_for_texts: bool = False  # has documents whose text is the server's, and may change

    @classmethod
    def of(cls, client: types.ClientCapabilities) -> "Abilities":
        """Return what these capabilities say."""
        text, workspace, window = client.text_document, client.workspace, client.window
        action = text.code_action if text else None
        edit = workspace.workspace_edit if workspace else None
        resolved = action.resolve_support.properties if action and action.resolve_support else ()
        tags = action.tag_support.value_set if action and action.tag_support else ()
        operations = (edit.resource_operations if edit else None) or ()
        return cls(
            literals=bool(action and action.code_action_literal_support),
            resolves=bool(action and action.data_support and "edit" in resolved),
            disabled=bool(action and action.disabled_support),
            model_tag=types.CodeActionTag.LlmGenerated in tags,
            applies=bool(workspace and workspace.apply_edit),
            # New files can be told in no other way than among document changes.
            document_changes=bool((edit and edit.document_changes) or operations),
            creates=types.ResourceOperationKind.Create in operations,
            annotations=bool(
                edit
                and edit.change_annotation_support
                and action
                and action.honors_change_annotations
            ),
            shows_documents=bool(window and window.show_document and window.show_document.support),
            asks_for_texts=bool(workspace and workspace.text_document_content),
        )

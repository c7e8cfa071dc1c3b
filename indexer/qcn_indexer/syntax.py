"""Syntax trees of source files, by tree-sitter: what is defined where, and what is imported.

The grammars are wheels of their own, installed with the server: nothing is downloaded when it runs,
and each is loaded when the first file of its language is parsed. What the table says of a grammar
is which of its nodes define something. The tag queries that some grammars ship are not used: C#
and bash have none, C's gives a function without its type, and none says where a body begins.

Guarantees:
- Broken code gives a tree all the same; what could be understood of it is in it.
- Bounded: a text of more than `LONGEST` bytes, or one that took `SECONDS` of this thread's time,
  has no tree. (Some grammars take minutes for a few thousand brackets. It is the thread's time that
  counts, so that a busy machine sees the same trees.) Other threads run meanwhile.
"""

import importlib
import time
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from tree_sitter import Language, Node, Parser, Query, QueryCursor

from qcn_indexer.languages import language_of

LONGEST = 512 * 1024  # bytes: twice what the walk lets through, for buffers that are not saved yet
SECONDS = 0.5
_PIECE = 1 << 16  # bytes that the parser is given at a time


@dataclass(frozen=True, slots=True)
class Grammar:
    """What is known of a language's grammar; its nodes are named as in its `node-types.json`."""

    module: str
    function: str
    defining: frozenset[str]  # shown up to the body
    shown_whole: frozenset[str]  # as long as they are short: what they hold says what they are
    holding: frozenset[str]  # of the defining ones, those in whose body there are more
    transparent: frozenset[str]  # no definitions, but there may be some among their children
    imports: str  # a query; its captures are read in `imports.py`


def _grammar(
    module: str,
    *,
    defining: str,
    imports: str = "",
    shown_whole: str = "",
    holding: str = "",
    transparent: str = "",
    function: str = "language",
) -> Grammar:
    whole, more = frozenset(shown_whole.split()), frozenset(holding.split())
    return Grammar(
        module=f"tree_sitter_{module}",
        function=function,
        defining=frozenset(defining.split()) | whole | more,
        shown_whole=whole,
        holding=more,
        transparent=frozenset(transparent.split()) | {"ERROR"},
        imports=imports,
    )


_SCRIPT_IMPORTS = """
(import_statement source: (string (string_fragment) @path))
(export_statement source: (string (string_fragment) @path))
(call_expression function: (import) arguments: (arguments . (string (string_fragment) @path)))
(call_expression function: (identifier) @called (#eq? @called "require")
  arguments: (arguments . (string (string_fragment) @path)))
"""
_SCRIPT = {
    "defining": "function_declaration generator_function_declaration method_definition"
    " lexical_declaration variable_declaration field_definition",
    "holding": "class_declaration",
    "transparent": "export_statement",
    "imports": _SCRIPT_IMPORTS,
}
_TYPED_SCRIPT = {
    "defining": "function_declaration generator_function_declaration method_definition"
    " lexical_declaration variable_declaration function_signature method_signature"
    " abstract_method_signature property_signature public_field_definition",
    "shown_whole": "type_alias_declaration enum_declaration",
    "holding": "class_declaration abstract_class_declaration interface_declaration"
    " internal_module module",
    "transparent": "export_statement ambient_declaration expression_statement",
    "imports": _SCRIPT_IMPORTS,
}
_C = {
    "defining": "function_definition declaration preproc_def preproc_function_def",
    "transparent": "preproc_ifdef preproc_if preproc_else preproc_elif linkage_specification"
    " declaration_list",
    "imports": "(preproc_include path: (_) @path)",
}
_GRAMMARS = {
    "python": _grammar(
        "python",
        defining="function_definition assignment",
        holding="class_definition",
        transparent="decorated_definition expression_statement if_statement else_clause"
        " elif_clause try_statement except_clause finally_clause with_statement block",
        imports="(import_statement) @statement (import_from_statement) @statement",
    ),
    "javascript": _grammar("javascript", **_SCRIPT),
    "typescript": _grammar("typescript", **_TYPED_SCRIPT, function="language_typescript"),
    "typescriptreact": _grammar("typescript", **_TYPED_SCRIPT, function="language_tsx"),
    "go": _grammar(
        "go",
        defining="function_declaration method_declaration",
        shown_whole="type_declaration const_declaration var_declaration",
        imports="(import_spec path: (_) @path)",
    ),
    "java": _grammar(
        "java",
        defining="method_declaration constructor_declaration field_declaration"
        " compact_constructor_declaration annotation_type_element_declaration",
        holding="class_declaration interface_declaration enum_declaration record_declaration"
        " annotation_type_declaration",
        transparent="enum_body_declarations",
        imports="(import_declaration (scoped_identifier) @name)",
    ),
    "c": _grammar(
        "c", **_C, shown_whole="type_definition struct_specifier union_specifier enum_specifier"
    ),
    "cpp": _grammar(
        "cpp",
        defining=_C["defining"] + " field_declaration alias_declaration concept_definition",
        shown_whole="type_definition union_specifier enum_specifier",
        holding="class_specifier struct_specifier",
        transparent=_C["transparent"] + " template_declaration namespace_definition",
        imports=_C["imports"],
    ),
    "rust": _grammar(
        "rust",
        defining="function_item function_signature_item macro_definition",
        shown_whole="struct_item enum_item union_item type_item const_item static_item",
        holding="trait_item impl_item mod_item",
        imports="(mod_item name: (identifier) @module !body) (use_declaration argument: (_) @use)",
    ),
    "csharp": _grammar(
        "c_sharp",
        defining="method_declaration constructor_declaration property_declaration"
        " field_declaration delegate_declaration event_field_declaration",
        shown_whole="enum_declaration",
        holding="class_declaration interface_declaration struct_declaration record_declaration",
        transparent="namespace_declaration file_scoped_namespace_declaration declaration_list",
    ),
    "ruby": _grammar(
        "ruby",
        defining="method singleton_method assignment",
        holding="class module",
        transparent="body_statement singleton_class",
        imports='(call method: (identifier) @called (#any-of? @called "require" "require_relative")'
        " arguments: (argument_list . (string (string_content) @path)))",
    ),
    "php": _grammar(
        "php",
        function="language_php",
        defining="function_definition method_declaration property_declaration const_declaration",
        holding="namespace_definition class_declaration interface_declaration trait_declaration"
        " enum_declaration",
        imports="(namespace_use_clause (qualified_name) @name)"
        " (require_once_expression (_ (string_content) @path))"
        " (require_expression (_ (string_content) @path))"
        " (include_expression (_ (string_content) @path))",
    ),
    "shellscript": _grammar(
        "bash",
        defining="function_definition",
        imports='(command name: (command_name) @called (#any-of? @called "source" ".")'
        " . argument: (_) @path)",
    ),
    "lua": _grammar(
        "lua",
        defining="function_declaration",
        imports='(function_call name: (identifier) @called (#eq? @called "require")'
        " arguments: (arguments . (string (string_content) @path)))",
    ),
}
_SAME = {"javascriptreact": "javascript", "cuda": "cpp"}


def grammar_language(path: PurePosixPath) -> str | None:
    """Return the language whose grammar reads a file of this name, or None where there is none."""
    if path.suffix == ".h":
        return "cpp"  # C++'s grammar reads nearly all of C, and C's little of C++
    language = language_of(path.name) or ""
    language = _SAME.get(language, language)
    return language if language in _GRAMMARS else None


def grammar_of(language: str) -> Grammar:
    """Return what is known of a language that `grammar_language` has named."""
    return _GRAMMARS[language]


def parse(language: str, text: str) -> Node | None:
    """Return the root of the text's syntax tree, whose offsets are bytes in UTF-8."""
    source = text.encode("utf-8", "replace")  # half a surrogate pair, which an editor may send
    if len(source) > LONGEST:
        return None
    until = time.thread_time() + SECONDS
    try:
        tree = Parser(_language(language)).parse(
            lambda offset, _: source[offset : offset + _PIECE],
            progress_callback=lambda offset, has_error: time.thread_time() > until,
        )
    except ValueError:  # it was told to stop
        return None
    return tree.root_node


def import_nodes(language: str, root: Node) -> dict[str, list[Node]]:
    """Return what the language's import query captures, in the order of the text."""
    query = _query(language)
    captures = QueryCursor(query).captures(root) if query else {}
    return {
        name: sorted(nodes, key=lambda node: node.start_byte) for name, nodes in captures.items()
    }


@cache
def _language(name: str) -> Language:
    grammar = _GRAMMARS[name]
    return Language(getattr(importlib.import_module(grammar.module), grammar.function)())


@cache
def _query(name: str) -> Query | None:
    query = _GRAMMARS[name].imports
    return Query(_language(name), query) if query else None

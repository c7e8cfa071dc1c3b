"""What the rules need to know of each language's grammar, by the names of its nodes.

The grammars are those that ast-grep brings; `field` names are those of their `node-types.json`.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Grammar:
    """One language as ast-grep parses it.

    `calls`: kind of a call -> the fields of what is called (receiver, then name) and of arguments.
    `definitions`: kind -> the fields of the name that is given a value, and of that value.
    `fills`: functions that write into the argument of that position.
    `choices`: kind -> which of its named children is the condition that chooses between the others.
    """

    name: str  # as ast-grep calls it
    rules: tuple[str, ...]  # the folders of the rules that hold for it
    calls: dict[str, tuple[tuple[str, ...], str]]
    definitions: dict[str, tuple[str, str]]
    functions: frozenset[str]
    names: frozenset[str] = frozenset({"identifier"})
    targets: frozenset[str] = frozenset({"identifier"})
    literals: frozenset[str] = frozenset()
    strings: frozenset[str] = frozenset()
    interpolations: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"binary_expression"})
    wrappers: frozenset[str] = frozenset({"parenthesized_expression"})
    collections: frozenset[str] = frozenset()
    choices: dict[str, int] = field(default_factory=dict)
    conditions: frozenset[str] = frozenset({"if_statement"})
    blocks: frozenset[str] = frozenset()
    lookups: frozenset[str] = frozenset()
    fills: dict[str, int] = field(default_factory=dict)


_PYTHON = Grammar(
    name="python",
    rules=("python",),
    calls={"call": (("function",), "arguments")},
    definitions={
        "assignment": ("left", "right"),
        "augmented_assignment": ("left", "right"),
        "named_expression": ("name", "value"),
        "for_statement": ("left", "right"),
        "for_in_clause": ("left", "right"),
        "as_pattern": ("alias", ""),
    },
    functions=frozenset({"function_definition", "lambda"}),
    literals=frozenset({"integer", "float", "true", "false", "none", "ellipsis"}),
    strings=frozenset({"string", "concatenated_string"}),
    interpolations=frozenset({"interpolation"}),
    operators=frozenset({"binary_operator", "unary_operator", "boolean_operator"}),
    collections=frozenset({"list", "tuple", "set", "dictionary", "pair", "expression_list"}),
    choices={"conditional_expression": 1},
    conditions=frozenset({"if_statement", "assert_statement", "elif_clause"}),
    blocks=frozenset({"block", "module"}),
    lookups=frozenset({"subscript"}),
)
_SCRIPT = {
    "rules": ("javascript",),
    "calls": {
        "call_expression": (("function",), "arguments"),
        "new_expression": (("constructor",), "arguments"),
    },
    "definitions": {
        "variable_declarator": ("name", "value"),
        "assignment_expression": ("left", "right"),
        "augmented_assignment_expression": ("left", "right"),
        "for_in_statement": ("left", "right"),
    },
    "functions": frozenset(
        {"function_declaration", "function_expression", "arrow_function", "method_definition"}
        | {"generator_function_declaration"}
    ),
    "names": frozenset({"identifier", "shorthand_property_identifier"}),
    "targets": frozenset({"identifier", "shorthand_property_identifier_pattern"}),
    "literals": frozenset({"number", "true", "false", "null", "undefined", "regex"}),
    "strings": frozenset({"string", "template_string"}),
    "interpolations": frozenset({"template_substitution"}),
    "operators": frozenset({"binary_expression", "unary_expression"}),
    "collections": frozenset({"array", "object", "pair"}),
    "choices": {"ternary_expression": 0},
    "blocks": frozenset({"statement_block", "program"}),
    "lookups": frozenset({"subscript_expression"}),
}
_GO = Grammar(
    name="go",
    rules=("go",),
    calls={"call_expression": (("function",), "arguments")},
    definitions={
        "short_var_declaration": ("left", "right"),
        "assignment_statement": ("left", "right"),
        "var_spec": ("name", "value"),
        "const_spec": ("name", "value"),
        "range_clause": ("left", "right"),
    },
    functions=frozenset({"function_declaration", "method_declaration", "func_literal"}),
    literals=frozenset({"int_literal", "float_literal", "true", "false", "nil", "rune_literal"}),
    strings=frozenset({"interpreted_string_literal", "raw_string_literal"}),
    operators=frozenset({"binary_expression", "unary_expression"}),
    collections=frozenset({"literal_value", "literal_element", "expression_list"}),
    blocks=frozenset({"block", "source_file"}),
    lookups=frozenset({"index_expression"}),
)
_JAVA = Grammar(
    name="java",
    rules=("java",),
    calls={
        "method_invocation": (("object", "name"), "arguments"),
        "object_creation_expression": (("type",), "arguments"),
    },
    definitions={
        "variable_declarator": ("name", "value"),
        "assignment_expression": ("left", "right"),
        "enhanced_for_statement": ("name", "value"),
    },
    functions=frozenset({"method_declaration", "constructor_declaration", "lambda_expression"}),
    literals=frozenset(
        {"decimal_integer_literal", "decimal_floating_point_literal", "hex_integer_literal"}
        | {"true", "false", "null_literal", "character_literal"}
    ),
    strings=frozenset({"string_literal"}),
    operators=frozenset({"binary_expression", "unary_expression"}),
    collections=frozenset({"array_initializer"}),
    choices={"ternary_expression": 0},
    blocks=frozenset({"block", "class_body", "program"}),
)
_C = {
    "calls": {"call_expression": (("function",), "arguments")},
    "definitions": {
        "init_declarator": ("declarator", "value"),
        "assignment_expression": ("left", "right"),
    },
    "functions": frozenset({"function_definition", "lambda_expression"}),
    "literals": frozenset({"number_literal", "char_literal", "true", "false", "null"}),
    "strings": frozenset({"string_literal", "concatenated_string", "raw_string_literal"}),
    "operators": frozenset({"binary_expression", "unary_expression"}),
    "collections": frozenset({"initializer_list"}),
    "choices": {"conditional_expression": 0},
    "blocks": frozenset({"compound_statement", "translation_unit"}),
    "fills": {"fgets": 0, "gets": 0, "read": 1, "recv": 1, "scanf": 1, "sscanf": 2, "fscanf": 2}
    | {"sprintf": 0, "snprintf": 0, "strcpy": 0, "strcat": 0, "strncpy": 0, "strncat": 0},
}

BY_LANGUAGE: dict[str, Grammar] = {
    "python": _PYTHON,
    "javascript": Grammar(name="javascript", **_SCRIPT),  # type: ignore[arg-type]
    "typescript": Grammar(name="typescript", **_SCRIPT),  # type: ignore[arg-type]
    "typescriptreact": Grammar(name="tsx", **_SCRIPT),  # type: ignore[arg-type]
    "go": _GO,
    "java": _JAVA,
    "c": Grammar(name="c", rules=("c",), **_C),  # type: ignore[arg-type]
    "cpp": Grammar(name="cpp", rules=("c", "cpp"), **_C),  # type: ignore[arg-type]
}
BY_LANGUAGE["javascriptreact"] = BY_LANGUAGE["javascript"]

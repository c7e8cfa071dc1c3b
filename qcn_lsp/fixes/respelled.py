"""Python as it would be written by somebody with nothing to hide, for the rules to look at.

Imports under other names, names for functions and constants, `getattr` with a constant name,
joined strings and unpacked keywords are resolved, as far as one assignment tells what a name is.
The text is scanned and thrown away. It is never run: only Python's parser reads it.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from typing import TypeGuard

from qcn_lsp.fixes.python_module import python_module

PASSES = 4  # a name of a name of a name: more is not looked through
LONGEST = 4_000  # characters of a constant that is put together

Expression = ast.expr


def respelled(text: str) -> str | None:
    """Return the text with its names and constants resolved; None where Python does not read it."""
    module = python_module(text)
    if module is None:
        return None
    try:
        for _ in range(PASSES):
            before = ast.dump(module)
            module = _Resolver(_known(module)).visit(module)
            if ast.dump(module) == before:
                break
        return ast.unparse(ast.fix_missing_locations(module)) + "\n"
    except (RecursionError, MemoryError, ValueError):
        return None


def _known(module: ast.Module) -> dict[str, Expression]:
    """What names stand for: those that are bound once, by an import or to a name or constant."""
    bound, meanings = _bound(module), dict(_imported(module))
    for node in ast.walk(module):
        value, target = _assigned(node)
        if target is not None and value is not None and bound[target] == 1 and _is_plain(value):
            meanings.setdefault(target, value)
            bound[target] = 0
    return {name: meaning for name, meaning in meanings.items() if not bound[name]}


def _bound(module: ast.Module) -> Counter[str]:
    """How often each name is bound other than by an import; more than once: to anything."""
    bound: Counter[str] = Counter()
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound[node.id] += 1
        elif isinstance(node, ast.arg):
            bound[node.arg] += 2
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound[node.name] += 2
        elif isinstance(node, ast.Global | ast.Nonlocal):
            bound.update(dict.fromkeys(node.names, 2))
    return bound


def _imported(module: ast.Module) -> Iterator[tuple[str, Expression]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((one.asname, _dotted(one.name)) for one in node.names if one.asname)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                if one.name != "*":
                    yield one.asname or one.name, _dotted(f"{node.module}.{one.name}")


def _assigned(node: ast.AST) -> tuple[Expression | None, str | None]:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target: ast.expr = node.targets[0]
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
        target = node.target
    else:
        return None, None
    return node.value, target.id if isinstance(target, ast.Name) else None


def _is_plain(value: Expression) -> bool:
    """Whether a value is a constant, or a name that leads to one by attributes."""
    while isinstance(value, ast.Attribute):
        value = value.value
    return isinstance(value, ast.Name | ast.Constant)


def _dotted(name: str) -> Expression:
    first, *rest = name.split(".")
    node: Expression = ast.Name(first, ast.Load())
    for part in rest:
        node = ast.Attribute(node, part, ast.Load())
    return node


class _Resolver(ast.NodeTransformer):
    def __init__(self, known: dict[str, Expression]) -> None:
        self._known = known

    def visit_Name(self, node: ast.Name) -> Expression:
        meaning = self._known.get(node.id)
        is_read = isinstance(node.ctx, ast.Load)
        return copy.deepcopy(meaning) if meaning is not None and is_read else node

    def visit_BinOp(self, node: ast.BinOp) -> Expression:
        self.generic_visit(node)
        left, right = _text(node.left), _text(node.right)
        if isinstance(node.op, ast.Add) and left is not None and right is not None:
            return ast.Constant((left + right)[:LONGEST])
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Expression:
        self.generic_visit(node)
        parts = [
            _text(part.value)
            if isinstance(part, ast.FormattedValue) and not part.format_spec
            else _text(part)
            for part in node.values
        ]
        texts = [part for part in parts if part is not None]
        return ast.Constant("".join(texts)[:LONGEST]) if len(texts) == len(parts) else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Expression:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant):
            return ast.Constant(not node.operand.value)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> Expression:
        """`vars(os)["system"]`, `os.__dict__["system"]`, `globals()["eval"]`."""
        self.generic_visit(node)
        name = _text(node.slice)
        if name is None or not name.isidentifier():
            return node
        if isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__":
            return ast.Attribute(node.value.value, name, node.ctx)
        if _calls(node.value, "vars", 1):
            return ast.Attribute(node.value.args[0], name, node.ctx)
        spaces = ("globals", "locals")
        return ast.Name(name, node.ctx) if any(_calls(node.value, s, 0) for s in spaces) else node

    def visit_Attribute(self, node: ast.Attribute) -> Expression:
        self.generic_visit(node)
        builtins = isinstance(node.value, ast.Name) and node.value.id in {
            "builtins",
            "__builtins__",
        }
        return ast.Name(node.attr, node.ctx) if builtins else node

    def visit_Call(self, node: ast.Call) -> Expression:
        self.generic_visit(node)
        node.keywords = [one for keyword in node.keywords for one in _keywords(keyword)]
        name = _text(node.args[-1]) if node.args and not node.keywords else None
        if name is None:
            texts = _joined(node)
            return node if texts is None else ast.Constant(texts[:LONGEST])
        if _calls(node, "getattr", 2) and name.isidentifier():
            return ast.Attribute(node.args[0], name, ast.Load())
        imports = _calls(node, "__import__", 1) or (
            isinstance(node.func, ast.Attribute) and node.func.attr == "import_module"
        )
        if imports and all(part.isidentifier() for part in name.split(".")):
            return _dotted(name)
        return node


def _text(node: ast.AST) -> str | None:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text else None  # type: ignore[attr-defined]


def _calls(node: ast.AST, name: str, count: int) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == name
        and len(node.args) >= count
    )


def _joined(node: ast.Call) -> str | None:
    """`"".join(["sys", "tem"])`."""
    if not (isinstance(node.func, ast.Attribute) and node.func.attr == "join" and node.args):
        return None
    between, items = _text(node.func.value), node.args[0]
    if between is None or not isinstance(items, ast.List | ast.Tuple):
        return None
    texts = [_text(item) for item in items.elts]
    found = [text for text in texts if text is not None]
    return between.join(found) if len(found) == len(texts) else None


def _keywords(keyword: ast.keyword) -> list[ast.keyword]:
    """`**{"shell": True}` as the keywords that it stands for."""
    if keyword.arg is not None or not isinstance(keyword.value, ast.Dict):
        return [keyword]
    names = [_text(key) if key is not None else None for key in keyword.value.keys]
    if not all(name is not None and name.isidentifier() for name in names):
        return [keyword]
    return [
        ast.keyword(name, value) for name, value in zip(names, keyword.value.values, strict=True)
    ]

"""Writes what is generated from the settings: `python -m qcn_lsp.settings_docs`.

`settings.md` is for people, `settings.schema.json` for editors that check a configuration; LSP4IJ
has a copy with the section's name around it, and VS Code's `package.json` holds the settings as its
settings editor wants them.
"""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from qcn_lsp.settings import SECTION, Settings, leaves, scope_of

MANIFEST = Path("editors", "vscode", "package.json")
LSP4IJ = Path("editors", "jetbrains", "settings.schema.json")
_SERVER = "Language server"  # the part of VS Code's configuration that is generated
_SECTIONS = sorted({path[0] for path, _ in leaves() if path[1:]})
_UNKNOWN_TO_VSCODE = ("format", "writeOnly")

_INTRODUCTION = f"""# Settings

<!-- Generated from qcn_lsp/settings.py by `python -m qcn_lsp.settings_docs`. -->

All settings stand in the section `{SECTION}`. An editor sends them as `initializationOptions` (with
or without `{SECTION}` around them), and later through `workspace/configuration`. What is not set
has its default. A setting that is unknown or malformed is reported, and only that one falls back to
its default.

**Scope** says whose configuration may set it: `user` settings name a model, an endpoint or a token
and belong in the user's own configuration, never in a file of a workspace; `window` settings hold
for the whole server; `resource` settings may differ between the workspace folders of a window,
where the editor tells of each folder's: VS Code does. What lies in no folder, a notebook's cells
too, has those of the window.
"""

_EXAMPLE = """
## An example

```json
{
  "qcn": {
    "models": { "completion": "/models/Qwen3-Coder-Next-FP8" },
    "completion": { "maxTokens": 64, "excludedLanguages": ["markdown"] }
  }
}
```
"""


def markdown() -> str:
    """Return the page for people."""
    rows = ["| setting | type | default | scope |", "|---|---|---|---|"]
    texts = []
    for path, field in leaves():
        name = ".".join((SECTION, *path))
        rows.append(f"| `{name}` | {_type(field)} | {_default(field)} | {scope_of(field)} |")
        texts.append(f"### `{name}`\n{field.description}\n")
    table = "\n".join(rows)
    details = "\n".join(texts)
    return f"{_INTRODUCTION}\n{table}\n\n## What each does\n\n{details}{_EXAMPLE}"


def schema() -> dict[str, Any]:
    """Return the JSON schema of the section."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Settings.model_json_schema(by_alias=True),
    }


def lsp4ij_schema() -> dict[str, Any]:
    """Return the JSON schema of the file in which LSP4IJ keeps a server's settings."""
    section = schema()
    return {
        "$schema": section.pop("$schema"),
        "$id": "LSP4IJ/qcn-lsp/settings.schema.json",
        "$defs": section.pop("$defs"),
        "type": "object",
        "properties": {SECTION: section},
        "additionalProperties": False,
    }


def manifest(old: dict[str, Any]) -> dict[str, Any]:
    """Return VS Code's manifest with the server's settings in their own part of the configuration.

    A `user` setting becomes one of scope `machine`, which no file of a workspace can set.
    """
    own = [part for part in old["contributes"]["configuration"] if part["title"] != _SERVER]
    properties = {".".join((SECTION, *path)): _property(path, field) for path, field in leaves()}
    configuration = [*own, {"title": _SERVER, "properties": properties}]
    return {**old, "contributes": {**old["contributes"], "configuration": configuration}}


def _property(path: tuple[str, ...], field: FieldInfo) -> dict[str, Any]:
    """Return a setting as VS Code can edit it: without references and `anyOf`."""
    section = schema()
    for step in path[:-1]:
        reference = section["properties"][step]["$ref"].rpartition("/")[2]
        section = schema()["$defs"][reference]
    described = dict(section["properties"][path[-1]])
    for unwanted in ("title", "description", "scope", "anyOf", "default"):
        described.pop(unwanted, None)
    if choices := section["properties"][path[-1]].get("anyOf"):
        [value] = [choice for choice in choices if choice["type"] != "null"]
        value = {name: part for name, part in value.items() if name not in _UNKNOWN_TO_VSCODE}
        described |= {**value, "type": [value["type"], "null"]}
    scope = "machine" if scope_of(field) == "user" else scope_of(field)
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    text = re.sub(
        rf"`((?:{'|'.join(_SECTIONS)})\.\w+)`", rf"`#{SECTION}.\1#`", field.description or ""
    )
    return {**described, "default": default, "scope": scope, "markdownDescription": text}


def _type(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    described: dict[str, Any] = TypeAdapter(annotation).json_schema()
    described = next(
        (one for one in described.get("anyOf", []) if one["type"] != "null"), described
    )
    if "enum" in described:
        return ", ".join(f'`"{choice}"`' for choice in described["enum"])
    if described["type"] == "array":
        return "list of strings"
    limits = {name: limit for part in field.metadata for name, limit in _limits(part)}
    low = f"above {limits['gt']:.9g}" if "gt" in limits else f"{limits.get('ge', 0):.9g}"
    return str(described["type"]) + (f", {low} to {limits['le']:.9g}" if "le" in limits else "")


def _limits(part: object) -> list[tuple[str, float]]:
    return [(name, getattr(part, name)) for name in ("gt", "ge", "le") if hasattr(part, name)]


def _default(field: FieldInfo) -> str:
    return "not set" if field.default is None else f"`{json.dumps(field.default)}`"


def write(repository: Path) -> None:
    """Write the pages, the schemas and the manifest, each in its place in the repository."""
    docs, package = repository / "docs", repository / MANIFEST
    (docs / "settings.md").write_text(markdown(), encoding="utf-8")
    (docs / "settings.schema.json").write_text(_json(schema()), encoding="utf-8")
    (repository / LSP4IJ).write_text(_json(lsp4ij_schema()), encoding="utf-8")
    old = json.loads(package.read_text(encoding="utf-8"))
    package.write_text(_json(manifest(old)), encoding="utf-8")


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write(Path.cwd())

"""Writes the pages that are generated from the settings: `python -m qcn_lsp.settings_docs docs`.

`settings.md` is for people, `settings.schema.json` for editors that check a configuration.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from qcn_lsp.settings import SECTION, Settings, leaves

_INTRODUCTION = f"""# Settings

<!-- Generated from qcn_lsp/settings.py by `python -m qcn_lsp.settings_docs docs`. -->

All settings stand in the section `{SECTION}`. An editor sends them as `initializationOptions`, and
later through `workspace/configuration`. What is not set has its default. A setting that is unknown
or malformed is reported, and only that one falls back to its default.

**Scope** says whose configuration may set it: `user` settings name a model, an endpoint or a token
and belong in the user's own configuration, never in a file of a workspace; `window` settings hold
for the whole server; `resource` settings may differ between workspace folders.
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
        rows.append(f"| `{name}` | {_type(field)} | {_default(field)} | {_scope(field)} |")
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


def _scope(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["scope"]) if isinstance(extra, dict) else ""


def write(folder: Path) -> None:
    """Write both pages into `folder`."""
    (folder / "settings.md").write_text(markdown(), encoding="utf-8")
    text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    (folder / "settings.schema.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

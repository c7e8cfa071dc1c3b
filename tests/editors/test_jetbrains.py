"""The folder that LSP4IJ imports, by the rules of its documentation and its reader."""

import json
from pathlib import Path

import jsonschema
import pytest
from qcn_indexer.languages import language_of

from qcn_lsp.settings import parse_settings

FOLDER = Path(__file__).parents[2] / "editors" / "jetbrains"
# What LSP4IJ reads of a folder; what else lies there it does not see.
FILES = {
    "template.json",
    "settings.json",
    "settings.schema.json",
    "initializationOptions.json",
    "clientSettings.json",
    "README.md",
}
SYSTEMS = {"default", "windows", "linux", "mac", "unix"}
# As its reader takes a template: a mapping without identifier or file type is dropped in silence.
TEMPLATE = {
    "type": "object",
    "required": ["id", "name", "programArgs"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "pattern": "^[a-z-]+$"},
        "name": {"type": "string", "minLength": 1},
        "programArgs": {
            "type": "object",
            "required": ["default"],
            "propertyNames": {"enum": sorted(SYSTEMS)},
            "additionalProperties": {"type": "string", "minLength": 1},
        },
        "fileTypeMappings": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["fileType", "languageId"],
                "properties": {
                    "fileType": {
                        "type": "object",
                        "anyOf": [{"required": ["name"]}, {"required": ["patterns"]}],
                        "properties": {
                            "name": {"type": "string"},
                            "patterns": {
                                "type": "array",
                                "minItems": 1,
                                "items": {"type": "string", "pattern": r"^\*\."},
                            },
                        },
                    },
                    "languageId": {"type": "string", "minLength": 1},
                },
            },
        },
    },
}


def read(name: str) -> object:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_the_template_has_the_shape_that_is_read() -> None:
    assert {file.name for file in FOLDER.iterdir()} <= FILES
    template = read("template.json")
    jsonschema.validate(template, TEMPLATE)
    assert isinstance(template, dict)
    assert template["programArgs"] == {"default": "qcn-lsp", "windows": "qcn-lsp.exe"}


def test_each_file_is_named_by_its_language() -> None:
    template = read("template.json")
    assert isinstance(template, dict)
    patterns = [
        (pattern, mapping["languageId"])
        for mapping in template["fileTypeMappings"]
        for pattern in mapping["fileType"]["patterns"]
    ]
    assert len({pattern for pattern, _ in patterns}) == len(patterns)
    for pattern, language in patterns:
        assert language_of(pattern.replace("*", "file")) == language


def test_the_settings_are_the_servers_and_the_schema_describes_them() -> None:
    schema, settings = read("settings.schema.json"), read("settings.json")
    assert isinstance(schema, dict)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(settings, schema)
    assert parse_settings(settings)[1] == []
    jsonschema.validate({"qcn": {"completion": {"maxTokens": 64}}}, schema)
    wrong: object
    for wrong in ({"qcn": {"completion": {"maxTokens": "many"}}}, {"completion": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)

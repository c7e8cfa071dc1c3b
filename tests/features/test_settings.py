"""Settings: what a user may write, and what they hear when it is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from qcn_lsp import settings_docs
from qcn_lsp.settings import Settings, in_folder, leaves, parse_settings, scope_of

ROOT = Path(__file__).parents[2]
SCHEMA = jsonschema.Draft202012Validator(settings_docs.schema())


@pytest.mark.parametrize(
    "raw", [None, {}, {"qcn": {}}, {"qcn": None}, {"engine": None}, [], {"log": []}]
)
def test_nothing_set_means_all_defaults_and_no_complaint(raw: object) -> None:
    assert parse_settings(raw) == (Settings(), [])


@pytest.mark.parametrize("wrapped", [False, True])
def test_settings_arrive_under_the_names_the_client_uses(wrapped: bool) -> None:
    raw: dict[str, Any] = {
        "engine": {"url": "https://models.example:8443/v1", "token": "t0p", "idleMinutes": 3},
        "models": {"completion": "/models/next", "chat": None},
        "completion": {"maxTokens": 7, "excludedLanguages": ["markdown"], "popup": False},
        "context": {"openFiles": False, "memoryMiB": 512, "diskMiB": 0},
        "log": {"level": "debug"},
    }
    settings, problems = parse_settings({"qcn": raw} if wrapped else raw)
    assert problems == []
    assert settings.engine.url == "https://models.example:8443/v1"
    assert settings.engine.token is not None
    assert settings.engine.token.get_secret_value() == "t0p"
    assert settings.engine.idle_minutes == 3
    assert settings.models.of("completion") == settings.models.of("chat") == "/models/next"
    assert settings.completion.max_tokens == 7
    assert settings.completion.excluded_languages == ("markdown",)
    assert not settings.completion.popup
    assert not settings.context.open_files
    assert settings.engine_budgets == (512, 0)
    assert settings.log.level == "debug"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (5, "qcn: expected an object with settings, got a number."),
        (
            {"enable": "true"},
            'qcn.enable: expected true or false, got "true". Its default is used.',
        ),
        (
            {"completion": {"maxTokens": 0}},
            "qcn.completion.maxTokens: expected a whole number from 1 to 2048, got 0. "
            "Its default is used.",
        ),
        (
            {"completion": {"maxTokens": 12.5}},
            "qcn.completion.maxTokens: expected a whole number from 1 to 2048, got 12.5. "
            "Its default is used.",
        ),
        (
            {"completion": {"excludedLanguages": ["c", 3]}},
            "qcn.completion.excludedLanguages: expected a list of texts, got a list. "
            "Its default is used.",
        ),
        (
            {"context": {"diskMiB": "2 GB"}},
            'qcn.context.diskMiB: expected a whole number from 0 to 16777216, got "2 GB". '
            "Its default is used.",
        ),
        (
            {"engine": {"idleMinutes": -1}},
            "qcn.engine.idleMinutes: expected a number above 0 to 1440, got -1. "
            "Its default is used.",
        ),
        (
            {"engine": {"device": "gpu"}},
            'qcn.engine.device: expected auto, cpu, cuda or cuda:N, got "gpu". '
            "Its default is used.",
        ),
        (
            {"engine": {"url": "localhost:80"}},
            "qcn.engine.url: expected an address such as http://127.0.0.1:8080, without user name "
            'or password, got "localhost:80". Its default is used.',
        ),
        (
            {"engine": ["url"]},
            "qcn.engine: expected an object with settings, got a list. Its default is used.",
        ),
        (
            {"log": {"level": "loud"}},
            'qcn.log.level: expected one of "error", "warning", "info", "debug", got "loud". '
            "Its default is used.",
        ),
        (
            {"completion": {"maxtoken": 3}},
            "qcn.completion.maxtoken: no such setting. Did you mean qcn.completion.maxTokens?",
        ),
        (
            {"idleMinutes": 3},
            "qcn.idleMinutes: no such setting. Did you mean qcn.engine.idleMinutes?",
        ),
        (
            {"engine.url": "http://localhost"},
            "qcn.engine.url: no such setting. "
            "Did you mean qcn.engine.url (nested, not with a dot in the key)?",
        ),
        (
            {"completion": {"URL": "http://h"}},
            "qcn.completion.URL: no such setting. Did you mean qcn.engine.url?",
        ),
        ({"completion": {"foo": 1}}, "qcn.completion.foo: no such setting."),
        ({"zzz": 1}, "qcn.zzz: no such setting."),
    ],
)
def test_each_problem_names_setting_value_and_expectation(raw: object, sentence: str) -> None:
    assert parse_settings(raw) == (Settings(), [sentence])


def test_a_folder_has_its_own_of_what_may_differ_and_everybodys_of_the_rest() -> None:
    raw: dict[str, Any] = {
        "enable": False,
        "engine": {
            "url": "http://127.0.0.1:1",
            "token": "t",
            "device": "cpu",
            "deviceMemoryMiB": 1,
            "kvCacheDtype": "fp8",
            "idleMinutes": 1,
        },
        "models": {"completion": "/m", "chat": "/c"},
        "completion": {
            "inline": False,
            "popup": False,
            "format": "chat",
            "maxTokens": 1,
            "excludedLanguages": ["c"],
        },
        "context": {
            "openFiles": False,
            "repository": False,
            "tokens": 1,
            "memoryMiB": 1,
            "diskMiB": 1,
        },
        "security": {"findings": False, "sandbox": "off"},
        "log": {"level": "error"},
    }
    folder, problems = parse_settings(raw)
    assert problems == []
    both = in_folder(Settings(), folder)
    taken = {
        path
        for path, _ in leaves()
        if value(both, path) == value(folder, path) != value(Settings(), path)
    }
    left = {
        path
        for path, _ in leaves()
        if value(both, path) == value(Settings(), path) != value(folder, path)
    }
    assert taken == {path for path, field in leaves() if scope_of(field) == "resource"}
    assert left == {path for path, _ in leaves()} - taken


def value(settings: Settings, path: tuple[str, ...]) -> object:
    """Return a setting by its path, with a token as it is compared."""
    dumped: Any = settings.model_dump(by_alias=True)
    for step in path:
        dumped = dumped[step]
    return dumped


def test_a_malformed_setting_leaves_the_others_alone() -> None:
    raw = {"completion": {"maxTokens": "many", "popup": False}, "context": {"openFiles": 1}}
    settings, problems = parse_settings(raw)
    assert len(problems) == 2
    assert settings.completion.max_tokens == Settings().completion.max_tokens
    assert not settings.completion.popup


@pytest.mark.parametrize(
    "raw",
    [
        {"engine": {"token": ["s3cret"]}},
        {"engine": {"tokn": "s3cret"}},
        {"engine": {"url": "http://me:s3cret@host"}},
        {"engine": {"token": "s3cret", "url": 1}},
        {"engine": ["s3cret"]},
    ],
)
def test_a_secret_stands_in_no_message_and_no_representation(raw: object) -> None:
    settings, problems = parse_settings(raw)
    assert "s3cret" not in f"{problems} {settings!r} {settings} {settings.model_dump_json()}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
known_shapes = st.fixed_dictionaries(
    {},
    optional={
        "enable": json_values,
        "log": st.fixed_dictionaries({}, optional={"level": json_values}) | json_values,
        "engine": st.fixed_dictionaries(
            {}, optional={"url": json_values, "token": json_values, "idleMinutes": json_values}
        ),
        "completion": st.fixed_dictionaries(
            {}, optional={"maxTokens": json_values, "excludedLanguages": json_values}
        ),
    },
)


@pytest.mark.long
@examples(sample=200, full=2000)
@given(raw=known_shapes | json_values)
def test_anything_at_all_gives_settings_that_the_schema_accepts(raw: object) -> None:
    settings, problems = parse_settings(raw)
    dumped = json.loads(settings.model_dump_json(by_alias=True))
    SCHEMA.validate(dumped)
    # What was taken over without a complaint is what was asked for.
    if isinstance(raw, dict) and not problems and set(raw) != {"qcn"}:
        for section, asked in raw.items():
            if isinstance(asked, dict):
                for key, value in asked.items():
                    if value is not None and key != "token":
                        assert dumped[section][key] == value


def test_each_setting_is_described_and_says_whose_it_is() -> None:
    for path, field in leaves():
        assert field.description, path
        assert isinstance(field.json_schema_extra, dict), path
        assert field.json_schema_extra["scope"] in ("user", "window", "resource")
    users = {".".join(path) for path, field in leaves() if "'user'" in str(field.json_schema_extra)}
    assert users == {
        "engine.url",
        "engine.token",
        "engine.device",
        "engine.deviceMemoryMiB",
        "engine.kvCacheDtype",
        "engine.idleMinutes",
        "models.completion",
        "models.chat",
        "completion.format",
        "context.memoryMiB",
        "context.diskMiB",
        "security.sandbox",
    }


def test_the_generated_pages_are_fresh(tmp_path: Path) -> None:
    pages = (
        Path("docs/settings.md"),
        Path("docs/settings.schema.json"),
        settings_docs.LSP4IJ,
        settings_docs.MANIFEST,
    )
    for page in pages:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / settings_docs.MANIFEST).write_bytes((ROOT / settings_docs.MANIFEST).read_bytes())
    settings_docs.write(tmp_path)
    for page in pages:
        fresh, committed = (tmp_path / page).read_text(), (ROOT / page).read_text()
        assert fresh == committed, "run `python -m qcn_lsp.settings_docs`"


def test_what_only_the_user_may_set_no_file_of_a_workspace_can() -> None:
    manifest = json.loads((ROOT / settings_docs.MANIFEST).read_text())
    parts = manifest["contributes"]["configuration"]
    scopes = {name: one["scope"] for part in parts for name, one in part["properties"].items()}
    users = {
        ".".join(("qcn", *path))
        for path, field in leaves()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra["scope"] == "user"
    }
    machine = {name for name, scope in scopes.items() if scope == "machine"}
    assert machine == users | {"qcn.server.command", "qcn.server.python"}


def test_the_example_in_the_page_is_valid() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    example = page.split("```json\n")[1].split("```")[0]
    _, problems = parse_settings(json.loads(example))
    assert problems == []


def test_reading_settings_loads_nothing_heavy() -> None:
    script = (
        "import sys, qcn_lsp.settings; qcn_lsp.settings.parse_settings({'enable': True});"
        "print([m for m in ('httpx', 'rich', 'torch', 'difflib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

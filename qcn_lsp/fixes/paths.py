"""Which file a candidate may change: the one with the finding, if that is neither test nor set-up.

A name that a model wrote may be anything: absolute, with `..`, percent-encoded, in other case.
Only the finding's own path, letter by letter, is taken; the rest is told apart for the sentence.
"""

import re
from pathlib import PurePosixPath
from urllib.parse import unquote

from qcn_lsp.fixes.refusal import Reason, Refusal

_TEST_FOLDERS = frozenset({"test", "tests", "testing", "__tests__", "spec", "specs", "e2e"})
_TEST_NAME = re.compile(r"test_.*|.*[_.-](?:tests?|spec)\.\w+|tests?\.\w+|conftest\.py")
# Java's and C#'s, where upper case tells `UserTest` from `Contest`.
_TEST_CLASS = re.compile(
    r".*(?:[A-Za-z0-9](?:Tests?|TestCase)|[a-z0-9]IT)\.(?:java|kt|cs|scala|groovy|swift)"
)
_SETTING_ENDINGS = frozenset(
    {".cfg", ".conf", ".config", ".editorconfig", ".env", ".gradle", ".ini", ".json", ".jsonc"}
    | {".lock", ".mk", ".properties", ".toml", ".xml", ".yaml", ".yml"}
)
_SETTING_NAMES = frozenset(
    {"dockerfile", "makefile", "setup.py", "noxfile.py", "manage.py", "gruntfile.js"}
    | {"go.mod", "go.sum", "gulpfile.js", "requirements.txt", "constraints.txt", "cmakelists.txt"}
)
_SETTING_SCRIPT = re.compile(r".*\.config\.(?:js|cjs|mjs|ts|cts|mts)|\.[^/]*rc(?:\.\w+)?|\.[^.]+")


def is_test(path: PurePosixPath) -> bool:
    """Return whether a file is one of tests, by its name or a folder above it."""
    folders = {part.casefold() for part in path.parts[:-1]}
    named = _TEST_NAME.fullmatch(path.name.casefold()) or _TEST_CLASS.fullmatch(path.name)
    return bool(folders & _TEST_FOLDERS or named)


def refused_path(named: PurePosixPath, own: PurePosixPath) -> Refusal | None:
    """Return why a fix of a finding in `own` may not change the file `named`, or None."""
    if named != own:
        path = PurePosixPath(unquote(str(named)).replace("\\", "/"))
        reason = _kind(path) or Reason.OTHER_FILE
        return Refusal(reason, f"`{named}`, where the finding is in `{own}`")
    if ".." in own.parts or own.is_absolute():
        return Refusal(Reason.OTHER_FILE, f"`{own}` is not inside the workspace folder")
    kind = _kind(own)
    return Refusal(kind, f"`{own}`") if kind else None


def _kind(path: PurePosixPath) -> Reason | None:
    if is_test(path):
        return Reason.TEST
    name = path.name.casefold()
    setting = path.suffix.casefold() in _SETTING_ENDINGS or name in _SETTING_NAMES
    return Reason.CONFIGURATION if setting or _SETTING_SCRIPT.fullmatch(name) else None

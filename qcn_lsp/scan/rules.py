r"""The rules, as they stand in `rules/<folder>/*.yml`, and how each is read.

A file is a list of rules:

    id: sql-built               unique in its folder; the finding's rule is qcn.<folder>.<id>
    cwe, severity, proof        as in `Finding`
    message, rationale          one sentence for the line; why it matters and what to do
    words: [execute]            texts without any of these are not searched
    call: .*\.execute           what is called, by its name as the imports spell it out, and
    args: {"0|sql": built}      what must hold of its arguments, by position or name (`0.url`: see
                                `Call.argument`)
    rule, constraints           or else an ast-grep rule, and
    flow: {VALUE: untrusted}    what must hold of its metavariables
    sanitizers, checked         see `flow.py`
    overrides: [other]          rules that say the same with less reason to
    fix                         see `Fix`; of several the first that is safe at a place
    bad, good                   texts in which it finds something, and nothing

What may be asked of an argument or metavariable: a question of `flow.py`; `present`, `absent`; or
`/pattern/`, which must match its text as a whole; several joined by ` and `.

`flow.yml` in a folder says what comes from outside: see `Outside` in `facts.py`.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from qcn_lsp.scan.facts import Outside
from qcn_lsp.scan.finding import Proof, Severity

_FLOW = "flow.yml"


@dataclass(frozen=True)
class Fix:
    """Edits that remove the weakness and change nothing else.

    `replace`: `match`, `callee`, its `object`, an argument or a metavariable. `by`: its new text,
    in which `$NAME` stands for that of a metavariable or argument. `append`: a further argument.
    `only_if`: texts that must match for the fix to be safe; of `name:PART` the dotted name as the
    imports spell it out. `kinds`: what parts must surely be, see `kinds.py`. `imports`: a module
    that it needs.
    """

    replace: str = ""
    by: str = ""
    append: str = ""
    only_if: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    imports: str = ""


@dataclass(frozen=True)
class Rule:
    """One rule; see the module's description."""

    id: str
    cwe: int
    severity: Severity
    proof: Proof
    message: str
    rationale: str
    words: tuple[str, ...] = ()
    call: re.Pattern[str] | None = None
    args: dict[str, str] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    constraints: dict[str, Any] = field(default_factory=dict)
    flow: dict[str, str] = field(default_factory=dict)
    sanitizers: re.Pattern[str] | None = None
    checked: bool = False
    overrides: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    bad: tuple[str, ...] = ()
    good: tuple[str, ...] = ()


@cache
def rules_of(folder: str) -> tuple[Rule, ...]:
    """Return the rules of a folder, in the order of files and of rules in them."""
    files = sorted((_rules() / folder).iterdir(), key=lambda file: file.name)
    listed = [
        _read(folder, raw)
        for file in files
        if file.name.endswith(".yml") and file.name != _FLOW
        for raw in _load(file.read_text(encoding="utf-8"))
    ]
    if len({rule.id for rule in listed}) < len(listed):
        raise ValueError(f"two rules of {folder} have one id")
    return tuple(listed)


@cache
def outside_of(folder: str) -> Outside:
    """Return what comes from outside in a language."""
    raw = _load((_rules() / folder / _FLOW).read_text(encoding="utf-8"))
    return Outside(raw.get("sources", []), raw.get("sanitizers", ""), raw.get("handlers", ""))


def folders() -> list[str]:
    """Return the folders that hold rules."""
    return sorted(folder.name for folder in _rules().iterdir() if folder.is_dir())


def _rules() -> Any:
    return resources.files("qcn_lsp.scan") / "rules"


def _load(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _read(folder: str, raw: dict[str, Any]) -> Rule:
    """Turn a rule as it is written into one; raises what names the mistake."""
    try:
        fields = dict(raw)
        fields["id"] = f"qcn.{folder}.{raw['id']}"
        fields["severity"] = Severity(raw["severity"])
        fields["proof"] = Proof(raw["proof"])
        for name in ("message", "rationale"):
            fields[name] = " ".join(raw[name].split())
        for name in ("words", "bad", "good"):
            fields[name] = tuple(raw.get(name, ()))
        fields["overrides"] = tuple(f"qcn.{folder}.{id_}" for id_ in raw.get("overrides", ()))
        for name in ("call", "sanitizers"):
            if name in raw:
                fields[name] = re.compile(raw[name])
        if given := fields.pop("fix", None):
            listed = given if isinstance(given, list) else [given]
            fields["fixes"] = tuple(Fix(**one) for one in listed)
        if ("call" in raw) == ("rule" in raw):
            raise ValueError("it needs either a call or a rule")
        return Rule(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the rule {raw.get('id')!r} of {folder} is malformed: {error}") from error

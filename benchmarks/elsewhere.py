"""The scanner on other authors' texts: what it finds beside ruff and bandit, how much it says.

Packages are fetched by version and digest (`data/elsewhere/packages.yml`) and only read. Parts:

releases    files of released packages with a published weakness, at the places where it stood; and
            the places that took theirs in the release that mended it
rule tests  what others test their scanners' rules with: texts with a weakness and texts without
noise       findings in large, well kept packages, for each thousand lines

A place is found when any finding touches its lines. Releases and rules fall into two halves by
their names' digest: `held_out` was not looked at when our rules were mended after the first run.
Bandit's examples stand apart, and without precision: they were made for bandit, and the marks are
what bandit itself finds, in the kinds that we mean to tell.
"""

import ast
import fnmatch
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from ast_grep_py import SgNode, SgRoot

from benchmarks import machine
from benchmarks.registries import fetched, pinned, texts
from benchmarks.scanner import TOOLS, Counts, Lines, Scores
from qcn_lsp.scan.scanner import scan_text

DATA = Path(__file__).resolve().parent / "data" / "elsewhere"
NOISE = {
    "python": {
        ("aiohttp", "3.13.2"): "aiohttp/",
        ("celery", "5.5.3"): "celery/",
        ("django", "5.2.8"): "django/",
        ("flask", "3.1.2"): "src/flask/",
        ("requests", "2.32.5"): "src/requests/",
        ("rich", "14.2.0"): "rich/",
        ("scrapy", "2.13.3"): "scrapy/",
        ("sqlalchemy", "2.0.44"): "lib/sqlalchemy/",
    },
    "javascript": {
        ("eslint", "9.39.1"): "lib/",
        ("express", "4.21.2"): "lib/",
        ("mongoose", "8.19.3"): "lib/",
        ("webpack", "5.102.1"): "lib/",
    },
    "c": {
        ("brotli", "1.2.1"): "c/",
        ("hiredis", "3.5.0"): "",
        ("mod_wsgi", "6.1.1"): "src/",
        ("psycopg2", "2.9.13"): "psycopg/",
        ("pynacl", "1.6.2"): "src/libsodium/src/",
        ("uvloop", "0.23.0"): "vendor/libuv/src/",
        ("uwsgi", "2.0.31"): "",
        ("zstandard", "0.25.0"): "zstd/",
    },
    "java": {
        ("@capacitor/android", "6.1.0"): "capacitor/src/main/",
        ("cordova-android", "12.0.1"): "framework/src/",
        ("jpype1", "1.7.1"): "native/",
        ("react-native", "0.66.5"): "ReactAndroid/src/main/",
    },
}
_SUFFIXES = {"python": (".py",), "javascript": (".js",), "c": (".c", ".h"), "java": (".java",)}
_ANNOTATION = re.compile(r"\s*(?:#|//)\s*(ruleid|ok):\s*([\w-]+)")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_CODE = {78, 94, 95}
# What bandit's examples are also full of and we leave out on purpose: `MEANINGS` in scan/ruff.py.
_BANDIT_LEFT_OUT = re.compile(
    r"B(?:101|103|10[5-8]|110|112|113|31[01]|31[3-9]|320|4\d\d|603|606|607)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Lines of a text, from 1, and whether they are weak; `name` says which weakness."""

    name: str
    weak: bool
    held_out: bool
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Text:
    """One text with its places."""

    part: str
    language: str
    text: str
    places: tuple[Place, ...]


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Score the scanners on others' texts, with `quick` without the noise; raises `FetchError`."""
    parts: dict[str, list[Text]] = {}
    for one in (*releases(), *rule_tests()):
        parts.setdefault(one.part, []).append(one)
    results = {part: _scored(every) for part, every in parts.items()}
    for part, halves in results.items():
        for half, tools in halves.items():
            for tool, told in tools.items():
                figures = {name: told[name] for name in ("weak", "safe", "recall", "precision")}
                print(f"{part}, {half}: {tool}: {figures}", file=sys.stderr)
    return {
        "benchmark": "elsewhere",
        **machine.describe(threads),
        "scanners": {name: metadata.version(name) for name in ("ruff", "bandit", "ast-grep-py")},
        "results": results,
        "named_as_published": named_as_published(),
        "bandit_examples": bandit_examples(),
        "noise": {} if quick else {language: noise(language) for language in NOISE},
    }


def _scored(every: Sequence[Text]) -> dict[str, Any]:
    return {
        half: {
            tool: score(tool, every, held_out=half == "held_out").told()
            for tool in (TOOLS if every[0].language == "python" else ("qcn",))
        }
        for half in ("seen", "held_out")
    }


def score(tool: str, every: Sequence[Text], *, held_out: bool) -> Scores:
    """Return what a tool did at the places of one half; the texts are of one language."""
    scores = Scores()
    found = TOOLS[tool]([one.text for one in every], every[0].language)
    for one, lines in zip(every, found, strict=True):
        for place in one.places:
            if place.held_out == held_out:
                hit = touches(lines, place.first, place.last)
                for counts in (scores.total, scores.by_weakness.setdefault(place.name, Counts())):
                    counts.take(weak=place.weak, hit=hit)
    return scores


def touches(lines: Lines, first: int, last: int) -> bool:
    """Whether any finding touches the lines."""
    return any(start <= last and first <= end for start, end in lines)


def is_held_out(name: str) -> bool:
    """Tell the half of a release or rule by its name."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


# --- Releases with a published weakness ----------------------------------------------------------


def releases() -> Iterator[Text]:
    """Yield the files of releases that have, or had, a published weakness."""
    listed = yaml.safe_load((DATA / "releases.yml").read_text(encoding="utf-8"))
    places: dict[tuple[str, str, str], list[Place]] = {}
    for one in listed:
        name = f"CWE-{one['cwe']} {one['cve']} {one['package']}"
        for kind in ("weak", "fixed"):
            for version, spots in one.get(kind, {}).items():
                for file, _, lines in (spot.rpartition(":") for spot in spots):
                    first, _, last = lines.partition("-")
                    held_out = is_held_out(one["package"])
                    place = Place(name, kind == "weak", held_out, int(first), int(last or first))
                    places.setdefault((one["package"], version, file), []).append(place)
    pins = pinned()
    for (package, version, file), every in places.items():
        pin = pins[package, version]
        text = next(text for name, text in texts(fetched(pin)) if name == file)
        language = "python" if pin.registry == "pypi" else "javascript"
        yield Text(f"releases, {language}", language, text, tuple(every))


def named_as_published() -> dict[str, int]:
    """Return at how many places ours found anything, and at how many the published weakness.

    Running text as code is published as any of 78, 94 and 95: they count as one.
    """
    found = same = 0
    for one in releases():
        findings = scan_text(one.text, one.language)
        starts = [0, *accumulate(len(line) + 1 for line in one.text.split("\n"))]
        for place in one.places:
            start, end = starts[place.first - 1], starts[place.last]
            here = {hit.cwe for hit in findings if hit.start < end and start < hit.end}
            if place.weak and here:
                published = int(place.name.split()[0].removeprefix("CWE-"))
                found += 1
                same += bool(here & (_CODE if published in _CODE else {published}))
    return {"places": found, "same": same}


# --- What others test their rules with -----------------------------------------------------------


def rule_tests() -> Iterator[Text]:
    """Yield the texts that rules of other scanners are tested with."""
    told = yaml.safe_load((DATA / "rules.yml").read_text(encoding="utf-8"))
    for (package, _), pin in pinned().items():
        for name, text in texts(fetched(pin)) if package in told else ():
            of_package = told[package]
            if name.startswith(f"{of_package.get('folder')}/"):
                rule = name.rpartition("/")[2].removesuffix(".js")
                if rule in of_package["rules"]:
                    yield from _eslint_texts(package, rule, of_package["rules"][rule], text)
            for pattern, language in of_package.get("annotated", {}).items():
                if fnmatch.fnmatch(name, pattern):
                    yield Text(f"{package}, {language}", language, text, tuple(_annotated(text)))
            if language := of_package.get("counted", {}).get(name):
                yield from _counted_texts(f"{package}, {language}", language, text)


def _annotated(text: str) -> Iterator[Place]:
    """Yield the line below each annotation."""
    for number, line in enumerate(text.split("\n"), 1):
        if said := _ANNOTATION.match(line):
            weak = said[1] == "ruleid"
            yield Place(said[2], weak, is_held_out(said[2]), number + 1, number + 1)


def _counted_texts(part: str, language: str, text: str) -> Iterator[Text]:
    """Yield the texts of a Python test's lists of `(text, how many weaknesses it has)`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            for case, count in ast.literal_eval(node.value):
                place = Place(language, count > 0, is_held_out(case), 1, case.count("\n") + 1)
                yield Text(part, language, case, (place,))


def _eslint_texts(package: str, rule: str, cwe: int, text: str) -> Iterator[Text]:
    """Yield the texts of a rule's test for ESLint: those of its lists `valid` and `invalid`."""
    root = SgRoot(text, "javascript").root()
    constants = {
        node.field("name").text(): value  # type: ignore[union-attr]
        for node in root.find_all(kind="variable_declarator")
        if (value := node.field("value")) and node.field("name")
    }
    for listed in root.find_all(kind="pair", regex=r"^(in)?valid:"):
        weak = listed.text().startswith("invalid")
        value = listed.field("value")
        for item in value.children() if value and value.kind() == "array" else ():
            code = _code(item, constants)
            if code:
                name = f"CWE-{cwe} {rule}"
                place = Place(name, weak, is_held_out(rule), 1, code.count("\n") + 1)
                yield Text(f"{package}, javascript", "javascript", code, (place,))


def _code(item: SgNode, constants: dict[str, SgNode]) -> str | None:
    """Return the text of one test: a string, a constant that is one, or `{code: string}`."""
    if item.kind() == "object":
        pairs = [one for one in item.children() if one.kind() == "pair"]
        code = next((one.field("value") for one in pairs if one.text().startswith("code:")), None)
        return _code(code, constants) if code else None
    if item.kind() == "identifier" and item.text() in constants:
        return _code(constants[item.text()], {})
    if item.kind() in ("string", "template_string") and "${" not in item.text():
        return _ESCAPE.sub(_unescaped, item.text()[1:-1])
    return None


def _unescaped(escape: re.Match[str]) -> str:
    if code := escape[1] or escape[2]:
        return chr(int(code, 16))
    return {"n": "\n", "r": "\r", "t": "\t"}.get(escape[3], escape[3])


# --- Bandit's examples, and noise ----------------------------------------------------------------


def bandit_examples() -> dict[str, Any]:
    """Return how much of what bandit finds in its own examples ours and ruff find too."""
    [pin] = [one for one in pinned().values() if one.name == "bandit"]
    every = [text for name, text in texts(fetched(pin)) if re.fullmatch(r"examples/\S+\.py", name)]
    marks: list[list[tuple[str, int, int]]] = [[] for _ in every]
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(every):
            (Path(folder) / f"{number}.py").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "bandit", "--exit-zero", "-q", "-f", "json", "-r", folder]
        done = subprocess.run(command, capture_output=True, check=True)
    for one in json.loads(done.stdout)["results"]:
        if not _BANDIT_LEFT_OUT.fullmatch(one["test_id"]):
            name = f"CWE-{one['issue_cwe'].get('id', 0)} {one['test_id']} {one['test_name']}"
            span = one["line_range"]
            marks[int(Path(one["filename"]).stem)].append((name, span[0], span[-1]))
    told = {}
    for tool in ("qcn", "ruff"):
        scores = Scores()
        for lines, marked in zip(TOOLS[tool](every, "python"), marks, strict=True):
            for name, first, last in marked:
                hit = touches(lines, first, last)
                for counts in (scores.total, scores.by_weakness.setdefault(name, Counts())):
                    counts.take(weak=True, hit=hit)
        told[tool] = scores.told()
    return told


def noise(language: str) -> dict[str, Any]:
    """Return each tool's findings for each thousand lines of well kept packages."""
    told: dict[str, Any] = {}
    pins = pinned()
    for (package, version), folder in NOISE[language].items():
        every = [
            text
            for name, text in texts(fetched(pins[package, version]))
            if name.startswith(folder) and name.endswith(_SUFFIXES[language])
        ]
        lines = sum(text.count("\n") for text in every)
        told[package] = {"lines": lines}
        for tool in TOOLS if language == "python" else ("qcn",):
            found = sum(map(len, TOOLS[tool](every, language)))
            told[package][tool] = round(1000 * found / lines, 3)
        print(f"noise: {package}: {told[package]}", file=sys.stderr)
    return told

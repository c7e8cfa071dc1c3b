"""The scanner beside ruff and bandit: what each finds of weaknesses, and what it takes for one.

The texts are those of `data/weaknesses/`, written before the rules and apart from their cases; what
is `held_out` there was not looked at while rules were made. Each has one marked line. A weak text
is found when any finding, of whatever kind, touches that line; a safe text is mistaken when one
does. So no table of kinds decides for or against a tool. Findings on other lines are counted apart.

How long a text takes is measured on the Python files of this repository, through the process that
the language server asks, from asking to having the findings; the process has been started before.
On a machine with other work that is mostly waiting, so the processor's time is told too.

Python's texts are scanned in wrappings too: in a method, in a nested function, in a `try`. Ruff and
bandit read Python alone: for the other languages there is nothing of theirs to compare with.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from benchmarks import machine
from benchmarks.results import percentiles
from qcn_lsp.scan.process import ScanProcess

FILES, QUICK_FILES = 200, 10
REPEATS = 5  # of a text, as the clock of the processor's time is coarse
DATA = Path(__file__).resolve().parent / "data" / "weaknesses"
LANGUAGES = ("python", "javascript", "go")
_MARKS = {"python": "#!", "javascript": "//!", "go": "//!"}
_WRAPPINGS = {
    "method": "class Service:\n    def handle(self):\n{}",
    "nested function": "def outer():\n    def inner():\n{}\n    return inner",
    "try": "if __name__:\n    try:\n{}\n    finally:\n        pass",
}

Lines = list[tuple[int, int]]
"""The first and last line, from 1, of each finding in a text."""
Tool = Callable[[Sequence[str], str], list[Lines]]


@dataclass(frozen=True, slots=True)
class Case:
    """One text and its marked line, from 1."""

    cwe: int
    name: str
    weak: bool
    held_out: bool
    text: str
    line: int


@dataclass(slots=True)
class Counts:
    """What a tool did with some texts."""

    found: int = 0
    missed: int = 0
    mistaken: int = 0
    passed: int = 0
    elsewhere: int = 0

    def add(self, case: Case, lines: Lines) -> None:
        """Take in what a tool found in one text."""
        hit = any(first <= case.line <= last for first, last in lines)
        self.elsewhere += sum(not first <= case.line <= last for first, last in lines)
        self.take(weak=case.weak, hit=hit)

    def take(self, *, weak: bool, hit: bool) -> None:
        """Take in whether a tool found anything at one place."""
        if weak:
            self.found, self.missed = self.found + hit, self.missed + (not hit)
        else:
            self.mistaken, self.passed = self.mistaken + hit, self.passed + (not hit)

    def told(self) -> dict[str, Any]:
        """Return the counts with recall and precision, which is null where nothing was found."""
        weak, alarms = self.found + self.missed, self.found + self.mistaken
        return {
            "weak": weak,
            "safe": self.mistaken + self.passed,
            "found": self.found,
            "mistaken": self.mistaken,
            "findings_on_other_lines": self.elsewhere,
            "recall": round(self.found / weak, 3) if weak else None,
            "precision": round(self.found / alarms, 3) if alarms else None,
        }


@dataclass(slots=True)
class Scores:
    """A tool's counts for some texts, in all and by weakness."""

    total: Counts = field(default_factory=Counts)
    by_weakness: dict[str, Counts] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Return them for the result file."""
        weaknesses = {name: counts.told() for name, counts in self.by_weakness.items()}
        return {**self.total.told(), "by_weakness": weaknesses}


def run(threads: int, *, quick: bool) -> dict[str, Any]:
    """Score every tool on every language, and measure how long a text takes."""
    result: dict[str, Any] = {}
    for language in LANGUAGES:
        cases = list(read_cases(language))
        parts = {
            "seen": [case for case in cases if not case.held_out],
            "held_out": [case for case in cases if case.held_out],
        }
        if language == "python":
            parts["wrapped"] = [one for case in cases for one in wrapped(case)]
        result[language] = {
            part: {tool: score(TOOLS[tool], chosen, language).told() for tool in _tools(language)}
            for part, chosen in parts.items()
        }
        _print(language, result[language])
    versions = {name: metadata.version(name) for name in ("ruff", "bandit", "ast-grep-py")}
    return {
        "benchmark": "scanner",
        **machine.describe(threads),
        "scanners": versions,
        "results": result,
        "milliseconds": asyncio.run(_milliseconds(QUICK_FILES if quick else FILES)),
    }


async def _milliseconds(count: int) -> dict[str, Any]:
    """Return how long files of this repository take, the longest ones among them."""
    texts = [
        path.read_text(encoding="utf-8") for path in sorted(machine.ROOT.rglob("qcn_*/**/*.py"))
    ]
    texts = sorted(texts, key=len, reverse=True)[:count]
    process = ScanProcess()
    try:
        await process.scan("", "python")
        taken = []
        for text in texts:
            began = time.perf_counter()
            await process.scan(text, "python")
            taken.append(1000 * (time.perf_counter() - began))
    finally:
        await process.close()
    lines = [text.count("\n") for text in texts]
    return {
        "lines": percentiles(lines, "lines"),
        "a_text": percentiles(taken, "ms"),
        "processor": percentiles([_processor_milliseconds(text) for text in texts], "ms"),
    }


def _processor_milliseconds(text: str) -> float:
    """Return the processor time that a text takes, ruff's included, whatever else is running."""
    from qcn_lsp.scan.scanner import scan_text

    began = sum(os.times()[:4])  # this process's and that of those it has waited for
    for _ in range(REPEATS):
        scan_text(text, "python")
    return 1000 * (sum(os.times()[:4]) - began) / REPEATS


def read_cases(language: str) -> Iterator[Case]:
    """Yield the cases of a language, without their marks."""
    mark = _MARKS[language]
    for weakness in yaml.safe_load((DATA / f"{language}.yml").read_text(encoding="utf-8")):
        for part in (weakness, weakness["held_out"]):
            for kind in ("weak", "safe"):
                for text in part.get(kind, ()):
                    lines = text.split("\n")
                    [line] = [n for n, one in enumerate(lines, 1) if one.endswith(mark)]
                    yield Case(
                        cwe=weakness["cwe"],
                        name=weakness["name"],
                        weak=kind == "weak",
                        held_out=part is not weakness,
                        text=text.replace(f" {mark}", ""),
                        line=line,
                    )


def wrapped(case: Case) -> Iterator[Case]:
    """Yield a Python case inside other code."""
    for frame in _WRAPPINGS.values():
        head = frame.index("{}")
        text = frame.format(textwrap.indent(case.text.rstrip(), " " * 8))
        line = case.line + frame.count("\n", 0, head)
        yield Case(case.cwe, case.name, case.weak, case.held_out, text, line)


def score(tool: Tool, cases: Sequence[Case], language: str) -> Scores:
    """Return what a tool did with the cases."""
    scores = Scores()
    found = tool([case.text for case in cases], language)
    for case, lines in zip(cases, found, strict=True):
        scores.total.add(case, lines)
        title = f"CWE-{case.cwe} {case.name}"
        scores.by_weakness.setdefault(title, Counts()).add(case, lines)
    return scores


def _tools(language: str) -> list[str]:
    return list(TOOLS) if language == "python" else ["qcn"]


def _qcn(texts: Sequence[str], language: str) -> list[Lines]:
    from qcn_lsp.scan.scanner import scan_text

    # TypeScript's grammar takes all of these texts but those with elements in them.
    names = {"javascript": "typescriptreact"}
    return [
        [
            (text.count("\n", 0, one.start) + 1, text.count("\n", 0, one.end) + 1)
            for one in scan_text(text, names.get(language, language))
        ]
        for text in texts
    ]


def _ruff(texts: Sequence[str], _language: str) -> list[Lines]:
    from ruff import find_ruff_bin

    options = ("check", "--isolated", "--no-cache", "--exit-zero", "--select", "S")
    items = _over_files([find_ruff_bin(), *options, "--output-format", "json"], texts)
    return _by_file(
        len(texts),
        ((one["filename"], one["location"]["row"], one["end_location"]["row"]) for one in items),
    )


def _bandit(texts: Sequence[str], _language: str) -> list[Lines]:
    command = [sys.executable, "-m", "bandit", "--exit-zero", "-q", "-f", "json", "-r"]
    found = _over_files(command, texts)["results"]
    return _by_file(
        len(texts),
        ((one["filename"], one["line_range"][0], one["line_range"][-1]) for one in found),
    )


def _over_files(command: Sequence[str], texts: Sequence[str]) -> Any:
    """Return the JSON that a command prints about a folder of files `<number>.py`."""
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            (Path(folder) / f"{number}.py").write_text(text, encoding="utf-8")
        done = subprocess.run([*command, folder], capture_output=True, check=True)
        return json.loads(done.stdout)


def _by_file(count: int, found: Iterator[tuple[str, int, int]]) -> list[Lines]:
    lines: list[Lines] = [[] for _ in range(count)]
    for name, first, last in found:
        lines[int(Path(name).stem)].append((first, last))
    return lines


TOOLS: dict[str, Tool] = {"qcn": _qcn, "ruff": _ruff, "bandit": _bandit}


def _print(language: str, parts: dict[str, Any]) -> None:
    for part, tools in parts.items():
        for tool, told in tools.items():
            figures = ", ".join(
                f"{name} {told[name]}"
                for name in ("recall", "precision", "findings_on_other_lines")
            )
            print(f"{language}, {part}: {tool}: {figures}", file=sys.stderr)

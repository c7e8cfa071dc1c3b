"""Ruff's security rules over one Python text, and what each of them says in MITRE's list.

Ruff runs as a process of its own that knows nothing of the workspace: the binary of the installed
package, whatever is on the path or in the current folder; no configuration, no cache, no
environment, no suppressions; the text on its standard input, no file is opened.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qcn_lsp.scan.finding import Finding, Proof, Severity

SECONDS = 5.0
"""How long ruff may take for one text; it needs some 20 ms."""

_NEEDED = ("SYSTEMROOT",)  # of the environment, without which Windows starts nothing

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_SEEN, _NEAR = Proof.WITNESS, Proof.HINT


@dataclass(frozen=True, slots=True)
class _Meaning:
    cwe: int
    severity: Severity
    proof: Proof
    rationale: str


MEANINGS = {
    "S104": _Meaning(605, _N, _SEEN, "The service can be reached from every network; bind one."),
    "S201": _Meaning(489, _E, _SEEN, "Flask's debugger runs any code for whoever reaches it."),
    "S202": _Meaning(22, _E, _NEAR, "An entry named ../x is written outside the folder; pass "
                     "filter='data'."),
    "S301": _Meaning(502, _W, _NEAR, "A pickle runs code when it is read. Use JSON for data that "
                     "others can write."),
    "S302": _Meaning(502, _W, _NEAR, "marshal crashes or worse on hostile data. Use JSON."),
    "S303": _Meaning(328, _W, _SEEN, "Collisions of this hash can be computed. Use SHA-256."),
    "S304": _Meaning(327, _E, _SEEN, "This cipher is broken. Use AES-GCM or ChaCha20-Poly1305."),
    "S305": _Meaning(327, _E, _SEEN, "ECB shows which blocks are equal. Use GCM."),
    "S306": _Meaning(377, _W, _SEEN, "Another process can take the name first. Use mkstemp."),
    "S312": _Meaning(319, _W, _SEEN, "Telnet sends everything in the clear. Use SSH."),
    "S321": _Meaning(319, _W, _SEEN, "FTP sends everything in the clear. Use SFTP or HTTPS."),
    "S323": _Meaning(295, _E, _SEEN, "Anybody on the way can answer for the server."),
    "S324": _Meaning(328, _W, _SEEN, "Collisions of this hash can be computed. Use SHA-256."),
    "S501": _Meaning(295, _E, _SEEN, "Anybody on the way can answer for the server."),
    "S502": _Meaning(327, _W, _SEEN, "This version of TLS is broken. Use PROTOCOL_TLS_CLIENT."),
    "S503": _Meaning(327, _W, _SEEN, "This version of TLS is broken. Use PROTOCOL_TLS_CLIENT."),
    "S505": _Meaning(326, _W, _SEEN, "A key of this length can be broken. Use RSA of 3072 bits."),
    "S507": _Meaning(295, _E, _SEEN, "Anybody on the way can answer for the host."),
    "S508": _Meaning(319, _W, _SEEN, "SNMP 1 and 2 send everything in the clear. Use version 3."),
    "S509": _Meaning(319, _W, _SEEN, "SNMP without privacy sends everything in the clear."),
    "S602": _Meaning(78, _E, _NEAR, "A shell reads what is put into the line. Pass a list and no "
                     "shell."),
    "S604": _Meaning(78, _W, _NEAR, "A shell reads what is put into the line."),
    "S605": _Meaning(78, _E, _NEAR, "A shell reads what is put into the line. Use subprocess.run "
                     "with a list."),
    "S609": _Meaning(78, _W, _NEAR, "A file named like an option becomes one."),
    "S610": _Meaning(89, _W, _NEAR, "extra() puts text into SQL as it is. Use expressions."),
    "S611": _Meaning(89, _W, _NEAR, "RawSQL puts text into SQL as it is. Pass parameters."),
    "S612": _Meaning(94, _E, _SEEN, "The port takes configurations that run code."),
    "S701": _Meaning(79, _E, _SEEN, "Without escaping, data becomes markup."),
    "S702": _Meaning(79, _W, _NEAR, "Mako does not escape unless told. Use default_filters=['h']."),
}  # fmt: skip
"""Those that are used. Left out, as they say more of style than of a weakness, are wrong more often
than right, or are told better by rules of ours: S101, S102, S103 (0o755 is no weakness), S105 to
S108, S110, S112, S113 (timeouts), S307, S308 (any text marked safe), S310 (any URL), S311 (any
random number), S313 to S319 (XML that expat has long been safe for), S504 (the default is safe),
S506, S601, S603, S606, S607 (any process), S608, S704 (any markup)."""

# Where the value is the empty string or the like, the other kind of shell call is no weakness.
_CONSTANT_SHELL = "seems safe"


class Ruff:
    """One run, started at once and read when the other scanners are done."""

    def __init__(self, text: str, *, seconds: float = SECONDS) -> None:
        self._text = text
        self._seconds = seconds
        command = [
            _binary(),
            *("check", "--isolated", "--no-cache", "--ignore-noqa", "--quiet", "--exit-zero"),
            *("--select", ",".join(MEANINGS), "--output-format", "json", "--target-version"),
            *("py312", "--stdin-filename", "text.py", "-"),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(_binary()).parent,
            env={name: os.environ[name] for name in _NEEDED if name in os.environ},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def findings(self) -> list[Finding]:
        """Return what it found; nothing in a text that it cannot read, or has no time for."""
        try:
            output, _ = self._process.communicate(
                self._text.encode("utf-8", "replace"), self._seconds
            )
            raw = json.loads(output or b"[]")
        except (subprocess.TimeoutExpired, ValueError):
            return []
        starts = _line_starts(self._text)
        return [one for item in raw if (one := _finding(item, starts, len(self._text)))]


def _finding(item: dict[str, Any], starts: list[int], length: int) -> Finding | None:
    meaning = MEANINGS.get(item["code"] or "")
    if meaning is None or _CONSTANT_SHELL in item["message"]:
        return None
    start, end = (_offset(item[name], starts, length) for name in ("location", "end_location"))
    return Finding(
        rule=f"ruff.{item['code']}",
        cwe=meaning.cwe,
        severity=meaning.severity,
        proof=meaning.proof,
        message=item["message"].replace("`", ""),
        rationale=meaning.rationale,
        start=min(start, end),
        end=end,
    )


def _offset(place: dict[str, int], starts: list[int], length: int) -> int:
    """Return the character of a row and column, which count from 1."""
    row = min(place["row"] - 1, len(starts) - 1)
    return min(starts[row] + place["column"] - 1, length)


def _line_starts(text: str) -> list[int]:
    return list(_starts(text))


def _starts(text: str) -> Iterator[int]:
    yield 0
    for number, letter in enumerate(text):
        if letter == "\n" or (letter == "\r" and text[number + 1 : number + 2] != "\n"):
            yield number + 1


@cache
def _binary() -> str:
    """Return the path of the installed package's ruff: never one of the path or the workspace."""
    from ruff import find_ruff_bin

    path: str = find_ruff_bin()
    return path

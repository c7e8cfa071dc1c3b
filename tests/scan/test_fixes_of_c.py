"""Fixes of C's memory errors, judged by the compiler's address sanitizer.

Each program takes a text. A short one is printed alike before and after the fix; one that fills the
buffer is written past its end before, and is not after.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from qcn_lsp.scan.scanner import scan_text

_FLAGS = ["-w", "-O0", "-fsanitize=address", "-fno-builtin"]
_FRAME = """\
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **given) {{ char *s = given[1]; {} return 0; }}
"""
_PIPED = "int d[2]; pipe(d); write(d[1], s, strlen(s)); close(d[1]); char b[9]; "


def compiled(text: str, folder: Path, name: str) -> Path:
    source, program = folder / f"{name}.c", folder / name
    source.write_text(text, encoding="utf-8")
    done = subprocess.run(["cc", *_FLAGS, "-o", program, source], capture_output=True, text=True)
    if "cannot find" in done.stderr:
        pytest.skip("the compiler has no address sanitizer")
    assert done.returncode == 0, done.stderr
    return program


def output(program: Path, given: str) -> tuple[int, bytes, bool]:
    """Return exit code, what was printed, and whether the sanitizer stopped it."""
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program, given], capture_output=True, env=environment, timeout=60)
    return done.returncode, done.stdout, b"AddressSanitizer" in done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("append-too-long", 'char b[9] = "<"; strncat(b, s, sizeof(b)); puts(b);'),
        (
            "append-too-long",
            'char b[9] = "<"; strncat(b, s, sizeof(b) - strlen(b)); puts(b);',
        ),
        ("filled-to-the-end", _PIPED + "int n = read(d[0], b, sizeof(b)); b[n] = 0; puts(b);"),
        ("no-room-for-the-end", "char *b = malloc(strlen(s)); strcpy(b, s); puts(b);"),
        ("length-of-rest", "char *b = malloc(strlen(s + 1)); strcpy(b, s); puts(b);"),
    ],
)
def test_the_sanitizer_sees_what_is_found_and_nothing_after_the_fix(
    rule: str, body: str, tmp_path: Path
) -> None:
    text = _FRAME.format(body)
    [finding] = [one for one in scan_text(text, "c") if one.rule == f"qcn.c.{rule}"]
    [edit] = finding.fix
    fixed = text[: edit.start] + edit.text + text[edit.end :]
    before, after = compiled(text, tmp_path, "before"), compiled(fixed, tmp_path, "after")
    long = "a text that fills it"
    assert output(before, long)[2]
    assert not output(after, long)[2]
    if "malloc" not in body:  # there any text is too long by its end
        assert output(before, "ab") == output(after, "ab")
    assert output(after, "ab")[1].strip(b"<\n") == b"ab"

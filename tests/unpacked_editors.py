"""Editors of Debian's newest suite, unpacked beside the system by `make test-editors`."""

from pathlib import Path

import pytest

BIN = Path(__file__).parents[1] / ".cache" / "debian-editors" / "bin"


def unpacked(name: str) -> Path:
    """Return the program, or skip the test with the remedy."""
    program = BIN / name
    if not program.is_file():
        pytest.skip(f"{name} of Debian's newest suite is not unpacked: make test-editors")
    return program

"""What may not be committed: paths of one machine, registry addresses, pickled weights."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|root|opt/(?:pypi|wheels|npm))/\w"),
    "a package registry's address": re.compile(
        r"https?://[^\s\"')]*(?:pypi|pythonhosted|registry\.npmjs|npmmirror|download\.pytorch)"
    ),
}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_file_names_one_machine_or_a_registry() -> None:
    found = []
    for path in tracked_files():
        if path.suffix in {".safetensors", ".png"} or path == Path(__file__) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path}: {what}" for what, pattern in FORBIDDEN.items() if pattern.search(text)]
    assert found == []


def test_no_pickled_weights() -> None:
    assert [path for path in tracked_files() if path.suffix in PICKLES] == []


def test_the_extension_for_vs_code_has_the_packages_version() -> None:
    """They say to each other what they need to; the extension refuses another minor version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = ROOT / "editors" / "vscode"
    for name in ("package.json", "package-lock.json"):
        package = json.loads((folder / name).read_text(encoding="utf-8"))
        assert package["version"] == project["version"]

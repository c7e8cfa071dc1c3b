"""The scale benchmark measures a workspace of its own making, and its figures become a page."""

from pathlib import Path

from benchmarks import machine, report, results, scale

FILES = 300


def test_every_figure_is_measured_and_becomes_a_page(tmp_path: Path) -> None:
    measured = scale.measure(FILES, quiet_seconds=0)

    assert measured["burst_files"] == FILES // 2
    assert measured["segments"] > FILES / 2  # nearly all of so few fit
    assert measured["one_change"]["samples"] == 20
    for name in ("memory", "memory_before"):
        assert measured[name]["value"] > 0
    for name in ("first_index_over_git", "git_status_over_one_change"):
        assert measured[name] >= 0  # rounded; how long each took is not for a test to judge

    results.write(
        {"benchmark": "scale"} | machine.describe(1) | {"workspaces": [measured]}, tmp_path
    )
    assert f"| {FILES} |" in report.write(tmp_path).read_text()

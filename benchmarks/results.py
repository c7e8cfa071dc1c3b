"""Figures with their unit and spread, and the files they are kept in."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def figure(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and range of repeated measurements."""
    return {
        "unit": unit,
        "median": _rounded(statistics.median(values)),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
        "samples": len(values),
    }


def percentiles(values: Sequence[float], unit: str) -> dict[str, Any]:
    """The 50th and 95th percentile (inclusive) and the range of many measurements."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "unit": unit,
        "p50": _rounded(cuts[49]),
        "p95": _rounded(cuts[94]),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
        "samples": len(values),
    }


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write `<benchmark>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['benchmark']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")

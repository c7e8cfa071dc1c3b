"""What was measured becomes a page of tables: of `evaluation`, and of `edit` beside its peers."""

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine, report, results
from benchmarks.edit import FILE_ORDER, OUR_LAYOUT, OURS, figures_of
from benchmarks.edit_servers import Asked
from qcn_lsp.commands.eval import Experiment, Scores
from qcn_lsp.evaluation.scores import mean, share


def test_an_evaluation_becomes_a_table_with_counts_and_intervals(tmp_path: Path) -> None:
    first = Scores("without", share(1, 10), mean([0.1, 0.3], 0, 1), None)
    second = Scores("with", share(5, 10), mean([0.5, 0.7], 0, 1), mean([0.4, 0.4], -1, 1))
    experiment = asdict(Experiment("overlay", 10, 4, (first, second)))
    asked = {"model": "qcn-nano", "limit": 10, "experiments": [experiment], "notes": ["A note."]}
    result = {"benchmark": "evaluation"} | machine.describe(1) | asked

    written = json.loads(results.write(result, tmp_path).read_text())
    page = report.write(tmp_path).read_text()

    assert written["experiments"][0]["scores"][1]["exact"]["value"] == 0.5
    assert "n = 10, of which 4 with a change about the name" in page
    assert "| without | 10 % [1.79 to 40.4] | 0.2 [0.004 to 0.396] |  |" in page
    assert "| with | 50 % [23.7 to 76.3] | 0.6 [0.404 to 0.796] | 0.4 [0.4 to 0.4] |" in page
    assert "A note." in page


def test_edits_become_a_table_of_times_tokens_and_ratios(tmp_path: Path) -> None:
    cases = {
        "one line": {
            OURS: [Asked(0.1, 400, 5_000), Asked(0.2, 400, 5_000)],
            OUR_LAYOUT: [Asked(0.4, 404, 5_000), Asked(0.6, 404, 5_000)],
            FILE_ORDER: [Asked(3.0, 5_000, 5_000)],
        },
        "nothing": {OURS: [Asked(0.1, 300, 5_000)]},
    }
    context = {
        "tokens": 4_096,
        "files": 7,
        "from_nothing": {OURS: {"unit": "ms", "value": 1_500.0, "tokens": 5_000}},
        "cases": {name: figures_of(found) for name, found in cases.items()},
    }
    measured = {"contexts": [context], "not_measured": {"transformers": "it is not here"}}

    results.write({"benchmark": "edit"} | machine.describe(1) | measured, tmp_path)
    page = report.write(tmp_path).read_text()

    assert "150 (100 to 200) ms, 400 tokens" in page
    assert "| 3.5 (3 to 4) | 20 (20 to 20) |" in page
    assert "ours from nothing: 1,500 ms, 10 times ours after a change of one line" in page
    assert "transformers was not measured: it is not here" in page

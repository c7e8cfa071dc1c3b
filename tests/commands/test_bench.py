"""`qcn bench` on the embedded model: what it measures, prints and writes; no speed is judged."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_support import qcn

from qcn_lsp.commands.plot import Line, plot


def test_every_figure_stands_beside_its_floor_and_the_peers(runtime: Path, tmp_path: Path) -> None:
    done = qcn("bench", "--lengths", "256", "512", "--output", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert json.loads((tmp_path / "bench.json").read_text()) == measured
    first, second = measured["prompts"]
    assert [first["tokens"], second["tokens"]] == [256, 512]
    for one in (first, second):
        assert one["measured"]
        for what in ("prefill", "decode", "edit"):
            assert one[f"{what}_seconds"] > 0
            assert one[f"{what}_floor"] > 0
    assert 2 < second["prefill_operations"] / first["prefill_operations"] < 2.2
    # Weights of qcn-nano that a token reads, in bf16, and what the longer prompt's KV adds.
    assert 13e6 < first["decode_bytes"] < 16e6
    assert second["decode_bytes"] - first["decode_bytes"] == 256 * 2 * 2 * 2 * 64 * 2
    assert measured["machine"]["bandwidth"] > 0
    assert measured["first_completion"]["first_milliseconds"] > 0
    assert not measured["first_completion"]["engine_was_running"]
    drawn = ElementTree.fromstring((tmp_path / "bench.svg").read_text())
    assert drawn.tag.endswith("svg")
    # transformers is installed for the tests.
    peers = measured["peers"]["transformers"]
    assert [one["tokens"] for one in peers] == [256, 512]
    assert all(one["decode_seconds"] > 0 for one in peers)


def test_what_does_not_fit_is_refused_before_memory_is_taken(runtime: Path) -> None:
    done = qcn("bench", "--synthetic", "qwen3-coder-next-bf16", "--device", "cpu")
    if done.returncode == 0:
        pytest.skip("this machine has room for 159 GB of weights")
    assert "its weights take 159 GB" in done.stderr
    assert "qcn-nano" in done.stderr


def test_a_folder_that_is_no_model_is_named(runtime: Path, tmp_path: Path) -> None:
    done = qcn("bench", "--model", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr


def test_a_plot_shows_its_lines_to_scale() -> None:
    drawn = ElementTree.fromstring(plot("a & b", [Line("up", [(1, 1), (4, 100)])]))
    texts = ["".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "a & b: tokens a second" in texts
    assert {"1", "2", "4", "10", "100", "up"} <= set(texts)
    (line,) = drawn.iter("{http://www.w3.org/2000/svg}polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x0 < x1
    assert y0 > y1
    with pytest.raises(ValueError, match="nothing to draw"):
        plot("empty", [Line("none", [])])

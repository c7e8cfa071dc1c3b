"""Tuned tiles: only such as give the same bits, kept for each GPU, checked when read."""

import contextlib
import io
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from interpreted import Caller
from qcn_kernels.chip import CHIPS
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.moe import tune
from qcn_kernels.moe.tiles import SHIPPED, Kept, Tile, Tiles, candidates, with_other_down
from qcn_kernels.moe.tune import fastest
from qcn_kernels.moe.tuned import read, write
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

SLOW, FAST, TOO_LARGE, WRONG = (Tile(rows, 128, 4, 3) for rows in (16, 32, 64, 128))
TOO_MANY_WARPS = Tile(128, 256, 16, 3)
TUNED = {
    "plain": Tiles(few=Tile(64, 128, 4, 2), many=Tile(128, 256, 8, 4)),
    "e4m3": Tiles(
        few=Tile(64, 256, 8, 3, Kept(64, 2048, 4, 3)),
        many=Tile(128, 256, 8, 4, Kept(128, 2048, 8, 2), registers=232, tail=True),
    ),
}


def run(tile: Tile) -> Tensor:
    if tile == TOO_LARGE:
        raise OutOfResources(200, 99, "shared memory")
    if tile == TOO_MANY_WARPS:
        raise PTXASError("Insufficient registers (128) to compile instruction")
    return torch.tensor([1.0 if tile != WRONG else 1.0 + 2**-23])


def test_the_fastest_is_taken_of_those_that_fit_and_give_the_same_bits() -> None:
    times = {SLOW: 3.0, FAST: 2.0}  # of what is timed: no time is asked of the others
    told: dict[Tile, float | str] = {}
    tiles = [SLOW, TOO_LARGE, TOO_MANY_WARPS, WRONG, FAST]
    best = fastest(
        tiles,
        want=torch.ones(1),
        run=run,
        milliseconds=times.__getitem__,
        tell=told.__setitem__,
    )
    assert best == FAST
    assert list(told) == tiles
    assert {tile: found for tile, found in told.items() if tile in times} == times
    assert told[WRONG] == "gives other bits"
    assert "shared memory" in str(told[TOO_LARGE])
    assert "registers" in str(told[TOO_MANY_WARPS])


def test_what_is_known_is_told_before_the_next_is_tried() -> None:
    """A run that is cut off leaves what it had."""
    told: list[Tile] = []

    def interrupted(tile: Tile) -> float:
        if tile == FAST:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        fastest(
            [SLOW, FAST],
            want=torch.ones(1),
            run=run,
            milliseconds=interrupted,
            tell=lambda tile, _: told.append(tile),
        )
    assert told == [SLOW]


def tuned_in_small(gate_up: Fp8Matrices, down: Fp8Matrices) -> tuple[Tiles, str]:
    """Tune among two candidates, each of which is said to be faster than the one before."""
    times = itertools.count(9.0, -0.25)

    def timed(once: Callable[[], object], **_: Any) -> float:
        once()
        return next(times)

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        sizes = {"TOP_K": 2, "SIDE": 32, "MANY_TOKENS": 70, "FEW_TOKENS": 3, "COMPILERS": 1}
        for name, size in sizes.items():
            patch.setattr(tune, name, size)
        patch.setattr(tune, "candidates", lambda *of: candidates(*of)[:2])
        patch.setattr(tune, "with_other_down", lambda tile: with_other_down(tile)[:1])
        patch.setattr(triton.testing, "do_bench", timed)
        _, tiles = tune.tuned(gate_up, down)
    return tiles, out.getvalue()


def test_a_format_is_tuned_and_all_that_is_found_is_told(call: Caller) -> None:
    """All but the times is real; weights are 0, for numpy adds up by the size of a matrix."""
    shapes = {"gate_up": (3, 256, 256), "down": (3, 256, 128)}
    stacks = {name: zeros_in_fp8(*shape) for name, shape in shapes.items()}
    tiles, out = call(tuned_in_small, **stacks)
    told = [json.loads(line) for line in out.splitlines()]
    for tokens, best in ((70, tiles.many), (3, tiles.few)):
        *timed, fastest_of_all = [line for line in told if line["tokens"] == tokens]
        assert len(timed) >= 3
        assert (
            fastest_of_all["fastest"] == timed[-1]["tile"] == json.loads(json.dumps(asdict(best)))
        )
        for line in timed:
            seconds = line["milliseconds"] / 1e3
            assert line["operations_per_second"] * seconds == pytest.approx(6 * tokens * 2 * 2**15)
            assert line["of_a_square_product"] > 0


def zeros_in_fp8(count: int, rows: int, columns: int) -> Fp8Matrices:
    values = torch.zeros(count, rows, columns, dtype=torch.float8_e4m3fn)
    return Fp8Matrices(values, torch.ones(count, rows // 128, columns // 128))


def test_what_was_tuned_is_read_again_by_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "tiles" / "gpu.json"
    write(path, {})
    write(path, TUNED)
    assert read(path, 90) == TUNED
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_of_another_triton_nothing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    write(path, TUNED)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"triton": "3.0.0"}))
    assert read(path, 90) == {}


@pytest.mark.parametrize("content", ["", "[]", '{"triton": 1', "\x00", "{}"])
def test_a_damaged_file_counts_as_none_and_is_named(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(content)
    assert read(path, 90) == {}
    assert str(path) in caplog.text


@pytest.mark.parametrize("few", [[64, 128, 4, 2], {"rows": 64}, {"kept": [64]}, {"kept": None}])
def test_a_tile_of_another_form_counts_as_none(
    tmp_path: Path, few: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is how tiles were written once."""
    path = tmp_path / "gpu.json"
    write(path, TUNED)
    content = json.loads(path.read_text())
    content["formats"]["plain"]["few"] = few
    path.write_text(json.dumps(content))
    assert read(path, 90) == {}
    assert str(path) in caplog.text


def test_a_tile_that_is_no_candidate_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """16 rows would be multiplied by another instruction, on a 90."""
    path = tmp_path / "gpu.json"
    write(path, {"plain": Tiles(few=Tile(16, 128, 4, 2), many=TUNED["plain"].many)})
    assert read(path, 90) == {}
    assert str(path) in caplog.text


def test_tiles_of_a_format_that_the_chip_has_not_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gpu.json"
    write(path, {"e5m2": TUNED["e4m3"]})
    assert read(path, 90) == {}
    assert str(path) in caplog.text


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_shipped_is_a_candidate(chip: int) -> None:
    for name, tiles in SHIPPED[chip].items():
        assert {tiles.few, tiles.many} <= set(candidates(chip, name))


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_tuned_is_multiplied_by_the_instruction_of_what_is_shipped(chip: int) -> None:
    """On a 90 that takes 64 rows, of a tail too."""
    for name in SHIPPED[chip]:
        for tile in candidates(chip, name):
            ways = [tile, *with_other_down(tile)]
            tails = tile.tail or any(way.kept and way.kept.tail for way in ways)
            assert tile.rows // (2 if tails else 1) >= (64 if chip == 90 else 16)

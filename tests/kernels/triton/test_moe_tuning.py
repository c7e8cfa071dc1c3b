"""Tuned tiles: only such as give the same bits, kept for each GPU, checked when read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from qcn_kernels.chip import CHIPS
from qcn_kernels.moe.tiles import SHIPPED, Tile, Tiles, candidates
from qcn_kernels.moe.tune import fastest
from qcn_kernels.moe.tuned import read, write
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

SLOW, FAST, TOO_LARGE, WRONG = (Tile(rows, 128, 4, 3) for rows in (16, 32, 64, 128))
TOO_MANY_WARPS = Tile(128, 256, 16, 3)
TUNED = {"plain": Tiles(few=Tile(64, 128, 4, 2), many=Tile(128, 256, 8, 4))}


def run(tile: Tile) -> Tensor:
    if tile == TOO_LARGE:
        raise OutOfResources(200, 99, "shared memory")
    if tile == TOO_MANY_WARPS:
        raise PTXASError("Insufficient registers (128) to compile instruction")
    return torch.tensor([1.0 if tile != WRONG else 1.0 + 2**-23])


def test_the_fastest_is_taken_of_those_that_fit_and_give_the_same_bits() -> None:
    times = iter([3.0, 2.0])  # of what is timed: no time is asked of the others

    def milliseconds(launch: Callable[[], Tensor]) -> float:
        assert torch.equal(launch(), torch.ones(1))
        return next(times)

    tiles = [SLOW, TOO_LARGE, TOO_MANY_WARPS, WRONG, FAST]
    best = fastest(tiles, want=torch.ones(1), run=run, milliseconds=milliseconds)
    assert best == FAST


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


def test_a_tile_that_is_no_candidate_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """16 rows would be multiplied by another instruction, on a 90."""
    path = tmp_path / "gpu.json"
    write(path, {"plain": Tiles(few=Tile(16, 128, 4, 2), many=TUNED["plain"].many)})
    assert read(path, 90) == {}
    assert str(path) in caplog.text


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_shipped_is_a_candidate(chip: int) -> None:
    for name, tiles in SHIPPED[chip].items():
        assert {tiles.few, tiles.many} <= set(candidates(chip, name))

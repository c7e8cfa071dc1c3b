"""Tile sizes of the grouped products, for each chip: for 512 experts of 2048 × 512, top 10.

A tile's rows are pairs of one expert, its columns rows of the expert's matrix. Which tile runs does
not change a result (`matrices/triton.py`), as long as the chip multiplies by the same instruction:
on a 90 that is `wgmma` from 64 rows on. So few pairs may take other tiles than many.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of a grouped product computes."""

    rows: int
    columns: int  # 256 where FP8 is multiplied: 128 of what comes out share a scale
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """By how many pairs an expert has on average."""

    few: Tile
    many: Tile
    many_from: int = 48


# Chosen without hardware, no spills, and loads as far ahead as fits; but for FP8 on a 90: of those
# that do not spill the fastest on an H200, for 600 tokens, and from 12,000 or so on.
SHIPPED: Mapping[int, Mapping[str, Tiles]] = {
    80: {
        "plain": Tiles(few=Tile(32, 128, 4, 4), many=Tile(128, 128, 8, 3)),
        "bytes": Tiles(few=Tile(32, 128, 4, 3), many=Tile(128, 128, 8, 3)),
        "groupwise": Tiles(few=Tile(32, 128, 4, 4), many=Tile(64, 128, 8, 4)),
    },
    86: {
        "plain": Tiles(few=Tile(32, 128, 4, 4), many=Tile(128, 128, 8, 3)),
        "bytes": Tiles(few=Tile(32, 128, 4, 3), many=Tile(64, 128, 8, 2)),
        "groupwise": Tiles(few=Tile(32, 128, 4, 4), many=Tile(64, 128, 8, 4)),
    },
    89: {
        "plain": Tiles(few=Tile(32, 128, 4, 4), many=Tile(128, 128, 8, 3)),
        "e4m3": Tiles(few=Tile(32, 256, 8, 3), many=Tile(64, 256, 8, 2)),
        "groupwise": Tiles(few=Tile(32, 128, 4, 4), many=Tile(64, 128, 8, 4)),
    },
    90: {
        "plain": Tiles(few=Tile(64, 128, 4, 4), many=Tile(128, 256, 8, 3)),
        "e4m3": Tiles(few=Tile(64, 256, 8, 4), many=Tile(128, 256, 16, 4), many_from=256),
        "groupwise": Tiles(few=Tile(64, 128, 8, 4), many=Tile(64, 128, 8, 4)),
    },
    120: {
        "plain": Tiles(few=Tile(32, 128, 4, 4), many=Tile(128, 128, 8, 3)),
        "e4m3": Tiles(few=Tile(32, 256, 8, 3), many=Tile(64, 256, 8, 3)),
        "groupwise": Tiles(few=Tile(32, 128, 4, 4), many=Tile(64, 128, 8, 4)),
    },
}


@dataclass(frozen=True, slots=True)
class Kept:
    """How FP8's down product runs where a tile's activations stay in shared memory."""

    columns: int  # of the output at once,
    span: int  # and of a program
    warps: int
    stages: int


MOST_KEPT = 512  # activations of a row that are kept, so that the weights find room beside them
KEPT: Mapping[int, Mapping[int, Kept]] = {  # by the rows of a tile
    80: {},
    90: {64: Kept(64, 2048, 4, 2), 128: Kept(64, 2048, 8, 3)},
    100: {},  # multiplies by another instruction
}


def candidates(capability: int, format_name: str) -> list[Tile]:
    """Return the tiles that may take the place of the shipped ones on a chip."""
    rows = (64, 128) if 90 <= capability < 120 else (16, 32, 64, 128)
    columns = (256,) if format_name == "e4m3" else (64, 128, 256)
    return [Tile(*sizes) for sizes in product(rows, columns, (4, 8, 16), (2, 3, 4))]

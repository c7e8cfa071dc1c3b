"""Tile sizes of the grouped products, for each chip: for 512 experts of 2048 × 512, top 10.

A tile's rows are pairs of one expert, its columns rows of the expert's matrix. Which tile runs does
not change a result (`matrices/triton.py`), as long as the chip multiplies by the same instruction:
on a 90 that is `wgmma` from 64 rows on. So few pairs may take other tiles than many.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product


@dataclass(frozen=True, slots=True)
class Kept:
    """How FP8's down product runs where a tile's activations stay in shared memory."""

    columns: int  # of the output at once,
    span: int  # and of a program
    warps: int
    stages: int
    tail: bool = False  # as a tile's


MOST_KEPT = 512  # activations of a row that are kept, so that the weights find room beside them


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of a grouped product computes."""

    rows: int
    columns: int  # 256 where FP8 is multiplied: 128 of what comes out share a scale
    warps: int
    stages: int
    kept: Kept | None = None  # where FP8's down product is not as gate and up
    registers: int | None = None  # of a thread at most: told, the compiler may spill less
    tail: bool = False  # an expert's last pairs take half a tile where that holds them
    held: bool = False  # gate and up multiply FP8 activations from registers
    roles: bool = False  # FP8 on a 90 alone: both products by producers and consumers


@dataclass(frozen=True, slots=True)
class Tiles:
    """By how many pairs an expert has on average."""

    few: Tile
    many: Tile
    many_from: int = 48


# The first for a tile of so many rows ships. Tiles of 128 rows that keep 128 columns have no tail:
# it takes more shared memory than there is.
ON_90: Mapping[int, tuple[Kept, ...]] = {
    64: (Kept(64, 2048, 4, 2), Kept(64, 2048, 4, 3), Kept(128, 2048, 8, 2)),
    128: (
        Kept(64, 2048, 8, 3, tail=True),
        Kept(64, 2048, 8, 3),
        Kept(128, 2048, 8, 2),
        Kept(64, 1024, 8, 3, tail=True),
    ),
}

# Chosen without hardware, no spills, and loads as far ahead as fits; but on a 90 for FP8, and
# for many tokens of 4 bits: of those that do not spill the fastest on an H200.
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
        "e4m3": Tiles(
            few=Tile(64, 256, 8, 4, ON_90[64][0]),
            many=Tile(128, 256, 8, 4, ON_90[128][0], registers=232, tail=True, roles=True),
            many_from=10,
        ),
        "groupwise": Tiles(few=Tile(64, 128, 8, 4), many=Tile(128, 64, 4, 2), many_from=256),
    },
    100: {  # multiplies by another instruction
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


def candidates(capability: int, format_name: str) -> list[Tile]:
    """Return the tiles that may take the place of the shipped ones on a chip.

    FP8's on a 90 are few, the most promising one first: they are to be timed within a minute. They
    do not spill, which with 8 warps takes a bound or registers that hold activations.
    """
    if 90 <= capability < 100 and format_name == "e4m3":
        small, large = ON_90[64][0], ON_90[128][0]
        return [
            Tile(128, 256, 8, 4, large, registers=232, tail=True, roles=True),
            Tile(128, 256, 8, 4, large, tail=True, held=True),
            Tile(128, 256, 8, 4, large, registers=232, tail=True),
            Tile(128, 256, 8, 4, large, registers=232),
            Tile(128, 256, 16, 4, large, tail=True),
            Tile(128, 256, 16, 4, large),
            Tile(64, 256, 8, 4, small),
            Tile(64, 256, 8, 3, small),
        ]
    least = 64 if 90 <= capability < 120 else 16  # rows that the chip multiplies at once
    rows = [size for size in (16, 32, 64, 128) if size >= least]
    columns = (256,) if format_name == "e4m3" else (64, 128, 256)
    whole = [Tile(*sizes) for sizes in product(rows, columns, (4, 8, 16), (2, 3, 4))]
    shipped = SHIPPED[max(chip for chip in SHIPPED if chip <= capability)].get(format_name)
    if shipped is not None and shipped.many.rows >= 2 * least:
        whole.append(replace(shipped.many, tail=True))
    return whole


def with_other_down(tile: Tile) -> list[Tile]:
    """Return a candidate with each other way of its down product."""
    ways = ON_90[tile.rows] if tile.kept and not tile.roles else ()
    return [replace(tile, kept=kept) for kept in ways if kept != tile.kept]

"""Time tiles on this machine's GPU and keep the fastest: `python -m qcn_kernels.moe.tune`.

The shape is Qwen3-Coder-Next's, the weights random. A tile that gives other bits than the shipped
one is refused, however fast: what is kept of texts must stay valid.

Standard output: a JSON object a line, one for each tile as soon as it is known, and one with the
fastest of them. FP8 comes first, in it many tokens, and each format is kept when it is done: who
has a minute gets what matters most.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from qcn_kernels.chip import capability, configuration
from qcn_kernels.fp8 import BLOCK, Fp8Matrices
from qcn_kernels.fp8.triton import activations
from qcn_kernels.groupwise import GroupwiseMatrices
from qcn_kernels.groupwise.triton import is_groupwise
from qcn_kernels.matrices import Matrices
from qcn_kernels.matrices.triton import stored
from qcn_kernels.moe.tiles import SHIPPED, Tile, Tiles, candidates, with_other_down
from qcn_kernels.moe.triton import experts_in, multiply
from qcn_kernels.moe.triton_plan import plan_tiles
from qcn_kernels.moe.triton_router import route
from qcn_kernels.moe.tuned import file_of, write

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 512, 10, 2048, 512
FEW_TOKENS, MANY_TOKENS = 300, 16_384
SIDE = 8192  # of the square product that says what the GPU can do
COMPILERS = 8  # at a time; a compiler leaves Python to the others most of its time


def fastest(
    tiles: Iterable[Tile],
    *,
    want: Tensor,
    run: Callable[[Tile], Tensor],
    milliseconds: Callable[[Tile], float],
    tell: Callable[[Tile, float | str], None],
) -> Tile:
    """Return the tile that takes the least time among those with which `run` gives these bits.

    A tile for which the chip has not the resources is passed over. What is found of each is told as
    soon as it is known: its time, or why it has none. Raises ValueError if none is left.
    """
    times: dict[Tile, float] = {}
    for tile in tiles:
        try:
            if torch.equal(run(tile), want):
                times[tile] = milliseconds(tile)
                tell(tile, times[tile])
            else:
                tell(tile, "gives other bits")
        except (OutOfResources, PTXASError) as error:
            tell(tile, str(error))
    return min(times, key=times.__getitem__)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """A layer's experts in one format, and some tokens for them."""

    name: str
    x: Tensor
    weights: Tensor
    chosen: Tensor
    gate_up: Matrices
    down: Matrices
    rate: float  # operations a second of a square product

    def run(self, tile: Tile) -> Tensor:
        """All of the mixture."""
        routed = {"weights": self.weights, "chosen": self.chosen}
        return experts_in(tile, self.x, **routed, gate_up=self.gate_up, down=self.down)

    def milliseconds(self, tile: Tile) -> float:
        """What the grouped products take, without what stands around them."""
        plan = plan_tiles(self.chosen, self.down.shape[0], tile.rows)
        read = activations(self.x, stored(self.gate_up)[1])
        parts = self.x.new_empty(*self.chosen.shape, self.x.shape[1])
        once = partial(multiply, tile, plan, read, self.gate_up, self.down, parts)
        return float(triton.testing.do_bench(once, return_mode="median"))

    def tell(self, tile: Tile, found: float | str) -> None:
        """Print what was found of a tile."""
        told: dict[str, Any] = {"format": self.name, "tokens": len(self.x), "tile": asdict(tile)}
        if isinstance(found, str):
            told["refused"] = found
        else:
            _, hidden, intermediate = self.down.shape
            rate = 6 * self.chosen.numel() * hidden * intermediate / found * 1e3
            told |= {"milliseconds": found, "operations_per_second": rate}
            told |= {"of_a_square_product": rate / self.rate}
        _say(told)


def main() -> None:
    """Tune FP8, bf16 and 4 bits on the current GPU."""
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device to tune for.")
    device = torch.device("cuda", torch.cuda.current_device())
    found: dict[str, Tiles] = {}
    for stack in (_fp8, _bf16, _four_bit):
        gate_up = stack(EXPERTS, 2 * INTERMEDIATE, HIDDEN, device=device)
        name, tiles = tuned(gate_up, stack(EXPERTS, HIDDEN, INTERMEDIATE, device=device))
        found[name] = tiles
        write(file_of(device), found)
    _say({"written": str(file_of(device))})


def tuned(gate_up: Matrices, down: Matrices) -> tuple[str, Tiles]:
    """Return the name of a format and the fastest tiles for experts in it, and tell of all."""
    tensors, name = stored(gate_up)
    name = "groupwise" if is_groupwise(name) else name
    device, rate = tensors[0].device, _rate(name, tensors[0].device)
    mixtures: list[_Mixture] = []
    for tokens in (MANY_TOKENS, FEW_TOKENS):
        x = torch.randn(tokens, down.shape[1], dtype=torch.bfloat16, device=device)
        logits = torch.randn(tokens, down.shape[0], device=device)
        weights, chosen = route(logits, top_k=TOP_K, normalise=True)
        mixtures.append(_Mixture(name, x, weights, chosen, gate_up, down, rate))
    many, few = mixtures
    shipped = configuration(SHIPPED, many.x)[name]
    best = _best(many, few, shipped.many, like=shipped.many)
    return name, Tiles(few=_best(few, few, shipped.few, like=shipped.many), many=best)


def _best(mixture: _Mixture, few: _Mixture, shipped: Tile, *, like: Tile) -> Tile:
    """The fastest tile, and then the fastest down product of it. The shipped one is timed first."""
    find = partial(fastest, want=mixture.run(like), run=mixture.run, tell=mixture.tell)
    find = partial(find, milliseconds=mixture.milliseconds)
    find([shipped])
    tiles = [tile for tile in candidates(capability(mixture.x), mixture.name) if tile != shipped]
    _compile(few, [*tiles, *with_other_down(shipped)])
    best = find([shipped, *tiles])
    best = find([best, *with_other_down(best)])
    _say({"format": mixture.name, "tokens": len(mixture.x), "fastest": asdict(best)})
    return best


def _compile(few: _Mixture, tiles: Iterable[Tile]) -> None:
    """Have all compiled beforehand, several at a time; by few tokens, which take little room."""

    def once(tile: Tile) -> None:
        with contextlib.suppress(OutOfResources, PTXASError):  # told when it is timed
            few.run(tile)

    with ThreadPoolExecutor(COMPILERS) as pool:
        list(pool.map(once, tiles))


def _rate(name: str, device: torch.device) -> float:
    """Operations a second of a square product by torch: of FP8 where the experts are, else bf16."""
    a, b = torch.randn(2, SIDE, SIDE, dtype=torch.bfloat16, device=device)
    once = partial(torch.matmul, a, b)
    if name == "e4m3":
        one = torch.ones((), device=device)
        a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        once = partial(torch._scaled_mm, a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return float(2e3 * SIDE**3 / triton.testing.do_bench(once, return_mode="median"))


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def _bf16(*shape: int, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)


def _fp8(*shape: int, device: torch.device) -> Fp8Matrices:
    values = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
    for matrix in values:  # one at a time: no second copy of them all
        matrix.copy_(torch.randn(matrix.shape, device=device))
    blocks = (*shape[:-2], shape[-2] // BLOCK, shape[-1] // BLOCK)
    return Fp8Matrices(values, torch.full(blocks, 0.02, device=device))


def _four_bit(count: int, rows: int, columns: int, *, device: torch.device) -> GroupwiseMatrices:
    """As `groupwise.quantise` lays them out."""

    def drawn(width: int) -> Tensor:
        return torch.randint(256, (count, rows, width), dtype=torch.uint8, device=device)

    units = torch.full((count, rows, columns // 256), 2e-5, dtype=torch.bfloat16, device=device)
    return GroupwiseMatrices(
        codes=drawn(columns // 2),
        scales=drawn(columns // 32),
        mins=drawn(columns // 32),
        block_scales=units,
        block_mins=units.clone(),
        dtype=torch.bfloat16,
    )


if __name__ == "__main__":
    main()

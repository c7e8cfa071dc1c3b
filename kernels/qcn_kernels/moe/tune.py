"""Time tiles on this machine's GPU and keep the fastest: `python -m qcn_kernels.moe.tune`.

The shape is Qwen3-Coder-Next's, the weights random. A tile that gives other bits than the shipped
one is refused, however fast: what is kept of texts must stay valid.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable
from functools import partial

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from qcn_kernels.chip import capability, configuration
from qcn_kernels.fp8 import BLOCK, Fp8Matrices
from qcn_kernels.groupwise import GroupwiseMatrices
from qcn_kernels.groupwise.triton import is_groupwise
from qcn_kernels.matrices import Matrices
from qcn_kernels.matrices.triton import stored
from qcn_kernels.moe.tiles import SHIPPED, Tile, Tiles, candidates
from qcn_kernels.moe.triton import experts_in
from qcn_kernels.moe.triton_router import route
from qcn_kernels.moe.tuned import file_of, write

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 512, 10, 2048, 512
FEW_TOKENS, MANY_TOKENS = 300, 16_384


def fastest(
    tiles: Iterable[Tile],
    *,
    want: Tensor,
    run: Callable[[Tile], Tensor],
    milliseconds: Callable[[Callable[[], Tensor]], float],
) -> Tile:
    """Return the tile that takes the least time among those with which `run` gives these bits.

    A tile for which the chip has not the resources is passed over. Raises ValueError if none is
    left.
    """
    times: dict[Tile, float] = {}
    for tile in tiles:
        with contextlib.suppress(OutOfResources, PTXASError):
            if torch.equal(run(tile), want):
                times[tile] = milliseconds(partial(run, tile))
    return min(times, key=times.__getitem__)


def main() -> None:
    """Tune bf16, FP8 and 4 bits on the current GPU."""
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device to tune for.")
    device = torch.device("cuda", torch.cuda.current_device())
    tuned = {}
    for stack in (_bf16, _fp8, _four_bit):
        gate_up = stack(EXPERTS, 2 * INTERMEDIATE, HIDDEN, device=device)
        down = stack(EXPERTS, HIDDEN, INTERMEDIATE, device=device)
        stored_name = stored(gate_up)[1]
        name = "groupwise" if is_groupwise(stored_name) else stored_name
        tuned[name] = _tuned(name, gate_up, down, device)
        print(name, tuned[name])
    write(file_of(device), tuned)
    print("kept in", file_of(device))


def _tuned(name: str, gate_up: Matrices, down: Matrices, device: torch.device) -> Tiles:
    shipped = configuration(SHIPPED, torch.empty(0, device=device))
    best = {}
    for kind, tokens in (("few", FEW_TOKENS), ("many", MANY_TOKENS)):
        x = torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device=device)
        logits = torch.randn(tokens, EXPERTS, device=device)
        weights, chosen = route(logits, top_k=TOP_K, normalise=True)
        run = partial(experts_in, x=x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
        best[kind] = fastest(
            candidates(capability(x), name),
            want=run(shipped[name].many),
            run=run,
            milliseconds=triton.testing.do_bench,
        )
    return Tiles(few=best["few"], many=best["many"])


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

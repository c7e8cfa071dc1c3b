"""Every kernel compiles for every chip as it is shipped: no spills, within shared memory.

Shapes are those of Qwen3-Coder-Next, dtypes those of its runtime. `make test` compiles for 90,
which has tensor cores of its own kind, and for 86, which has the others', the least shared memory
and no FP8; `make test-long` for the other chips, and what is like something that `make test`
compiles for all of them.

`python -m pytest -sq -k shipped tests/kernels/triton/test_compile.py | grep '^|'` prints what
bounds a kernel, a row for each: chip, launched by, name, registers of a thread, bytes of shared
memory of a block, blocks and warps that a multiprocessor holds at once, KiB in flight there; with
QCN_TEST_FULL=1 for the others.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ahead_of_time import SHARED_MEMORY, Compiled, compile_launches
from groupwise_stacks import eight_bit, four_bit, mxfp4
from qcn_kernels.causal_conv1d.triton import causal_conv1d_step
from qcn_kernels.chip import CHIPS, empty_rows
from qcn_kernels.copy_rows.triton import copy_rows
from qcn_kernels.expert_slots import SlotTables
from qcn_kernels.expert_slots.triton import place
from qcn_kernels.fp8 import Fp8Matrices
from qcn_kernels.fp8.triton import linear as linear_fp8
from qcn_kernels.gated_delta_net import Drafts
from qcn_kernels.gated_delta_net import triton as gated_delta_net
from qcn_kernels.gated_delta_net import triton_verify as gated_delta_net_verify
from qcn_kernels.gated_delta_net.weights import DeltaNetWeights
from qcn_kernels.gated_delta_rule.grid import chunk_grid
from qcn_kernels.gating.triton import gated, gated_quantised
from qcn_kernels.linear import Stacked
from qcn_kernels.linear.triton import linear
from qcn_kernels.linear.triton_step import add_linear_step, linear_step
from qcn_kernels.linear.triton_verify import MOST_TOKENS, add_linear_few, linear_few
from qcn_kernels.matrices import Matrices
from qcn_kernels.moe import triton_step
from qcn_kernels.moe.shared import SharedExpert
from qcn_kernels.moe.tiles import Tile, candidates, with_other_down
from qcn_kernels.moe.triton import experts, experts_in
from qcn_kernels.moe.triton_plan import plan_tiles
from qcn_kernels.moe.triton_router import route
from qcn_kernels.moe.triton_verify import add_experts_few
from qcn_kernels.paged_attention import E4M3_ROWS, PagedKv, row_elements
from qcn_kernels.paged_attention.triton import (
    append,
    paged_attention_decode,
    paged_attention_prefill,
)
from qcn_kernels.rms_norm import Normed
from qcn_kernels.rms_norm.triton import (
    add_rms_norm,
    gated_rms_norm_quantised,
    rms_norm,
    rms_norm_quantised,
)
from qcn_kernels.rotary.triton import rms_norm_rotary, rotary_tables
from qcn_kernels.sampling.triton import sample
from sampling import FULL
from torch import Tensor

TOKENS = 130
KEY_HEADS, HEADS, DIM, KERNEL = 16, 32, 128, 4
CHANNELS = (2 * KEY_HEADS + HEADS) * DIM
HIDDEN = 2048
EXPERTS, TOP_K, INTERMEDIATE = 8, 10, 512  # fewer experts than the model's 512: no code knows
MANY = 256  # tokens: as many pairs for an expert, and a quarter more


def bf16(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def in_a_layer(tokens: int) -> Tensor:
    """What a layer's router, shared expert and its gate are cut from: see `SparseMoe`."""
    return empty_rows(bf16(tokens, HIDDEN), 1537)[:, :1537]


WEIGHTS = DeltaNetWeights(
    conv=torch.zeros(KERNEL, CHANNELS),
    neg_a=torch.zeros(HEADS),
    dt_bias=torch.zeros(HEADS),
    norm=torch.zeros(DIM),
    eps=1e-6,
    key_heads=KEY_HEADS,
    key_dim=DIM,
)


def delta_net_prefill(of: Callable[..., Tensor] = bf16) -> None:
    gated_delta_net.prefill(
        of(TOKENS, CHANNELS + HEADS * DIM + 2 * HEADS),
        weights=WEIGHTS,
        convolution=torch.zeros(KERNEL - 1, CHANNELS),
        recurrent=torch.zeros(HEADS, DIM, DIM),
        grid=chunk_grid([TOKENS], checkpoints=[TOKENS]),
        checkpoints=torch.zeros(1, HEADS, DIM, DIM),
    )


def delta_net_step() -> None:
    gated_delta_net.step(
        bf16(CHANNELS + HEADS * DIM + 2 * HEADS),
        weights=WEIGHTS,
        ring=torch.zeros(KERNEL, CHANNELS),
        position=torch.zeros(1, dtype=torch.int64),
        recurrent=torch.zeros(HEADS, DIM, DIM),
    )


def delta_net_verify() -> None:
    """Of two layers, whose drafts are taken in at once."""
    drafts = Drafts(
        inputs=torch.zeros(2, MOST_TOKENS, CHANNELS),
        keys=torch.zeros(2, MOST_TOKENS, KEY_HEADS, DIM),
        errors=torch.zeros(2, MOST_TOKENS, HEADS, DIM),
        total=torch.zeros(2, MOST_TOKENS, HEADS),
    )
    position = torch.zeros(1, dtype=torch.int64)
    gated_delta_net_verify.verify_step(
        bf16(MOST_TOKENS, CHANNELS + HEADS * DIM + 2 * HEADS),
        weights=WEIGHTS,
        ring=torch.zeros(KERNEL, CHANNELS),
        position=position,
        recurrent=torch.zeros(HEADS, DIM, DIM),
        drafts=drafts.layer(0),
    )
    gated_delta_net_verify.commit(
        drafts,
        torch.zeros(1, dtype=torch.int32),
        rings=torch.zeros(2, KERNEL, CHANNELS),
        position=position,
        recurrent=torch.zeros(2, HEADS, DIM, DIM),
    )


def convolution_step() -> None:
    state = torch.zeros(KERNEL - 1, CHANNELS)
    causal_conv1d_step(bf16(CHANNELS), weight=WEIGHTS.conv, state=state)


def norms() -> None:
    x, scale = torch.zeros(TOKENS, HIDDEN), torch.zeros(HIDDEN)
    rms_norm(x, scale=scale, eps=1e-6, dtype=torch.bfloat16)
    add_rms_norm(x, added=bf16(TOKENS, HIDDEN), scale=scale, eps=1e-6, dtype=torch.bfloat16)


def projection() -> None:
    linear(bf16(TOKENS, HIDDEN), bf16(2 * CHANNELS, HIDDEN), None)


def gates() -> None:
    projected = in_a_layer(TOKENS)
    gated(projected[:, 512:1024], gate=projected[:, :512], gating="silu")


def rotary() -> None:
    cos, _ = rotary_tables(torch.zeros(TOKENS, dtype=torch.int64), rotary_dim=64, theta=5e6)
    scale = torch.zeros(18, 256)
    x = bf16(TOKENS, 18, 256)
    rms_norm_rotary(x, scale=scale, eps=1e-6, cos=cos, sin=cos, dtype=torch.bfloat16)


def attention_step() -> None:
    attention(paged_attention_decode, 1)


def attention_verify() -> None:
    attention(paged_attention_decode, MOST_TOKENS)


def attention_prefill() -> None:
    attention(paged_attention_prefill, TOKENS)


def attention_step_e4m3() -> None:
    attention(paged_attention_decode, 1, kept=E4M3_ROWS)


def attention_verify_e4m3() -> None:
    attention(paged_attention_decode, MOST_TOKENS, kept=E4M3_ROWS)


def attention_prefill_e4m3() -> None:
    attention(paged_attention_prefill, TOKENS, kept=E4M3_ROWS)


def attention(
    launcher: Callable[..., Tensor],
    tokens: int,
    of: Callable[..., Tensor] = bf16,
    kept: torch.dtype | None = None,
) -> None:
    """Before a cache that one split has all keys of, and before a long one."""
    q, length = of(tokens, 16, 256), torch.zeros(1, dtype=torch.int32)
    kept = kept or q.dtype
    pages = torch.zeros(3, 2, 64, row_elements(256, kept), dtype=kept)
    for bound in (TOKENS, 20_000):
        table = torch.zeros(-(-bound // 64), dtype=torch.int32)
        launcher(q, PagedKv(pages, pages, table, length, max_length=bound))


def append_to_pages(kept: torch.dtype = torch.bfloat16) -> None:
    table, length = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    pages = torch.zeros(3, 2, 64, row_elements(256, kept), dtype=kept)
    heads = bf16(TOKENS, 2, 256)
    append(PagedKv(pages, pages, table, length, max_length=TOKENS), k=heads, v=heads)


def append_to_e4m3_pages() -> None:
    append_to_pages(E4M3_ROWS)


def fp8(*shape: int) -> Fp8Matrices:
    blocks = (*shape[:-2], shape[-2] // 128, shape[-1] // 128)
    return Fp8Matrices(torch.zeros(shape, dtype=torch.float8_e4m3fn), torch.zeros(blocks))


def run_experts(
    launcher: Callable[..., Tensor],
    tokens: int,
    stack: Callable[..., Matrices],
    of: Callable[..., Tensor] = bf16,
) -> None:
    launcher(
        of(tokens, HIDDEN),
        weights=torch.zeros(tokens, TOP_K),
        chosen=torch.zeros(tokens, TOP_K, dtype=torch.int64),
        gate_up=stack(EXPERTS, 2 * INTERMEDIATE, HIDDEN),
        down=stack(EXPERTS, HIDDEN, INTERMEDIATE),
    )


def experts_few() -> None:
    run_experts(experts, 1, bf16)


def experts_many() -> None:
    run_experts(experts, MANY, bf16)


def experts_few_fp8() -> None:
    run_experts(experts, 1, fp8)


def experts_many_fp8() -> None:
    run_experts(experts, MANY, fp8)


def experts_step() -> None:
    run_experts(step_with(bf16(HIDDEN, INTERMEDIATE)), 1, bf16)


def experts_step_fp8() -> None:
    run_experts(step_with(one_fp8(HIDDEN, INTERMEDIATE)), 1, fp8)


def step_with(down: Tensor | Stacked) -> Callable[..., Tensor]:
    """A step that takes norm and shared expert on its way."""

    def launcher(x: Tensor, **given: Any) -> Tensor:
        now = Normed(x.float(), torch.zeros(HIDDEN), 1e-6)
        projected = in_a_layer(1)
        shared = SharedExpert(projected[:, 1536:], projected[:, :1024], down)
        return triton_step.experts_step(now, **given, shared=shared, to=torch.zeros(1, HIDDEN))

    return launcher


def one_fp8(*shape: int) -> Stacked:
    return Stacked((fp8(*shape),), torch.bfloat16)


def experts_many_int4() -> None:
    run_experts(experts, MANY, four_bit)


def experts_step_int4() -> None:
    run_experts(triton_step.experts_step, 1, four_bit)
    run_experts(step_with(one_fp8(HIDDEN, INTERMEDIATE)), 1, four_bit)


def experts_few_groupwise() -> None:
    for stack in (four_bit, eight_bit, mxfp4):
        run_experts(experts, 1, stack)


def experts_many_groupwise() -> None:
    for stack in (eight_bit, mxfp4):
        run_experts(experts, MANY, stack)


def experts_step_groupwise() -> None:
    for stack in (eight_bit, mxfp4):
        run_experts(triton_step.experts_step, 1, stack)


def plans() -> None:
    """Where experts lie in host memory, slots of all layers together; and of many tokens."""
    plan_tiles(torch.zeros(TOKENS, TOP_K, dtype=torch.int64), 23_000, 64)
    plan_tiles(torch.zeros(2000, TOP_K, dtype=torch.int64), 512, 64)


def router() -> None:
    route(in_a_layer(TOKENS)[:, 1024:1536], top_k=TOP_K, normalise=True)


def linears_fp8() -> None:
    """Of so few tokens that a chip has programs left over, and of more."""
    linear_fp8(bf16(TOKENS, HIDDEN), fp8(12_288, HIDDEN))
    linear_fp8(bf16(3 * TOKENS, HIDDEN), fp8(12_288, HIDDEN))


def steps() -> None:
    """Of a DeltaNet layer, of an attention layer, of a router with a shared expert, and plain."""
    now = Normed(torch.zeros(HIDDEN), torch.zeros(HIDDEN), 1e-6)
    to, mixed = torch.zeros(HIDDEN), bf16(2 * HIDDEN)
    linear_step(now, Stacked((fp8(12_288, HIDDEN), bf16(64, HIDDEN)), torch.bfloat16), None)
    linear_step(now, Stacked((fp8(1024, HIDDEN), bf16(513, HIDDEN)), torch.bfloat16), None)
    out = Stacked((fp8(HIDDEN, 2 * HIDDEN),), torch.bfloat16)
    add_linear_step(to, mixed, out, None, gate=None, gating="sigmoid")
    add_linear_step(to, mixed, out, None, gate=mixed, gating="sigmoid")
    linear_step(now, bf16(12_352, HIDDEN), None)
    add_linear_step(to, mixed, bf16(HIDDEN, 2 * HIDDEN), None, gate=mixed, gating="silu")


def linears_few() -> None:
    """As `steps`, for tokens that are verified together."""
    x, mixed = bf16(MOST_TOKENS, HIDDEN), bf16(MOST_TOKENS, 2 * HIDDEN)
    linear_few(x, Stacked((fp8(12_288, HIDDEN), bf16(64, HIDDEN)), torch.bfloat16), None)
    linear_few(x, Stacked((fp8(1024, HIDDEN), bf16(513, HIDDEN)), torch.bfloat16), None)
    linear_few(x, bf16(12_352, HIDDEN), None)
    to = torch.zeros(MOST_TOKENS, HIDDEN)
    add_linear_few(to, mixed, Stacked((fp8(HIDDEN, 2 * HIDDEN),), torch.bfloat16), None)


def experts_verify() -> None:
    run_experts(few_with(bf16(HIDDEN, INTERMEDIATE)), MOST_TOKENS, bf16)


def experts_verify_fp8() -> None:
    run_experts(few_with(one_fp8(HIDDEN, INTERMEDIATE)), MOST_TOKENS, fp8)


def few_with(down: Tensor | Stacked) -> Callable[..., Tensor]:
    """Tokens that are verified together, with a shared expert."""

    def launcher(x: Tensor, **given: Any) -> Tensor:
        projected, to = in_a_layer(MOST_TOKENS), torch.zeros(MOST_TOKENS, HIDDEN)
        shared = SharedExpert(projected[:, 1536:], projected[:, :1024], down)
        add_experts_few(to, x, **given, shared=shared)
        return to

    return launcher


def rows_copied() -> None:
    """Of experts in 4 bits: codes, and the scales and minima of two levels."""
    expert = four_bit(1, 2 * INTERMEDIATE, HIDDEN)
    parts = [part for part in expert.parts().values() if part is not None]
    copy_rows(parts, parts, torch.zeros(2, 7, dtype=torch.int64))


def experts_placed() -> None:
    """Of a token; of as many tokens as are verified at once, in the slots of a large card."""
    for tokens, slots in ((1, 7000), (MOST_TOKENS, 30_000)):
        tables = SlotTables.empty(48 * 512, slots, torch.device("cpu"))
        place(tables, 512, torch.zeros(tokens * TOP_K, dtype=torch.int64))


def sampling() -> None:
    logits, uniform = torch.zeros(1, 151_936), torch.zeros(1)
    sample(logits, temperature=1.0, top_k=40, top_p=0.95, uniform=uniform)


GROUPED = {"_gate_up": "wgmma", "_down": "wgmma", "_down_kept": "wgmma"}
GROUPED |= {"_gate_up_by_roles": "wgmma", "_down_by_roles": "wgmma"}

# What is launched, and the kernels in it that multiply matrices with the instruction they use on
# a 90: `wgmma` wants 64 rows, which decode has not.
OPERATIONS: dict[Callable[[], None], dict[str, str]] = {
    delta_net_prefill: {"_prepare": "wgmma", "_scan": "wgmma"},
    delta_net_step: {},
    delta_net_verify: {},
    convolution_step: {},
    norms: {},
    projection: {"_linear": "wgmma"},
    gates: {},
    rotary: {},
    attention_step: {"_attend": "mma"},
    attention_verify: {"_attend": "wgmma"},
    attention_prefill: {"_attend": "wgmma"},
    attention_step_e4m3: {"_attend": "mma"},
    attention_prefill_e4m3: {"_attend": "wgmma"},
    experts_many: {"_gate_up": "wgmma", "_down": "wgmma"},
    experts_many_fp8: GROUPED,
    experts_step: {},
    experts_step_fp8: {},
    experts_many_int4: {"_gate_up": "wgmma", "_down": "wgmma"},
    experts_step_int4: {},
    plans: {},
    router: {},
    linears_fp8: {"_linear": "wgmma"},
    steps: {},
    linears_few: {"_linear_few": "mma"},
    experts_verify: {"_gate_up_few": "mma", "_down_few": "mma"},
    experts_verify_fp8: {"_gate_up_few": "mma", "_down_few": "mma"},
    append_to_pages: {},
    sampling: {},
    rows_copied: {},
    experts_placed: {},
}

ALIKE: dict[Callable[[], None], dict[str, str]] = {  # what is like one of those
    experts_few: GROUPED,
    experts_few_fp8: GROUPED,
    experts_few_groupwise: GROUPED,
    experts_many_groupwise: GROUPED,
    experts_step_groupwise: {},
    attention_verify_e4m3: {"_attend": "wgmma"},
    append_to_e4m3_pages: {},
}
OPERATIONS |= ALIKE
COMPILED_NOW = [
    pytest.param(chip, operation, id=f"{operation.__name__}-{chip}")
    for operation in OPERATIONS
    for chip in CHIPS
    if (chip in (86, 90) and operation not in ALIKE) != FULL
]


@pytest.mark.long
@pytest.mark.parametrize(("chip", "operation"), COMPILED_NOW)
def test_what_is_shipped_compiles(
    chip: int, operation: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On an 89, whose code is an 86's with FP8 beside it, what is not launched so on an 86.

    Compiled for both, 92 of 94 such launches had the same report, the two others fewer registers.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in compile_launches(chip, operation, but_for=86 if chip == 89 else None):
        print(kernel.row(operation.__name__, chip))
        assert kernel.spilled == kernel.stack == 0, kernel
        assert kernel.shared <= SHARED_MEMORY[chip], kernel
        product = OPERATIONS[operation].get(kernel.name)
        assert bool(kernel.products) == (product is not None), kernel
        if product and chip == 90:
            assert any(used.startswith(product) for used in kernel.products), kernel


def in_fp32() -> None:
    """What has tiles that are chosen for bf16."""
    for tokens in (1, MANY):
        run_experts(experts, tokens, torch.zeros, of=torch.zeros)
    delta_net_prefill(of=torch.zeros)
    attention(paged_attention_decode, 1, of=torch.zeros)
    attention(paged_attention_decode, MOST_TOKENS, of=torch.zeros)
    attention(paged_attention_prefill, TOKENS, of=torch.zeros)


@pytest.mark.long
@pytest.mark.parametrize("chip", [80, 89, 90, 120] if FULL else [86])
def test_a_model_in_fp32_finds_shared_memory(
    chip: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No chip has less than an 86: what is launched as there finds as much on the others.

    But for a 90, whose products are not the others', it asks for as much: compiled for 80, 86, 89
    and 120, all launches that were the same in bf16, FP8 and 4 bits did.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in compile_launches(chip, in_fp32, but_for=None if chip in (86, 90) else 86):
        assert kernel.shared <= SHARED_MEMORY[chip], kernel


ROLES, PROMISING, *OTHERS = candidates(90, "e4m3")
TO_BE_TIMED = [ROLES, PROMISING, *with_other_down(PROMISING)]


@pytest.mark.long
@pytest.mark.parametrize("tile", OTHERS if FULL else TO_BE_TIMED)
def test_what_the_tuner_tries_for_fp8_on_a_90_compiles(
    tile: Tile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a spill; where tails take half a tile, both halves and wholes by `wgmma`."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launched = compile_launches(90, lambda: run_experts(partial(experts_in, tile), MANY, fp8))
    products = {kernel.name: kernel for kernel in launched if kernel.products}
    by_roles = {"_gate_up_by_roles", "_down_by_roles"}
    assert set(products) == (by_roles if tile.roles else {"_gate_up", "_down_kept"})
    for kernel in products.values():
        print(kernel.row("experts_in", 90))
        assert kernel.spilled == kernel.stack == 0, kernel
        assert kernel.shared <= SHARED_MEMORY[90], kernel
        assert all(used.startswith("wgmma") for used in kernel.products), kernel
    if tile.kept is not None and not tile.roles:  # half the rows are divided by columns
        assert len(products["_down_kept"].products) == (2 if tile.kept.tail else 1)


def in_front_of_fp8() -> None:
    x, scale, dtype = torch.zeros(TOKENS, HIDDEN), torch.zeros(HIDDEN), torch.bfloat16
    rms_norm_quantised(x, scale=scale, eps=1e-6, dtype=dtype)
    added, mixed = bf16(TOKENS, HIDDEN), bf16(TOKENS, 2 * HIDDEN)
    rms_norm_quantised(x, scale=scale, eps=1e-6, dtype=dtype, added=added)
    projected = in_a_layer(TOKENS)
    gated_quantised(projected[:, 512:1024], gate=projected[:, :512], gating="silu")
    gated_quantised(mixed, gate=mixed, gating="sigmoid")
    heads, norm = bf16(TOKENS, HEADS, DIM), WEIGHTS.norm
    gated_rms_norm_quantised(heads, gate=heads, scale=norm, eps=1e-6, dtype=dtype)


@pytest.mark.long
@pytest.mark.parametrize("chip", [89, 90, 120])
def test_what_is_quantised_where_it_arises_compiles(
    chip: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the chips that multiply FP8: without a spill, 16 bytes of values to a thread at once."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in compile_launches(chip, in_front_of_fp8):
        assert kernel.spilled == kernel.stack == 0, kernel
        assert set(kernel.stores) == {"v4.b32", "b32"}, kernel  # the narrow ones are scales


@pytest.mark.long
@pytest.mark.parametrize("chip", [80, 120] if FULL else [86, 90])  # an 89 as an 86
@pytest.mark.parametrize("operation", [attention_step, attention_prefill, attention_prefill_e4m3])
def test_a_key_weighs_the_same_in_a_tile_that_masks_others(
    chip: int, operation: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where a tile begins decides which of its two loops takes a key: both round alike.

    Each has as many weights; beside them there is one difference a row, by which the sum shrinks.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    whole, split, _ = compile_launches(chip, operation)
    for attend in (whole, split):
        assert attend.name == "_attend"
        assert attend.exponents["fma"] > attend.exponents["sub"], attend


def uneven_projection() -> None:
    """As many rows as a router with its shared expert has, the last of them alone."""
    linear(bf16(TOKENS, HIDDEN), bf16(1537, HIDDEN), None)


@pytest.mark.long
@pytest.mark.parametrize("operation", [uneven_projection, gates, linears_fp8])
def test_a_thread_stores_16_bytes_at_once(
    operation: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    *_, kernel = compile_launches(90, operation)
    assert set(kernel.stores) == {"v4.b32"}, kernel


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "chip", "blocks"),
    [
        (195, 2048, 4, 90, 2),  # 200 registers of 128 threads: two blocks' fit 65,536
        (32, 163_840, 8, 90, 1),  # 160 of 228 KiB
        (32, 0, 4, 90, 16),  # 64 warps
        (32, 0, 4, 120, 12),  # 48 warps
        (32, 0, 1, 86, 16),  # blocks
    ],
)
def test_what_a_multiprocessor_holds_at_once(
    registers: int, shared: int, warps: int, chip: int, blocks: int
) -> None:
    kernel = Compiled("k", registers, 0, 0, shared, frozenset(), False, {}, {}, 16, warps, 1)
    assert kernel.blocks(chip) == blocks
    assert kernel.in_flight(chip) == blocks * 32 * warps * 16

"""Weights of few bits in groups: what codes stand for, and how well ours fit."""

from collections.abc import Callable

import pytest
import torch
from groupwise_stacks import eight_bit, four_bit, mxfp4
from hypothesis import given
from hypothesis import strategies as st
from qcn_kernels.groupwise import (
    GroupwiseMatrices,
    concatenate,
    from_parts,
    pack,
    quantise,
    unpack,
)
from qcn_kernels.moe import experts, experts_step
from sampling import examples
from torch import Tensor

Stack = Callable[[int, int, int], GroupwiseMatrices]


STACKS = pytest.mark.parametrize("stack", [four_bit, eight_bit, mxfp4])


def written_out(matrices: GroupwiseMatrices, number: int, row: int, column: int) -> float:
    """One weight, from the formula, in Python's floats."""
    if matrices.bits == 4:
        byte = int(matrices.codes[number, row, column // 2])
        q = byte >> 4 if column % 2 else byte & 15
    else:
        q = int(matrices.codes[number, row, column])
    s = int(matrices.scales[number, row, column // matrices.group])
    if matrices.block_scales is None:
        sign, exponent, mantissa = q >> 3, q >> 1 & 3, q & 1
        size = 2.0 ** (exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2
        return float((-size if sign else size) * 2.0 ** (s - 127))
    block = column // matrices.block
    weight = float(matrices.block_scales[number, row, block]) * s * q
    if matrices.mins is None or matrices.block_mins is None:
        return weight
    m = int(matrices.mins[number, row, column // matrices.group])
    return weight - float(matrices.block_mins[number, row, block]) * m


@STACKS
def test_codes_stand_for_what_the_formula_says(stack: Stack) -> None:
    matrices = stack(2, 3, 64)
    got = matrices.dequantised()
    for number, row, column in torch.cartesian_prod(*map(torch.arange, got.shape)).tolist():
        want = torch.tensor(written_out(matrices, number, row, column), dtype=torch.float32)
        assert got[number, row, column] == want, (number, row, column)


@STACKS
def test_a_part_of_a_stack_is_that_part_of_its_weights(stack: Stack) -> None:
    matrices = stack(5, 4, 96 if stack is mxfp4 else 128)
    everything = matrices.dequantised()
    assert torch.equal(matrices[3], everything[3])
    index = torch.tensor([4, 0, 0])
    assert torch.equal(matrices.index_select(0, index), everything[index])
    assert len(matrices) == 5
    assert matrices.shape == everything.shape
    halves = [{n: p[:, rows] for n, p in matrices.parts().items()} for rows in ([0, 1], [2, 3])]
    joined = concatenate([from_parts(half, torch.float32) for half in halves], dim=1)
    assert torch.equal(joined.dequantised(), everything)


@STACKS
def test_experts_are_those_of_the_dequantised_weights(stack: Stack) -> None:
    gate_up, down = stack(6, 64, 64), stack(6, 64, 32 if stack is mxfp4 else 64)
    if stack is not mxfp4:
        gate_up = stack(6, 128, 64)
    x, weights = torch.randn(9, 64), torch.rand(9, 2)
    chosen = torch.stack([torch.randperm(6)[:2] for _ in range(9)])
    plain = {"gate_up": gate_up.dequantised(), "down": down.dequantised()}
    want = experts(x, weights=weights, chosen=chosen, **plain)
    got = experts(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    step = experts_step(x[0], weights=weights[0], chosen=chosen[0], gate_up=gate_up, down=down)
    assert torch.equal(step, experts_step(x[0], weights=weights[0], chosen=chosen[0], **plain))


def test_parts_that_do_not_belong_together_are_refused() -> None:
    good = four_bit(2, 3, 64).parts()
    spoiled: list[dict[str, Tensor]] = [
        {"codes": good["codes"].to(torch.int32)},
        {"codes": good["codes"][:, :2]},
        {"codes": good["codes"].flatten(0, 1)},
        {"scales": good["scales"][..., :1].expand(-1, -1, 3)},
        {"scales": good["scales"].float()},
        {"mins": good["mins"][:1]},
        {"block_scales": good["block_scales"].int()},
        {"block_mins": good["block_mins"][..., :0]},
    ]
    for parts in spoiled:
        with pytest.raises(ValueError, match="do not belong together"):
            from_parts(good | parts, torch.float32)
    for missing in ("mins", "block_mins", "block_scales"):
        with pytest.raises(ValueError, match="do not belong together"):
            from_parts({n: p for n, p in good.items() if n != missing}, torch.float32)
    with pytest.raises(ValueError, match="different formats"):
        concatenate([four_bit(1, 2, 64), eight_bit(1, 2, 64)], dim=0)


@given(columns=st.integers(1, 5), seed=st.integers(0, 2**32))
@examples(sample=20, full=200)
def test_packing_is_undone_by_unpacking(columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (3, 32 * columns), generator=random, dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes)), codes)
    packed = torch.randint(0, 256, (3, 16 * columns), generator=random, dtype=torch.uint8)
    assert torch.equal(pack(unpack(packed)), packed)


class TestQuantising:
    @pytest.mark.parametrize("columns", [32, 96, 256, 512])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_error_is_below_that_of_plain_rounding(
        self, columns: int, dtype: torch.dtype
    ) -> None:
        """Plain: 16 levels from each group's least to its greatest, in floats of any precision."""
        weights = (torch.randn(33, columns) / 50).to(dtype)
        error = quantise(weights, dtype)
        squared = (error.dequantised()[0] - weights.float()).square().mean()
        groups = torch.unflatten(weights.float(), -1, (-1, 32))
        low = groups.amin(-1, keepdim=True)
        step = (groups.amax(-1, keepdim=True) - low) / 15
        plain = (((groups - low) / step).round() * step + low - groups).square().mean()
        assert 0.5 * plain < squared < plain

    @given(
        seed=st.integers(0, 2**32),
        exponent=st.integers(-60, 60),
        spread=st.sampled_from(["normal", "one large", "all above 0", "all alike", "zeros"]),
    )
    @examples(sample=40, full=400)
    @pytest.mark.long
    def test_no_weight_is_further_off_than_what_may_be_cut_off(
        self, seed: int, exponent: int, spread: str
    ) -> None:
        """Whatever the weights; a span reaches from a group's least to its greatest, 0 included."""
        torch.manual_seed(seed)
        weights = torch.randn(5, 96)
        if spread == "one large":
            weights[:, ::50] *= 100
        elif spread == "all above 0":
            weights = weights.abs() + 3
        elif spread == "all alike":
            weights = weights[:, :1].expand(-1, 96)
        elif spread == "zeros":
            weights = weights * (torch.arange(96) > 40)
        weights = weights * 2.0**exponent
        got = quantise(weights, torch.float32).dequantised()[0]
        groups, off = (torch.unflatten(x, -1, (-1, 32)) for x in (weights, (got - weights).abs()))
        span = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
        # Three tenths at most are cut off; a step is a fifteenth.
        assert (off.amax(-1) <= (0.3 + 1 / 15) * span).all()

    def test_the_same_weights_give_the_same_bits_however_many_rows_come_with_them(self) -> None:
        weights = torch.randn(3000, 64)
        whole, part = quantise(weights, torch.float32), quantise(weights[1234:1300], torch.float32)
        for name, tensor in part.parts().items():
            assert torch.equal(tensor, whole.parts()[name][:, 1234:1300])

    def test_columns_that_are_no_groups_are_refused(self) -> None:
        with pytest.raises(ValueError, match="48 columns are not a multiple of 32"):
            quantise(torch.zeros(2, 48), torch.float32)

"""How far a Triton kernel may be from its reference in fp64: one table, each entry with its reason.

A difference is measured against the largest value of the reference's tensor: sums are rounded by
the size of what they add, not of what is left.
"""

import torch
from torch import Tensor

# Under the interpreter every operand is fp32: what is allowed is the rounding of sums in another
# order. Inputs are drawn anew each time, so each bound leaves several times what was seen (1.2e-5
# in the delta rule, whose errors feed each other); a wrong term is a hundred times larger still.
INTERPRETED = {
    "gated_delta_rule": 1e-4,  # chunks of sums of up to 128 products, carried through the state
    "keys_alike": 1e-4,
    "gated_delta_net": 1e-4,
    "causal_conv1d": 1e-5,  # kernel products, one sigmoid
    "rms_norm": 1e-5,
    "rotary": 1e-5,
    "attention": 2e-5,
    "linear_fp8": 1e-5,
    "route": 1e-6,
    "moe": 1e-5,
    "moe_step": 1e-5,
    "moe_bf16": 1e-2,  # what stands between the products, and parts, are stored as bf16, cut off
    # Where a value between the two products lies near the border of two e4m3 codes, the reference
    # may take the other: one value of a token is then 2^-4 off.
    "moe_e4m3": 5e-3,
}
# On hardware operands of matrix products are rounded to bf16, 2^-9 each. The bounds are at least
# twice what fp16 operands, 8 times finer, cost under the interpreter, times 8.
ON_HARDWARE = {
    "gated_delta_rule": 2e-2,  # q, k, T, errors and the state's copy are operands: five roundings
    "keys_alike": 8e-2,  # every token corrects every other in full: errors add up instead
    "gated_delta_net": 2e-2,
    "causal_conv1d": 2e-6,
    "rms_norm": 2e-6,
    "rotary": 2e-6,
    "attention": 1e-2,  # q, k, v and the probabilities
    "linear_fp8": 1e-2,  # x as bf16; of e4m3 products, tensor cores keep 14 bits of 128 columns
    "route": 1e-6,
    "moe_step": 1e-5,  # products in fp32
    "moe_bf16": 1e-2,
    "moe": 1e-2,  # x, what stands between the products, and the parts that are added up
    "moe_e4m3": 2e-2,  # as both, and as interpreted
}
STORED = {
    torch.float32: 0.0,
    torch.bfloat16: 2**-7,  # one unit in the last place: the interpreter cuts off, hardware rounds
}


def assert_agrees(operation: str, got: Tensor, want: Tensor, *, hardware: bool) -> None:
    """Compare with the fp64 reference; fail on any NaN the reference does not have."""
    assert got.shape == want.shape
    allowed = (ON_HARDWARE if hardware else INTERPRETED)[operation] + STORED[got.dtype]
    largest = want.abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(got.double().cpu(), want, atol=allowed * largest, rtol=0)

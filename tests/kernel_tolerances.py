"""How far a Triton kernel may be from its reference in fp64: one table, each entry with its reason.

A difference is measured against the largest value of the reference's tensor: sums are rounded by
the size of what they add, not of what is left.
"""

import torch
from qcn_kernels.paged_attention import E4M3_ROWS
from torch import Tensor

# Under the interpreter every operand is fp32: what is allowed is the rounding of sums in another
# order. Inputs are drawn anew each time, so each bound is at least eight times the largest
# difference seen (beside it, with the number of draws, where that was recorded); a wrong term is a
# hundred times larger.
INTERPRETED = {
    "gated_delta_rule": 1e-4,  # 1.2e-5 (220): chunks of up to 128 products, through the state
    "keys_alike": 1e-4,  # 4.9e-7 (320)
    "keys_equal": 1e-4,
    "gated_delta_net": 1e-4,  # 4.9e-6 (340)
    "causal_conv1d": 1e-5,  # 2.3e-7 (1,700): kernel products, one sigmoid
    "rms_norm": 1e-5,  # 1.6e-7 (48)
    "rotary": 1e-5,  # 1.4e-7 (24)
    "attention": 2e-5,  # 6.6e-7 (72)
    "linear": 1e-5,
    "linear_fp8": 1e-5,
    "linear_step": 1e-5,
    "linear_few": 1e-5,
    "gating": 1e-5,
    "route": 1e-6,
    "moe": 1e-5,
    "moe_groupwise": 1e-5,
    "moe_step": 1e-5,
    "moe_few": 1e-5,
    # What stands between the products, and parts, are stored as bf16, which here means cut off:
    # 2^-7 each, all in one direction. Seen: 1.0e-2.
    "moe_bf16": 4e-2,
    # Where a value between the two products lies on the border of two e4m3 codes, the reference
    # may take the other: one of 128 values of a token is then up to 2^-3 off. Else 5e-7 was seen.
    "moe_e4m3": 3e-2,
    "offloaded_step": 1e-5,  # 6e-7 (20), of a model's logits: sums in another order
}
# On hardware operands of matrix products are rounded to bf16, 2^-9 each. The bounds are at least
# twice what fp16 operands, 8 times finer, cost under the interpreter, times 8.
ON_HARDWARE = {
    # The state's copy, X, T' and T' X are operands, the scores and R: six roundings. Computed with
    # all of them in torch: 1.6e-2 at the most in 80,000 draws of the tests' shapes.
    "gated_delta_rule": 2e-2,
    # Every token corrects every other in full: errors add up. Computed so: 2.7e-2 (20,000).
    "keys_alike": 6e-2,
    # Of a key k as rounded, T' has -kᵀk between two tokens, and 1 is written where that is up to
    # 2^-8 more: as much of each x (1.4) adds up over 64 tokens, as a walk, to 4.4e-2; an element of
    # 1,600 may be four times that. Computed so: 1.3e-1 (60,000). A block of T' that is wrong, or
    # missing: 2.4e-1 at the least (100).
    "keys_equal": 2e-1,
    # In fp32 the same, behind a norm: 2.5e-2 (23,000), computed so. In bf16 less.
    "gated_delta_net": 4e-2,
    "causal_conv1d": 2e-6,
    "rms_norm": 2e-6,
    "rotary": 2e-6,
    "attention": 1e-2,  # q, k, v and the probabilities
    "linear": 2e-5,  # the operands are stored in bf16: products of them are exact
    "linear_fp8": 1e-2,  # x as bf16; of e4m3 products, tensor cores keep 14 bits of 128 columns
    "gating": 2e-6,
    "linear_step": 2e-5,  # products in fp32
    "linear_few": 2e-5,  # as for "linear": e4m3 is exact in bf16
    "route": 2e-6,
    "moe_step": 1e-5,  # products in fp32
    "moe_few": 1e-2,  # x
    "moe_bf16": 1e-2,  # as for "moe"
    "moe": 1e-2,  # x, what stands between the products, and the parts that are added up
    # As "moe", and the dequantised weights. In torch with operands rounded to bf16, of 12,900 draws
    # of the tests' smallest layers 115 were beyond 1e-2, 1.9e-2 the most.
    "moe_groupwise": 4e-2,
    # As interpreted, and more often: tensor cores cut sums off at 14 bits, which is 2.3e-4 of them.
    # Computed so on the CPU: 4.8e-2 at most in 1,417 draws of one token, 4.3e-2 in 85 of 53.
    "moe_e4m3": 8e-2,
    # As interpreted, 4e-7, unless an operand of attention falls on the other side of a border of
    # bf16: one that does costs 4e-5 to 2e-4 (80). Experts with each other's weights: 5e-1.
    "offloaded_step": 1e-3,
}
# How far a token's logits of a whole model are from transformers' in fp32, as root mean square
# against the standard deviation of all: of the token in the middle; three layers. Seen under the
# interpreter: 2e-6, and 2.3 % in bf16, where the CPU's way has 1.6 % (2^-8 for each of the products
# a token passes through, added as squares): the interpreter cuts off what the CPU rounds.
# Activations in e4m3 are rounded by up to 2^-4, in front of every product: 15 % was seen. Whether
# scales are in their places is told in fp32.
MODEL_INTERPRETED = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float8_e4m3fn: 3e-1}
# Products in fp32, keys and values in e4m3, beside an oracle that rounds them likewise. One that
# falls on the other side of a border: 2.6e-5. Not rounded at all: 2.1e-2.
MODEL_INTERPRETED[E4M3_ROWS] = 1e-3
# On hardware operands of attention, of the delta rule and of experts are bf16 in either case. Where
# the interpreter was made to round them so: 1.1e-2 (24). A mixer that is a tenth off: 2.1e-2 to
# 1e-1.
MODEL_ON_HARDWARE = {torch.float32: 2e-2, torch.bfloat16: 3e-2, torch.float8_e4m3fn: 3e-1}
MODEL_ON_HARDWARE[E4M3_ROWS] = 3e-2  # more fall so
# Of all tokens together, where that is more. One whose numbers nearly cancel is rounded more than
# others: of 60 draws one was 2.3e-2 off. One token of 73 that is wrong makes it 1.2e-1.
MODEL_IN_ALL = 1e-1
STORED = {
    torch.float32: 0.0,
    # One unit in the last place, of which 0.9 were seen, and more than one there cannot be: the
    # interpreter cuts off, hardware rounds.
    torch.bfloat16: 2**-7,
}


def assert_agrees(operation: str, got: Tensor, want: Tensor, *, hardware: bool) -> None:
    """Compare with the fp64 reference; fail on any NaN the reference does not have."""
    assert got.shape == want.shape
    allowed = (ON_HARDWARE if hardware else INTERPRETED)[operation] + STORED[got.dtype]
    largest = want.abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(got.double().cpu(), want, atol=allowed * largest, rtol=0)


def assert_model_agrees(got: Tensor, want: Tensor, dtype: torch.dtype, *, hardware: bool) -> None:
    """Compare a whole model's logits, its products in `dtype`, with those in fp32."""
    assert got.shape == want.shape
    allowed = (MODEL_ON_HARDWARE if hardware else MODEL_INTERPRETED)[dtype]
    error = (got.cpu() - want).square().mean(-1).sqrt() / want.std()
    assert error.median() < allowed
    assert error.square().mean().sqrt() < (max(allowed, MODEL_IN_ALL) if hardware else allowed)

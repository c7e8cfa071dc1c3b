"""Tables in one launch, and norm and rotation in one pass, against the references."""

import pytest
import torch
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.rms_norm.reference import rms_norm
from qcn_kernels.rotary.reference import apply_rotary, frequencies, rotary_tables
from qcn_kernels.rotary.triton import rms_norm_rotary
from qcn_kernels.rotary.triton import rotary_tables as tables_in_one_launch
from torch import Tensor

POSITIONS = torch.tensor([0, 1, 2, 3, 40, 500, 6000, 70_000, 262_143])


@pytest.mark.parametrize(
    ("heads", "head_dim", "rotary_dim", "dtype"),
    [
        (18, 256, 64, torch.bfloat16),
        (3, 60, 14, torch.float32),
        (1, 16, 16, torch.float32),
    ],
)
def test_heads_are_normalised_and_turned(
    call: Caller, heads: int, head_dim: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    wide = torch.randn(9, heads + 2, head_dim).to(dtype)
    x, scale = wide[:, :heads], torch.randn(heads, head_dim)
    cos, sin = rotary_tables(POSITIONS, rotary_dim=rotary_dim, theta=5e6)
    want = apply_rotary(
        rms_norm(x.double(), scale=scale.double(), eps=1e-6),
        cos=cos.double().unsqueeze(1),
        sin=sin.double().unsqueeze(1),
    )
    got = call(rms_norm_rotary, x=x, scale=scale, eps=1e-6, cos=cos, sin=sin, dtype=dtype)
    assert_agrees("rotary", got, want, hardware=call.hardware)


def tables_and_turns(*, positions: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, ...]:
    """Tables, and the frequencies that they are made of, which torch computes where they lie."""
    turns = frequencies(rotary_dim, theta, positions.device)
    return *tables_in_one_launch(positions, rotary_dim=rotary_dim, theta=theta), turns


@pytest.mark.parametrize(("rotary_dim", "tokens"), [(64, 1), (64, 9), (14, 9), (2, 3)])
def test_tables_are_those_of_the_reference(call: Caller, rotary_dim: int, tokens: int) -> None:
    """Of angles in fp32. A GPU's powers are up to 4 units in the last place off, and 262,143 times
    as much turns an angle visibly: so what they are made of is compared by itself.
    """
    positions = POSITIONS[-tokens:]
    given = {"rotary_dim": rotary_dim, "theta": 5e6}
    cos, sin, turns = call(tables_and_turns, positions=positions, **given)
    torch.testing.assert_close(
        turns, frequencies(rotary_dim, 5e6, torch.device("cpu")), rtol=1e-6, atol=0
    )
    angles = (positions.float().unsqueeze(-1) * turns).double()
    want_cos, want_sin = angles.cos(), angles.sin()
    for got, halves in ((cos, (want_cos, want_cos)), (sin, (-want_sin, want_sin))):
        assert_agrees("rotary", got, torch.cat(halves, -1), hardware=call.hardware)

"""Drafted tokens through a Gated DeltaNet layer, in Triton, against its steps in fp64."""

import pytest
import torch
from deltanet_layers import SHAPES, Layer, draw
from interpreted import Caller
from kernel_tolerances import assert_agrees
from qcn_kernels.gated_delta_net import Drafts, reference
from qcn_kernels.gated_delta_net.reference import ring_from_state
from qcn_kernels.gated_delta_net.triton_verify import commit, verify_step
from torch import Tensor

ROWS = 6


def room(layers: int, layer: Layer) -> Drafts:
    """For as many layers, filled with what must not be read."""
    heads, key_dim, value_dim = layer.recurrent.shape
    shapes = {
        "inputs": (layer.weights.conv.shape[1],),
        "keys": (layer.weights.key_heads, key_dim),
        "errors": (heads, value_dim),
        "total": (heads,),
    }
    return Drafts(
        **{name: torch.full((layers, ROWS, *shape), torch.nan) for name, shape in shapes.items()}
    )


def verify_and_commit(
    *,
    projected: Tensor,
    layer: Layer,
    drafts: Drafts,
    slot: int,
    position: Tensor,
    rings: Tensor,
    recurrent: Tensor,
    tokens: Tensor,
) -> Tensor:
    """Verify in one of the layers, the others' drafts being the same; take the first tokens in."""
    out = verify_step(
        projected,
        weights=layer.weights,
        ring=rings[slot],
        position=position,
        recurrent=recurrent[slot],
        drafts=drafts.layer(slot),
    )
    for kept in drafts.tensors:
        kept[:] = kept[slot].clone()
    commit(drafts, tokens, rings=rings, position=position, recurrent=recurrent)
    return out


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
@pytest.mark.parametrize(("key_heads", "shared", "key_dim", "value_dim", "kernel", "dtype"), SHAPES)
def test_drafts_are_what_steps_are_and_the_first_of_them_stay(
    call: Caller,
    key_heads: int,
    shared: int,
    key_dim: int,
    value_dim: int,
    kernel: int,
    dtype: torch.dtype,
    taken: int,
) -> None:
    """At any place of the ring, and where the text has fewer tokens than the convolution."""
    layer = draw(key_heads, shared, key_dim, value_dim, kernel)
    number = int(torch.randint(0, 9, ()))
    position, projected = torch.tensor([number]), layer.projected(5, dtype)
    ring = ring_from_state(layer.convolution, number)
    ring[number % kernel] = torch.nan  # the row that is due to be overwritten is not read
    exact, exact_ring, want = layer.exact(), ring.double(), []
    after = exact_ring.clone(), exact.recurrent.clone()
    for at, token in enumerate(projected.double()):
        if at == taken:
            after = exact_ring.clone(), exact.recurrent.clone()
        want.append(
            reference.step(
                token,
                weights=exact.weights,
                ring=exact_ring,
                position=position + at,
                recurrent=exact.recurrent,
            )
        )
    if taken == len(projected):
        after = exact_ring, exact.recurrent
    rings, recurrent = torch.stack((ring, ring)), torch.stack((layer.recurrent,) * 2)
    got = call(
        verify_and_commit,
        projected=projected,
        layer=layer,
        drafts=room(2, layer),
        slot=1,
        position=position,
        rings=rings,
        recurrent=recurrent,
        tokens=torch.tensor([taken], dtype=torch.int32),
    )
    assert_agrees("gated_delta_net", got, torch.stack(want), hardware=False)
    for one_ring, one_state in zip(rings, recurrent, strict=True):
        torch.testing.assert_close(one_ring, after[0].float(), rtol=0, atol=0, equal_nan=True)
        assert_agrees("gated_delta_net", one_state, after[1], hardware=False)


def test_a_draft_does_not_depend_on_what_is_drafted_behind_it(call: Caller) -> None:
    layer, position = draw(1, 2, 32, 40), torch.tensor([5])
    rings = ring_from_state(layer.convolution, 5)[None]
    given = {"layer": layer, "slot": 0, "position": position, "rings": rings}
    projected, none = layer.projected(5, torch.float32), torch.zeros(1, dtype=torch.int32)

    def verified(tokens: int) -> Tensor:
        recurrent = layer.recurrent[None].clone()
        out: Tensor = call(
            verify_and_commit,
            projected=projected[:tokens],
            drafts=room(1, layer),
            recurrent=recurrent,
            tokens=none,
            **given,
        )
        return out

    assert torch.equal(verified(3), verified(5)[:3])


@pytest.mark.gpu
def test_the_real_shape_agrees_with_steps(on_gpu: Caller) -> None:
    layer = draw(16, 2, 128, 128)
    exact, position = layer.exact(), torch.tensor([7])
    projected = layer.projected(5, torch.bfloat16)
    rings, recurrent = ring_from_state(layer.convolution, 7)[None], layer.recurrent[None].clone()
    exact_ring, want = rings[0].double(), []
    for at, token in enumerate(projected.double()):
        past = {"ring": exact_ring, "position": position + at, "recurrent": exact.recurrent}
        want.append(reference.step(token, weights=exact.weights, **past))
    got = on_gpu(
        verify_and_commit,
        projected=projected,
        layer=layer,
        drafts=room(1, layer),
        slot=0,
        position=position,
        rings=rings,
        recurrent=recurrent,
        tokens=torch.tensor([5], dtype=torch.int32),
    )
    assert_agrees("gated_delta_net", got, torch.stack(want), hardware=False)
    assert_agrees("gated_delta_net", recurrent[0], exact.recurrent, hardware=False)

"""Router and experts against the mixture written out token by token."""

import pytest
import torch
from qcn_kernels.moe import SharedExpert, add_experts_step, experts, experts_step, route
from qcn_kernels.moe.reference import mixture


@pytest.mark.parametrize("tokens", [1, 7, 65])
@pytest.mark.parametrize(("count", "top_k"), [(1, 1), (5, 2), (17, 6), (4, 4)])
@pytest.mark.parametrize("normalise", [True, False])
def test_sparse_equals_the_reference(tokens: int, count: int, top_k: int, normalise: bool) -> None:
    hidden, intermediate = 21, 13
    x, logits = torch.randn(tokens, hidden), 2 * torch.randn(tokens, count)
    gate_up = torch.randn(count, 2 * intermediate, hidden) / 4
    down = torch.randn(count, hidden, intermediate) / 4
    want = mixture(x, logits=logits, gate_up=gate_up, down=down, top_k=top_k, normalise=normalise)
    weights, chosen = route(logits, top_k=top_k, normalise=normalise)
    got = experts(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    step = experts_step(x[0], weights=weights[0], chosen=chosen[0], gate_up=gate_up, down=down)
    torch.testing.assert_close(step, want[0], atol=1e-5, rtol=1e-5)


def test_only_chosen_experts_are_read() -> None:
    """All the others hold NaN."""
    gate_up, down = torch.full((9, 8, 6), torch.nan), torch.full((9, 6, 4), torch.nan)
    chosen = torch.tensor([[2, 5], [5, 2], [2, 7]])
    for expert in (2, 5, 7):
        gate_up[expert].normal_()
        down[expert].normal_()
    x, weights = torch.randn(3, 6), torch.rand(3, 2)
    out = experts(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
    assert out.isfinite().all()
    step = experts_step(x[0], weights=weights[0], chosen=chosen[0], gate_up=gate_up, down=down)
    assert step.isfinite().all()


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    x, logits = torch.randn(40, 16), torch.randn(40, 6)
    gate_up, down = torch.randn(6, 16, 16), torch.randn(6, 16, 8)
    weights, chosen = route(logits, top_k=3, normalise=True)
    whole = experts(x, weights=weights, chosen=chosen, gate_up=gate_up, down=down)
    order = torch.randperm(40)
    shuffled = experts(
        x[order], weights=weights[order], chosen=chosen[order], gate_up=gate_up, down=down
    )
    torch.testing.assert_close(shuffled, whole[order], atol=1e-5, rtol=1e-5)


def test_a_tokens_experts_are_added_to_its_stream_with_the_shared_one_behind_its_gate() -> None:
    x, logits = torch.randn(1, 16), torch.randn(1, 5)
    gate_up, down = torch.randn(6, 16, 16) / 4, torch.randn(6, 16, 8) / 4
    want = mixture(x, logits=logits, gate_up=gate_up[:5], down=down[:5], top_k=3, normalise=True)
    alone = torch.ones(1, 1), torch.full((1, 1), 5)
    shared = experts(x, weights=alone[0], chosen=alone[1], gate_up=gate_up, down=down)
    gate, to = torch.randn(1), torch.randn(16)
    want = to + want[0] + gate.sigmoid() * shared[0]
    weights, chosen = route(logits[0], top_k=3, normalise=True)
    add_experts_step(
        to,
        x[0],
        weights=weights,
        chosen=chosen,
        gate_up=gate_up,
        down=down,
        shared=SharedExpert(gate, gate_up[5] @ x[0], down[5]),
    )
    torch.testing.assert_close(to, want, atol=1e-5, rtol=1e-5)

"""One token through the gated delta rule, in few torch calls."""

from torch import Tensor


def gated_delta_rule_step(
    *, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> Tensor:
    """Read one token into `state`; return what it reads out.

    Args:
        q: [key_heads, key_dim] fp32, l2-normalised and scaled.
        k: [key_heads, key_dim] fp32, l2-normalised.
        v: [value_heads, value_dim] fp32.
        g: [value_heads] fp32, logarithm of the decay, at most 0.
        beta: [value_heads] fp32.
        state: [value_heads, key_dim, value_dim] fp32, updated in place.

    Returns:
        [value_heads, value_dim] fp32.
    """
    shared = v.shape[0] // k.shape[0]
    if shared > 1:
        q = q.unsqueeze(1).expand(-1, shared, -1).flatten(0, 1)
        k = k.unsqueeze(1).expand(-1, shared, -1).flatten(0, 1)
    state.mul_(g.exp()[:, None, None])
    predicted = (k.unsqueeze(1) @ state).squeeze(1)
    error = (v - predicted).mul_(beta.unsqueeze(1))
    state.addcmul_(k.unsqueeze(2), error.unsqueeze(1))
    return (q.unsqueeze(1) @ state).squeeze(1)

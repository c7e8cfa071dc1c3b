"""The gated delta rule over chunks of tokens: matrix products instead of one step per token.

Within a chunk the corrections of the tokens depend on each other through a unit lower triangular
system (the WY form, arXiv 2406.06484 section 3; with decay, arXiv 2412.06464 section 3.3). It is
solved for all chunks at once; only the state is carried from chunk to chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_SIZE = 64  # tokens: as in the published kernels


def chunk_gated_delta_rule(
    *, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> Tensor:
    """Read T tokens into `state`; return what each reads out.

    The chunk grid starts at the first of the T tokens and the last chunk may be short. Everything
    is fp32: a product of 64 decays underflows sooner in bf16, and checkpoints of the state are kept
    for as long as a repository is open.

    Args:
        q: [T, key_heads, key_dim] fp32, l2-normalised and scaled.
        k: [T, key_heads, key_dim] fp32, l2-normalised.
        v: [T, value_heads, value_dim] fp32; key head h serves value heads h·r … h·r + r - 1.
        g: [T, value_heads] fp32, logarithm of the decay, at most 0.
        beta: [T, value_heads] fp32.
        state: [value_heads, key_dim, value_dim] fp32, updated in place.

    Returns:
        [T, value_heads, value_dim] fp32.
    """
    tokens, key_heads, _ = k.shape
    shared = v.shape[1] // key_heads
    size = min(CHUNK_SIZE, tokens)
    padding = -tokens % size  # rows of k = 0, beta = 0, g = 0 leave the state as it is
    chunks = (tokens + padding) // size

    def by_chunk(x: Tensor) -> Tensor:  # [T, H, D] -> [H, chunks, size, D]
        x = functional.pad(x, (0, 0, 0, 0, 0, padding)) if padding else x
        return x.reshape(chunks, size, *x.shape[1:]).permute(2, 0, 1, 3).contiguous()

    def spread(x: Tensor) -> Tensor:  # from key heads to the value heads they serve
        return x.repeat_interleave(shared, dim=0) if shared > 1 else x

    q, k, v = by_chunk(q), by_chunk(k), by_chunk(v)
    beta = by_chunk(beta.unsqueeze(-1))  # [Hv, chunks, size, 1]
    total = by_chunk(g.unsqueeze(-1)).cumsum(2)
    from_start = total.exp()
    within = (total - total.mT).tril_().exp_().tril_()  # decay from token j to token i

    system = spread(k @ k.mT).mul_(within).mul_(beta)  # only what is below the diagonal is read
    inverse = torch.linalg.solve_triangular(
        system, torch.eye(size).expand_as(system), upper=False, unitriangular=True
    )
    q_k = spread(q @ k.mT).mul_(within)
    q, k = spread(q), spread(k)
    corrections = (inverse * beta.mT) @ v
    # What reads the state that enters the chunk: the corrections, then the queries.
    readers = torch.cat(((inverse * (beta * from_start).mT) @ k, q * from_start), dim=2)
    keys_to_end = (k * (total[:, :, -1:] - total).exp()).mT
    chunk_decay = from_start[:, :, -1:]

    outputs = torch.empty_like(v)
    for i in range(chunks):
        read = readers[:, i] @ state
        delta = corrections[:, i] - read[:, :size]
        torch.baddbmm(read[:, size:], q_k[:, i], delta, out=outputs[:, i])
        state.mul_(chunk_decay[:, i]).baddbmm_(keys_to_end[:, i], delta)
    return outputs.flatten(1, 2).transpose(0, 1)[:tokens]

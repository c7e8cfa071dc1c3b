"""Temperature, top-k and top-p by sorting; it runs wherever torch does."""

import torch
from torch import Tensor


def greedy(logits: Tensor) -> Tensor:
    """Return the ids [T] of the largest logits of [T, vocabulary], of equals the first."""
    return logits.argmax(dim=-1)


def distribution(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """Return ids [T, n] in descending order of logits, and what may be drawn of each [T, n].

    The probabilities are those after temperature and top-k. A token is left while those before it
    are short of top_p; the others have 0, so that the rest sums to less than 1.
    """
    kept, ids = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        kept, ids = kept[:, :top_k], ids[:, :top_k]
    probabilities = kept.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return ids, probabilities.masked_fill((before >= top_p) & (before > 0), 0.0)


def sample(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float, uniform: Tensor
) -> Tensor:
    """Return the ids [T] of tokens drawn from `distribution`; as `sampling.sample`."""
    ids, probabilities = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    below = probabilities.cumsum(-1)
    target = uniform.to(below.dtype) * below[:, -1]
    place = torch.searchsorted(below, target.unsqueeze(1), right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # uniform may round up to the whole sum
    return ids.gather(1, place.minimum(last)).squeeze(1)

"""Attention of a few tokens that are verified together: decode's splits, in a tile that holds more.

So keys and values, which is what it costs to read behind a long text, are read once for all of
them, or twice, and not once for every two.
"""

from torch import Tensor

from qcn_kernels.chip import configuration
from qcn_kernels.paged_attention.pages import PagedKv
from qcn_kernels.paged_attention.triton import (
    DECODE,
    DECODE_COMBINED,
    DECODE_SPLIT,
    Tile,
    _launch,
)

VERIFY = {80: Tile(64, 32, 8, 2)}
"""That of a prefill on most chips: 8 tokens with 8 query heads for each key head."""
FEW = 2
"""Tokens that decode's tile holds as well."""


def paged_attention_verify(q: Tensor, kv: PagedKv) -> Tensor:
    """As `paged_attention_decode`, for [T, heads, head_dim]; agrees with it to rounding."""
    tile = configuration(DECODE if len(q) <= FEW else VERIFY, q)
    return _launch(q, kv, tile, split=DECODE_SPLIT, slab=len(q), combined=DECODE_COMBINED)

"""Which blocks go through all layers at once.

On the CPU a pass is one block: how a product is rounded there depends on the number of its rows. On
a GPU our kernels give each token the same whatever shares its launch, so that a pass may be as long
as pays: the weights of the experts are read once for each.

A pass is bounded so that each of its layers is done soon: between two layers something more urgent
may begin. Attention is what grows, with the pairs of tokens that see each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

Block = tuple[int, int]  # start and end in a text


@dataclass(frozen=True, slots=True)
class Pass:
    """Blocks that follow each other, and where checkpoints are taken inside."""

    blocks: tuple[Block, ...]
    keep: tuple[int, ...]  # ends of blocks, the last one's not among them

    @property
    def start(self) -> int:
        """Where it begins in the text."""
        return self.blocks[0][0]

    @property
    def end(self) -> int:
        """Where it ends in the text."""
        return self.blocks[-1][1]

    @property
    def parts(self) -> tuple[int, ...]:
        """Tokens of each block."""
        return tuple(end - start for start, end in self.blocks)

    @property
    def kept(self) -> tuple[int, ...]:
        """Tokens of the pass in front of each checkpoint."""
        return tuple(end - self.start for end in self.keep)


@dataclass(frozen=True, slots=True)
class PassLimits:
    """A pass ends with the block in front of the one that would go beyond any of these."""

    tokens: int
    pairs: int  # of a token and one that it sees, as an attention layer computes them
    checkpoints: int  # inside

    def smaller(self) -> "PassLimits":
        """What takes about a quarter of the memory, and gives the same."""
        return PassLimits(self.tokens // 4, self.pairs // 4, self.checkpoints // 4)


ONE_BLOCK = PassLimits(tokens=0, pairs=0, checkpoints=0)
ON_GPU = PassLimits(
    tokens=16_384,
    # 4.4 TFLOP for one layer with 16 heads of 256, in passes of 16,384 tokens at first, of 3,600 at
    # 64k and of 1,000 at 262k: 9 ms at the 490 TFLOP/s of an H200.
    pairs=1 << 28,
    checkpoints=8,  # 77 MB each of an 80 B model
)
BESIDE_HOST = replace(ON_GPU, pairs=4 * ON_GPU.pairs)
"""Where experts lie in host memory, all of them come over the link in each pass: a 24 GB card reads
64k tokens in half the time in longer ones, counted. Who waits for such a model waits seconds."""


def passes(blocks: Sequence[Block], keep: set[int], limits: PassLimits) -> Iterator[Pass]:
    """Cut blocks that follow each other into passes; `keep` holds ends of blocks."""
    now: list[Block] = []
    tokens = pairs = 0
    for start, end in blocks:
        size = end - start
        kept = sum(other in keep for _, other in now)
        if now and (
            tokens + size > limits.tokens
            or pairs + size * end > limits.pairs
            or kept > limits.checkpoints
        ):
            yield _pass_of(now, keep)
            now, tokens, pairs = [], 0, 0
        now.append((start, end))
        tokens += size
        pairs += size * end
    if now:
        yield _pass_of(now, keep)


def _pass_of(blocks: list[Block], keep: set[int]) -> Pass:
    return Pass(tuple(blocks), tuple(end for _, end in blocks[:-1] if end in keep))

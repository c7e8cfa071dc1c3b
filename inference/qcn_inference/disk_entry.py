"""One file of the disk cache: a stretch of a text, and the checkpoint behind it.

    header | tokens of each block, u32 | token ids, i32 | keys and values of each block, layer by
    layer | convolution and recurrent state, layer by layer | SHA-256 of all before it

The header holds magic, format version, the fingerprint of the model and its numerics, the keys of
this entry and of its parent, the number of blocks and the length of what follows it. Shapes and
types are not stored: the fingerprint says that they are this model's.

Nothing that is read is handed out before its digest has been compared, and its tokens with those of
the text that it is wanted for. Nothing is mapped into memory: a file that is cut short while it is
being read is damaged, not the end of the process.

Rejected: a safetensors file, which is read as one piece or mapped, and which holds the
interpreter's lock while it is taken apart: 100 ms for one entry of an 80 B model. Here each tensor
is read into its own memory, without the lock.
"""

import hashlib
import math
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol

import torch
from torch import Tensor

from qcn_inference.kept import DeltaNetState, KvBlock
from qcn_inference.state import State
from qcn_inference.state_cache import Stretch

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAGIC, VERSION = b"qcn-ctx\0", 1
# Magic, version, fingerprint, key, parent, blocks, bytes behind the header.
_HEADER = struct.Struct("<8sI32s16s16sIQ")
DIGEST_BYTES = 32


class DamagedError(Exception):
    """A file that is not what its name says; the message quotes nothing of it."""


class _Digest(Protocol):
    def update(self, data: "ReadableBuffer", /) -> None: ...
    def digest(self) -> bytes: ...


def keys_of(fingerprint: bytes, pieces: Sequence[bytes]) -> list[str]:
    """The keys behind each block of a text: a chain of digests, `h_i = H(h_{i-1}, tokens_i)`."""
    keys, link = [], fingerprint
    for piece in pieces:
        link = hashlib.sha256(link + piece).digest()
        keys.append(link[:16].hex())
    return keys


class EntryFormat:
    """The files of one model."""

    def __init__(self, fingerprint: bytes, empty: State) -> None:
        """Take shapes and types from the state of an empty sequence."""
        self.fingerprint = fingerprint
        nothing = empty.kv_of(0, 0)
        self._kv = [
            tensor for pair in zip(nothing.keys, nothing.values, strict=True) for tensor in pair
        ]
        self._recurrent = list(_tensors_of(empty.recurrent_part()))

    def nbytes(self, blocks: Sequence[tuple[bytes, KvBlock]]) -> int:
        """The size of the file that `write` makes of these blocks."""
        lengths = [len(piece) // 4 for piece, _ in blocks]
        return _HEADER.size + self._behind_header(lengths)

    def write(
        self,
        file: BinaryIO,
        *,
        key: str,
        parent: str,
        blocks: Sequence[tuple[bytes, KvBlock]],
        checkpoint: Sequence[DeltaNetState],
    ) -> None:
        """Write an entry. Raises OSError."""
        digest = hashlib.sha256()

        def put(data: "ReadableBuffer") -> None:
            digest.update(data)
            file.write(data)

        lengths = array("I", [len(piece) // 4 for piece, _ in blocks])
        put(self._header(key, parent, lengths))
        put(lengths.tobytes())
        for piece, _ in blocks:
            put(piece)
        for _, kv in blocks:
            for keys, values in zip(kv.keys, kv.values, strict=True):
                put(_bytes_of(keys))
                put(_bytes_of(values))
        for tensor in _tensors_of(checkpoint):
            put(_bytes_of(tensor))
        file.write(digest.digest())

    def read(
        self, file: BinaryIO, size: int, *, key: str, parent: str, pieces: Sequence[bytes]
    ) -> Stretch:
        """Read the entry of this key, which holds exactly these blocks of a text.

        `size` is the file's.

        Raises:
            DamagedError: it is cut short, altered, of another place, text, model or version.
            OSError: it cannot be read.
        """
        digest = hashlib.sha256()
        lengths = array("I", [len(piece) // 4 for piece in pieces])
        expected = self._header(key, parent, lengths)
        if size != len(expected) + self._behind_header(lengths):
            raise DamagedError("has another length")
        front = expected + lengths.tobytes() + b"".join(pieces)
        if _read(file, len(front), digest) != front:
            raise DamagedError("has another header or text")
        blocks = []
        for piece, length in zip(pieces, lengths, strict=True):
            kv = [self._read_tensor(file, digest, like, length) for like in self._kv]
            blocks.append((piece, KvBlock(tuple(kv[::2]), tuple(kv[1::2]))))
        parts = [self._read_tensor(file, digest, like, None) for like in self._recurrent]
        if file.read(DIGEST_BYTES) != digest.digest():
            raise DamagedError("has been altered")
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return Stretch(tuple(blocks), tuple(DeltaNetState(*pair) for pair in pairs))

    def _header(self, key: str, parent: str, lengths: "array[int]") -> bytes:
        return _HEADER.pack(
            MAGIC,
            VERSION,
            self.fingerprint,
            bytes.fromhex(key),
            bytes.fromhex(parent),
            len(lengths),
            self._behind_header(lengths),
        )

    def _behind_header(self, lengths: Sequence[int]) -> int:
        tokens = sum(lengths)
        per_token = 4 + sum(like.shape[0] * like.shape[2] * like.itemsize for like in self._kv)
        recurrent = sum(like.nbytes for like in self._recurrent)
        return 4 * len(lengths) + tokens * per_token + recurrent + DIGEST_BYTES

    @staticmethod
    def _read_tensor(file: BinaryIO, digest: _Digest, like: Tensor, tokens: int | None) -> Tensor:
        """A tensor shaped like another; with `tokens`, like [heads, tokens, head_dim]."""
        shape = like.shape if tokens is None else (like.shape[0], tokens, like.shape[2])
        count = math.prod(shape)
        data = _read(file, count * like.itemsize, digest)
        return torch.frombuffer(data, dtype=like.dtype, count=count).reshape(shape)


def _read(file: BinaryIO, count: int, digest: _Digest) -> bytearray:
    data = bytearray(count)
    if file.readinto(data) != count:  # type: ignore[attr-defined]  # typeshed: BinaryIO lacks it
        raise DamagedError("is cut short")
    digest.update(data)
    return data


def _tensors_of(checkpoint: Sequence[DeltaNetState]) -> Iterator[Tensor]:
    for part in checkpoint:
        yield part.convolution
        yield part.recurrent


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data.cast("B")

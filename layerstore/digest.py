"""The words of identity: digests, diff IDs, chain IDs, chunk IDs, and a reader that verifies while it reads.

A digest is text, `sha256:` and 64 lower-case hex digits, over the bytes as a registry has them. A diff ID is the
digest of an uncompressed layer tar; a chain ID names a stack of them. A chunk ID is the raw BLAKE3-256 of a chunk.

Source: OCI image-spec `descriptor.md` (digests), `config.md` (diff ID, chain ID).
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NewType, Protocol

from layerstore.errors import DigestMismatch, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ChainID",
    "ChunkID",
    "DiffID",
    "Digest",
    "Readable",
    "VerifyingReader",
    "chain_id",
    "digest_of",
    "from_raw",
    "parse_digest",
    "raw",
]

Digest = NewType("Digest", str)
DiffID = NewType("DiffID", Digest)
ChainID = NewType("ChainID", Digest)
ChunkID = NewType("ChunkID", bytes)

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


class Readable(Protocol):
    """All that a byte source has to do here: `read(n)` gives 1..n bytes, or none at the end."""

    def read(self, size: int, /) -> bytes:
        """Give at most `size` bytes."""
        ...


def parse_digest(text: object) -> Digest:
    """Check a digest that came from outside.

    Raises: InvalidArgument: not `sha256:` and 64 lower-case hex digits (no other algorithm is used by registries).
    """
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise InvalidArgument(f"not a sha256 digest: {str(text)[:100]!r}")
    return Digest(text)


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Name bytes that are all in memory."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def raw(digest: Digest) -> bytes:
    """The 32 bytes of a digest: how it is keyed on disk."""
    return bytes.fromhex(digest[7:])


def from_raw(value: bytes) -> Digest:
    """The inverse of `raw`."""
    return Digest("sha256:" + value.hex())


def chain_id(diff_ids: Sequence[DiffID]) -> ChainID:
    """Name a stack of layers, bottom first: ChainID(L0..Ln) = sha256(ChainID(L0..Ln-1) + " " + DiffID(Ln)).

    Raises: InvalidArgument: an empty stack has no name.
    """
    if not diff_ids:
        raise InvalidArgument("an empty stack of layers has no chain ID")
    name: Digest = diff_ids[0]
    for diff_id in diff_ids[1:]:
        name = digest_of(f"{name} {diff_id}".encode())
    return ChainID(name)


class VerifyingReader:
    """Pass bytes through while hashing them; `finish` says whether they were the promised ones.

    Reading never goes past `size`+1 bytes, so that a blob longer than its descriptor is noticed and not swallowed.
    Thread safety: one thread at a time.
    """

    def __init__(
        self, source: Readable, want: Digest | None, size: int | None, name: str = ""
    ) -> None:
        self._source, self.want, self.size, self._name = source, want, size, name
        self._hash = hashlib.sha256()
        self.count = 0

    def read(self, size: int) -> bytes:
        """Give at most `size` bytes; raises DigestMismatch as soon as there are more than promised."""
        if self.size is not None:
            size = min(size, self.size + 1 - self.count)
        data = self._source.read(size) if size > 0 else b""
        self._hash.update(data)
        self.count += len(data)
        if self.size is not None and self.count > self.size:
            raise DigestMismatch(f"{self.size} bytes", "more", self.count, source=self._name)
        return data

    def finish(self) -> Digest:
        """Read what is left, compare size and digest, and return the digest.

        Raises: DigestMismatch: the bytes are not the promised ones.
        """
        while self.read(1 << 20):
            pass
        got = Digest("sha256:" + self._hash.hexdigest())
        if self.size is not None and self.count != self.size:
            raise DigestMismatch(
                f"{self.size} bytes", f"{self.count} bytes", self.count, source=self._name
            )
        if self.want is not None and got != self.want:
            raise DigestMismatch(self.want, got, self.count, source=self._name)
        return got

"""What comparing needs to know of a layer: its distinct chunks and files, as sorted arrays.

    blob > decompress > split > cut + hash (as ingest does)  >  distinct chunks, compressed to know their size
                                                             >  distinct files, with the names of the large ones

A chunk's key is the first eight bytes of its BLAKE3. What a layer takes as gzip is known where it came so; of a plain tar an
eighth is compressed, and the result is an estimate.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from isal import isal_zlib

from layerstore.formats.codecs import Compression
from layerstore.formats.frame import FrameEncoder
from layerstore.formats.layertar import entries_of
from layerstore.ingest import LayerCutter
from layerstore.sharing import files_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from layerstore.digest import Readable
    from layerstore.ingest import Expected, Piece
    from layerstore.limits import Limits

__all__ = [
    "CACHES",
    "NAMED_FROM",
    "CutLayer",
    "GzipEstimate",
    "cache_of",
    "cut_layer",
    "named_files",
]

NAMED_FROM = 64 << 10  # bytes from which on the name of a file is kept
_MAX_NAMED = 2000  # names kept of a layer, those of the largest files

CACHES = {
    "apt": (b"var/cache/apt/", b"var/lib/apt/lists/"),
    "pip": (b"root/.cache/pip/",),
    "npm": (b"root/.npm/", b"usr/local/share/.cache/yarn/"),
    "dnf": (b"var/cache/dnf/", b"var/cache/yum/"),
    "apk": (b"var/cache/apk/",),
    "conda": (b"opt/conda/pkgs/",),
    "go": (b"root/.cache/go-build/",),
    "maven": (b"root/.m2/repository/",),
}
"""What package managers keep for the next installation: in an image nothing reads it."""

_SAMPLE, _OF = 256 << 10, 2 << 20  # so many bytes of each so many
_ISAL_OVER_ZLIB = 1.04  # its level 3 gave this much more than gzip -6 on seven layers of the corpus


class CutLayer(NamedTuple):
    """One layer. `chunks` and `files` are ascending; what stands beside them is in their order.

    Attributes:
        size: bytes of the tar.
        unpacked: bytes of its files.
        entries: members of the tar.
        gzip: bytes of it compressed, as it came (whatever the compression) or estimated.
        is_estimate: whether `gzip` is.
        chunks: keys of the distinct chunks of its files, without holes.
        lengths: bytes of each chunk.
        encoded: bytes of each as a frame of the store.
        files: keys of the distinct contents of its files, without empty ones.
        sizes: bytes of each file.
        named: of large files, [position in `files`, path].
        caches: bytes in folders that package managers use as caches, by manager.
    """

    size: int
    unpacked: int
    entries: int
    gzip: int
    is_estimate: bool
    chunks: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint32]
    encoded: npt.NDArray[np.uint32]
    files: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint64]
    named: tuple[tuple[int, str], ...]
    caches: dict[str, int]


def cut_layer(
    source: Readable, size: int, expected: Expected, compression: Compression, limits: Limits
) -> CutLayer:
    """Cut a layer blob of `size` bytes; its arrays are in memory, its bytes are not.

    Raises: MalformedInput, DigestMismatch: as `ingest_layer`.
    """
    estimate = GzipEstimate(source) if compression is Compression.NONE else None
    cutter = LayerCutter(estimate or source, expected, compression, limits)
    found = _Collector()
    with closing(cutter.pieces()) as pieces:
        for piece in pieces:
            found.add(piece)
            limits.check("entries", found.entries)
    cutter.finish()
    return found.finish(cutter.size, estimate.bytes() if estimate else size, estimate is not None)


class GzipEstimate:
    """A stream that passes through; an eighth of it is compressed to see what all of it would take.

    Thread safety: one thread at a time.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._at = self._sampled = self._packed = 0
        self._encoder = isal_zlib.compressobj(3, isal_zlib.DEFLATED, 31)

    def read(self, size: int, /) -> bytes:
        """As the source's."""
        data = self._source.read(size)
        start = -self._at % _OF
        if self._at % _OF < _SAMPLE:
            start = 0
        while start < len(data):
            phase = (self._at + start) % _OF
            part = data[start : start + _SAMPLE - phase]
            self._packed += len(self._encoder.compress(part))
            self._sampled += len(part)
            start += _OF - phase
        self._at += len(data)
        return data

    def bytes(self) -> int:
        """The estimate, once, after the end."""
        self._packed += len(self._encoder.flush())
        ratio = self._packed / max(self._sampled, 1) / _ISAL_OVER_ZLIB
        return int(self._at * ratio)


class _Collector:
    """Puts pieces together."""

    def __init__(self) -> None:
        self._encoder = FrameEncoder()
        self._seen: set[int] = set()
        self._keys: list[npt.NDArray[np.uint64]] = [np.empty(0, "u8")]
        self._lengths: list[npt.NDArray[np.uint32]] = [np.empty(0, "u4")]
        self._new: list[npt.NDArray[np.uint64]] = [np.empty(0, "u8")]
        self._new_lengths: list[npt.NDArray[np.uint32]] = [np.empty(0, "u4")]
        self._encoded: list[int] = []
        self._stored: list[npt.NDArray[np.uint64]] = [np.empty(0, "u8")]
        self._names: dict[int, bytes] = {}  # row -> path
        self._caches = dict.fromkeys(CACHES, 0)
        self.entries = 0

    def add(self, piece: Piece) -> None:
        heads = np.frombuffer(piece.cuts.ids, "<u8").reshape(-1, 4)[:, 0]
        keys = np.ascontiguousarray(heads)  # of a hole 0, as its ID is
        self._keys.append(keys)
        self._lengths.append(piece.cuts.lengths)
        self._compress(piece, keys)
        entries = entries_of(piece.split.members)
        stored = entries.rows["stored"]
        self._stored.append(stored.astype("u8"))
        ends = np.cumsum(entries.rows["path"], dtype="i8")
        for row in np.flatnonzero(stored).tolist():
            path = entries.paths[int(ends[row]) - int(entries.rows["path"][row]) : int(ends[row])]
            size = int(stored[row])
            if size >= NAMED_FROM:
                self._names[self.entries + row] = path
            if manager := cache_of(path):
                self._caches[manager] += size
        self.entries += len(entries)

    def _compress(self, piece: Piece, keys: npt.NDArray[np.uint64]) -> None:
        """Compress what this layer did not have yet."""
        fresh = []
        for position, key in enumerate(keys.tolist()):
            if key and key not in self._seen:
                self._seen.add(key)
                fresh.append(position)
        view = memoryview(piece.data)
        lengths = piece.cuts.lengths[fresh]
        frames = self._encoder.encode(
            [
                view[start : start + length]
                for start, length in zip(
                    piece.starts[fresh].tolist(), lengths.tolist(), strict=True
                )
            ]
        )
        self._new.append(keys[fresh])
        self._new_lengths.append(lengths)
        self._encoded += map(len, frames)

    def finish(self, size: int, gzip: int, is_estimate: bool) -> CutLayer:
        keys, lengths = np.concatenate(self._keys), np.concatenate(self._lengths)
        stored = np.concatenate(self._stored)
        files = files_of(keys, lengths, stored)
        is_file = stored > 0
        contents, first = np.unique(files.keys[is_file], return_index=True)
        new = np.concatenate(self._new)
        order = np.argsort(new)
        return CutLayer(
            size,
            int(stored.sum(dtype="u8")),
            self.entries,
            gzip,
            is_estimate,
            new[order],
            np.concatenate(self._new_lengths)[order],
            np.array(self._encoded, "u4")[order],
            contents,
            stored[is_file][first],
            named_files(
                contents,
                {row: (files.keys[row], int(stored[row])) for row in self._names},
                self._names,
            ),
            {manager: total for manager, total in self._caches.items() if total},
        )


def cache_of(path: bytes) -> str | None:
    """The package manager whose cache a path is in."""
    for manager, prefixes in CACHES.items():
        if path.startswith(prefixes):
            return manager
    return None


def named_files(
    contents: npt.NDArray[np.uint64],
    files: dict[int, tuple[np.uint64, int]],
    names: dict[int, bytes],
) -> tuple[tuple[int, str], ...]:
    """[position in `contents`, path] of the largest files; `files` and `names` are by row."""
    rows = sorted(files, key=lambda row: -files[row][1])[:_MAX_NAMED]
    positions = np.searchsorted(contents, np.array([files[row][0] for row in rows], "u8"))
    return tuple(
        (position, names[row].decode("utf-8", "backslashreplace"))
        for position, row in zip(positions.tolist(), rows, strict=True)
    )

"""Stores to test: small images to put in, what a store must give back, what its tables say about space.

    images = sample_images(seed=7)             a base that all share, then one layer each
    archive = write_archive(folder, image)     a docker-archive
    store.load(archive); assert_holds(store, image)

Random content comes from a seed; half of each layer compresses and half does not.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from layerstore.api import open_store
from layerstore.chunking import DEFAULT_PARAMS, cut_spans
from layerstore.digest import digest_of
from layerstore.store.condemned import CondemnedTable
from layerstore.store.layout import BLOCK
from layerstore.store.spacemap import chunk_blocks, unowned_extents
from tests.support.archive_builders import Image, docker_archive_of, layer_tar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    import numpy.typing as npt

    from layerstore.api import LayerStore
    from layerstore.store.chunkfile import Extent
    from layerstore.store.session import WriteSession
    from layerstore.store.store import Store

__all__ = [
    "Loading",
    "assert_clean",
    "assert_holds",
    "assert_tight",
    "free_extents",
    "indexed_bytes",
    "load_and_tell",
    "payload",
    "put_file",
    "reserved_sessions",
    "sample_images",
    "write_archive",
]


def payload(seed: int, size: int) -> bytes:
    """Half words, which compress, and half noise, which does not."""
    rng = random.Random(seed)
    words = b"".join(b"%x layer of words\n" % rng.getrandbits(20) for _ in range(size // 40 + 1))
    return words[: size // 2] + rng.randbytes(size - size // 2)


def sample_images(
    seed: int, count: int = 3, layer_size: int = 1 << 20, layers: int = 2
) -> list[Image]:
    """Images `test/<seed>:<n>`: the first layer is shared by all, the others are each image's own."""
    base = _layer(seed * 1000, layer_size)
    images = []
    for number in range(count):
        own = [_layer(seed * 1000 + number * 16 + i + 1, layer_size) for i in range(layers - 1)]
        images.append(Image.of([base, *own], f"test/{seed}:{number}"))
    return images


def _layer(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    small = {f"etc/{i}.conf": payload(seed + i, rng.randrange(1, 2000)) for i in range(20)}
    return layer_tar({f"usr/lib/{seed}.so": payload(seed, size), **small, "empty": b""})


def write_archive(folder: Path, image: Image) -> Path:
    """The image as a docker-archive in a folder, named after its first tag."""
    path = folder / (image.tags[0].replace("/", "_").replace(":", "_") + ".tar")
    path.write_bytes(docker_archive_of([image]))
    return path


def assert_holds(store: LayerStore, image: Image) -> None:
    """The image is there under its names, and every byte of it comes out."""
    for tag in image.tags:
        details = store.inspect(tag)
        assert details.summary.id == digest_of(image.config)
        assert b"".join(store.iter_blob(details.summary.id)) == image.config
        assert [layer.diff_id for layer in details.layers] == [digest_of(x) for x in image.layers]
        for layer in image.layers:
            assert b"".join(store.iter_layer(digest_of(layer))) == layer


def assert_clean(store: LayerStore) -> None:
    """Verify finds nothing, and no space is lost to sessions that are gone."""
    damages = store.verify().damages
    assert damages == (), damages
    assert reserved_sessions(store.store) == []
    extents = free_extents(store.store)
    assert extents == sorted(extents)
    for before, after in pairwise(extents):
        assert before.end < after.start, "free extents are joined, and never overlap"


def assert_tight(store: LayerStore) -> None:
    """After a prune: every block of the chunk file that is on disk is touched by a chunk, and none is nobody's."""
    with store.store.read() as txn:
        assert unowned_extents(store.store, txn) == []
        assert len(CondemnedTable(store.store.database).numbers(txn)) == 0
        blocks = chunk_blocks(store.store, txn)
    assert store.store.chunkfile.allocated_bytes() <= blocks * BLOCK
    assert_clean(store)


def put_file(session: WriteSession, data: bytes) -> npt.NDArray[np.uint64]:
    """Put bytes into a session as the contents of one file; returns numbers or promises."""
    cuts = cut_spans(data, [(0, len(data))], False, DEFAULT_PARAMS)
    starts = np.cumsum(cuts.lengths, dtype="i8") - cuts.lengths.astype("i8")
    return session.put_chunks(data, cuts.lengths, cuts.ids, starts)


def free_extents(store: Store) -> list[Extent]:
    """The free list."""
    with store.read() as txn:
        return list(store.chunkfile.free_extents(txn))


def reserved_sessions(store: Store) -> list[dict[str, list[list[int]]]]:
    """The records of sessions that hold extents."""
    with store.read() as txn:
        return [json.loads(value) for _, value in store.database.items(txn, "sessions")]


def indexed_bytes(store: Store) -> int:
    """Encoded bytes of all chunks that have a number."""
    with store.read() as txn:
        return sum(int(run["encoded"].sum(dtype="u8")) for _, run in store.index.runs(txn))


@dataclass(frozen=True, slots=True)
class Loading:
    """What a child process is to load, in order."""

    root: str
    archives: tuple[str, ...]


def load_and_tell(work: Loading, told: Connection) -> None:
    """In a child process: load archives, and tell (number, seconds) of each that was acknowledged; first, -1."""
    started = time.monotonic()
    told.send((-1, 0.0))
    with open_store(work.root) as store:
        for number, archive in enumerate(work.archives):
            store.load(archive)
            told.send((number, time.monotonic() - started))

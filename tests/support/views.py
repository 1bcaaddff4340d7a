"""An image of two layers with one entry of each kind, and views of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerstore.merge import merge
from layerstore.view import View, open_view
from tests.support.layers import put
from tests.support.tars import END, entry, noise, old_sparse, pax
from tests.support.trees import Item, layer_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from layerstore.store.store import Store

LARGE = noise(700_000, 1) + bytes(300_000) + b"words " * 100_000
SPARSE = [(5000, noise(4000, 2)), (600_000, noise(9000, 3))]
SPARSE_SIZE = 1 << 20
BASE = b"".join(
    (
        entry(b"./", typeflag=b"5", mode=0o755),
        entry(b"etc/", typeflag=b"5", mode=0o755, mtime=77),
        entry(b"etc/hosts", b"127.0.0.1 localhost\n", uid=7, gid=8, mode=0o640),
        entry(b"etc/gone", b"x"),
        entry(b"large", LARGE),
        old_sparse(b"sparse", SPARSE, SPARSE_SIZE),
        entry(b"empty"),
        entry(b"hard", typeflag=b"1", link=b"large"),
        entry(b"dev/null", typeflag=b"3", device=(1, 3)),
        entry(b"run/pipe", typeflag=b"6"),
        entry(b"caf\xe9", b"latin"),
        END,
    )
)
TOP = b"".join(
    (
        entry(b"etc/.wh.gone"),
        entry(b"bin", typeflag=b"2", link=b"usr/bin"),
        entry(b"usr/bin/sh", b"#!"),
        entry(b"etc/escape", typeflag=b"2", link=b"../../../../etc/hosts"),
        entry(b"etc/absolute", typeflag=b"2", link=b"/etc/hosts"),
        entry(b"etc/loop", typeflag=b"2", link=b"loop2"),
        entry(b"etc/loop2", typeflag=b"2", link=b"loop"),
        entry(b"etc/dangling", typeflag=b"2", link=b"nothing"),
        entry(b"etc/up", typeflag=b"2", link=b".."),
        pax([(b"SCHILY.xattr.user.note", b"a=b\n"), (b"mtime", b"-1.25")]) + entry(b"note", b"n"),
        END,
    )
)


def view_of(store: Store, *tars: bytes) -> View:
    """Layers that are stored, bottom first, as a view."""
    return open_view(store, [put(store, tar).diff_id for tar in tars])


def tree_view(*items: Item) -> View:
    """A view for what needs no contents."""
    return View(merge([layer_of(*items)]), NoContents())


class NoContents:
    """The contents of an image that has none."""

    def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes]:
        assert not len(numbers)
        return []


def sparse_bytes() -> bytes:
    """What `sparse` in `BASE` holds."""
    data = bytearray(SPARSE_SIZE)
    for offset, part in SPARSE:
        data[offset : offset + len(part)] = part
    return bytes(data)

"""The export of a view: one tar that other readers understand, and that makes the same tree again."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import CorruptStore, Unsupported
from layerstore.merge import merge
from layerstore.rootfstar import export_tar
from layerstore.store.store import Store
from layerstore.tree import Kind
from layerstore.view import View, layer_tree
from tests.support.layers import put
from tests.support.tars import as_tarfile_says
from tests.support.trees import device, directory, file, hardlink, layer_of, shown, symlink
from tests.support.views import (
    BASE,
    LARGE,
    TOP,
    NoContents,
    sparse_bytes,
    tree_view,
    view_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("rootfstar") / "store", create=True) as store:
        yield store


@pytest.fixture(scope="module")
def view(store: Store) -> View:
    return view_of(store, BASE, TOP)


def test_an_export_is_the_same_image_again(store: Store, view: View) -> None:
    tar = b"".join(export_tar(view))
    assert len(tar) % 512 == 0
    again = view_of(store, tar)
    assert _without_extents(again) == _without_extents(view)
    for path, inode in view.tree.walk():
        if view.tree.kind(inode) is Kind.FILE:
            assert again.read_bytes(path) == view.read_bytes(path)
    assert b"".join(export_tar(again)) == tar


def _without_extents(view: View) -> dict[bytes, object]:
    return {path: is_._replace(extents=()) for path, is_ in shown(view.tree).items()}


def test_an_export_is_what_other_tar_readers_see(view: View) -> None:
    said = {seen.path: (seen, data) for seen, data in as_tarfile_says(b"".join(export_tar(view)))}
    assert said[b"hard"][1] == LARGE, "the first name in order has the content"
    assert said[b"large"][0].link == b"hard"
    assert said[b"sparse"][1] == sparse_bytes()
    note = said[b"note"][0]
    assert (note.mtime, note.nsec) == (-2, 750_000_000)
    assert note.xattrs == {b"user.note": b"a=b\n"}
    assert said[b"dev/null"][0].device == (1, 3)


def test_an_export_says_what_ustar_cannot(store: Store) -> None:
    items = [
        directory(b"d" * 200),
        file(b"d" * 200 + b"/" + b"f" * 250, owner=(2**32 - 2, 3_000_000), mtime=(1 << 40, 5)),
        symlink(b"l", b"t" * 4000),
        device(b"disk", 259, 70_000, Kind.BLOCK),
        device(b"huge", 2**32 - 1, 2**32 - 1),
        hardlink(b"z", b"d" * 200 + b"/" + b"f" * 250),
        file(b"late", mtime=(-(1 << 40), 999_999_999)),
        file(b"x", xattrs={b"user.n" + bytes([65 + n]): b"v" * n for n in range(20)}),
    ]
    tree = merge([layer_of(*items)])
    tar = b"".join(export_tar(View(tree, NoContents())))
    assert shown(merge([layer_tree(store, put(store, tar).diff_id)])) == shown(tree)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert len(archive.getmembers()) == len(tree.names) + 1


def test_an_export_refuses_what_pax_cannot_say() -> None:
    view = tree_view(file(b"x", xattrs={b"user.a=b": b"1"}))
    with pytest.raises(Unsupported, match="x"):
        b"".join(export_tar(view))


def test_pax_records_of_every_length_count_themselves(store: Store) -> None:
    items = [
        file(b"f%d" % n, xattrs={b"user.x": b"v" * n}) for n in (*range(70, 100), *range(960, 1000))
    ]
    tree = merge([layer_of(*items)])
    tar = b"".join(export_tar(View(tree, NoContents())))
    assert shown(merge([layer_tree(store, put(store, tar).diff_id)])) == shown(tree)


def test_deep_trees_are_no_recursion() -> None:
    deep = b"/".join([b"d"] * 2000)
    tar = b"".join(export_tar(tree_view(directory(deep))))
    assert as_tarfile_says(tar)[-1][0].path.strip(b"/") == deep


def test_an_export_never_ends_well_over_a_chunk_of_the_wrong_length() -> None:
    class Short:
        def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes]:
            return [b"abc" for _ in numbers]

    blocks = export_tar(View(merge([layer_of(file(b"a", (1, 5)))]), Short()))
    with pytest.raises(CorruptStore):
        b"".join(blocks)

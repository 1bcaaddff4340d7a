"""Reading an image gives the tree that was written, whatever the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.errors import CorruptStore
from layerstore.formats.erofs import read_image, write_image, write_metadata_image
from layerstore.formats.erofs.ondisk import BLOCK, CHECKSUM_SEED, crc32c
from layerstore.merge import merge
from layerstore.tree import Kind
from tests.support.erofs_images import DEVICE_BYTES, UUID, joined_holes, shown_by, spans_of
from tests.support.trees import item, layer_of, shown

if TYPE_CHECKING:
    from layerstore.tree import Tree
    from tests.support.trees import Item

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"..a", b".-", b"-", b"!", b".x", b"~", b"\xff"]),
    st.binary(min_size=1, max_size=255)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda name: name not in (b".", b"..")),
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
EXTENTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1, 7, 4096, 100_000, 1_044_480])), max_size=6
).map(tuple)
XATTRS = st.dictionaries(
    st.tuples(
        st.sampled_from([b"user.", b"trusted.", b"security.", b"trusted.overlay."]),
        st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"\0", b"0")),
    ).map(b"".join),
    st.one_of(st.binary(max_size=30), st.integers(0, 5000).map(bytes)),
    max_size=3,
)
KINDS = st.sampled_from(
    [Kind.FILE] * 3
    + [Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK, Kind.CHARACTER, Kind.BLOCK, Kind.FIFO]
)


@st.composite
def rows(draw: st.DrawFn) -> Item:
    kind = draw(KINDS)
    link = b""
    if kind is Kind.HARDLINK:
        link = draw(PATHS)
    elif kind is Kind.SYMLINK:
        link = draw(st.binary(min_size=1, max_size=20)) * draw(st.sampled_from([1, 50, 204]))
    special = kind in (Kind.CHARACTER, Kind.BLOCK)
    return item(
        kind,
        draw(PATHS),
        draw(EXTENTS) if kind is Kind.FILE else (),
        mode=draw(st.integers(0, 0o7777)),
        owner=draw(st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2))),
        mtime=draw(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1))),
        device=draw(st.tuples(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF)))
        if special
        else (0, 0),
        link=link,
        xattrs=draw(XATTRS),
    )


TREES = st.lists(rows(), max_size=30).map(lambda found: merge([layer_of(*found)]))


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_what_was_written_is_read(tree: Tree) -> None:
    image = read_image(write_image(tree, spans_of(tree), DEVICE_BYTES, UUID))
    expected = joined_holes(shown(tree))
    assert shown_by(image) == {
        path: one if one.kind in (Kind.FILE, Kind.SYMLINK) else one._replace(size=0)
        for path, one in expected.items()
    }
    numbers = dict(tree.walk())
    for path, node in image.walk():
        assert node.nlink == tree.inodes["nlink"][numbers[path]]


@settings(max_examples=40, deadline=None)
@given(TREES)
def test_metadata_keeps_names_sizes_and_attributes(tree: Tree) -> None:
    files = (tree.inodes["kind"] == Kind.FILE) & (tree.inodes["size"] > 0)
    names = [b"%064x" % inode if is_file else None for inode, is_file in enumerate(files.tolist())]
    nodes = dict(read_image(write_metadata_image(tree, names, UUID)).walk())
    numbers = dict(tree.walk())
    assert nodes.keys() == numbers.keys()
    for path, node in nodes.items():
        name = names[numbers[path]]
        redirect = node.xattrs.get(b"trusted.overlay.redirect")
        assert redirect == (b"/" + name[:2] + b"/" + name[2:] if name else None)
        assert (b"trusted.overlay.metacopy" in node.xattrs) == (name is not None)
        if tree.kind(numbers[path]) is Kind.FILE:
            assert node.size == tree.inodes["size"][numbers[path]]
        plain = {
            b"trusted." + key.removeprefix(b"trusted.overlay.")
            if key.startswith(b"trusted.overlay.overlay.")
            else key: value
            for key, value in node.xattrs.items()
            if key not in (b"trusted.overlay.redirect", b"trusted.overlay.metacopy")
        }
        own = tree.xattrs_of(numbers[path])
        assert own.items() <= plain.items()


@settings(max_examples=150, deadline=None)
@given(
    TREES,
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_image_is_read_or_refused(tree: Tree, damage: list[tuple[int, int]]) -> None:
    data = bytearray(write_image(tree, spans_of(tree), DEVICE_BYTES, UUID))
    for at, value in damage:
        data[1032 + at % (len(data) - 1032)] = value
    data[1028:1032] = crc32c(bytes(data[1032:BLOCK]), CHECKSUM_SEED).to_bytes(4, "little")
    try:
        image = read_image(bytes(data))
    except CorruptStore:
        return
    assert sum(1 for _ in image.walk()) <= len(data)

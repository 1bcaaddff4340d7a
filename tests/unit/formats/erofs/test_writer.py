"""What the three writers put into an image, as the reader finds it."""

from __future__ import annotations

import numpy as np
import pytest

from layerstore.errors import CorruptStore, InvalidArgument
from layerstore.formats.erofs import (
    SPAN,
    DataFiles,
    content_path,
    place_extents,
    read_image,
    write_data_image,
    write_image,
    write_metadata_image,
)
from layerstore.formats.erofs.ondisk import BLOCK, Feature, Layout
from layerstore.tree import HOLE, Kind, Tree
from tests.support.erofs_images import (
    DEVICE_BYTES,
    UUID,
    encoded_length,
    joined_holes,
    shown_by,
    spans_of,
    tree_of,
)
from tests.support.trees import (
    Item,
    device,
    directory,
    fifo,
    file,
    hardlink,
    item,
    shown,
    symlink,
)

GIB = 1 << 30


def direct(tree: Tree) -> bytes:
    return write_image(tree, spans_of(tree), DEVICE_BYTES, UUID)


def assert_kept(*items: Item) -> bytes:
    tree = tree_of(*items)
    data = direct(tree)
    assert shown_by(read_image(data)) == joined_holes(shown(tree))
    return data


def data_files(*counts: int) -> DataFiles:
    names = [b"%064x" % (0xAB << 248 | number * 7919 % 1000) for number in range(len(counts))]
    spans = [(number << 21, 100, 300) for number in range(sum(counts))]
    return DataFiles(names, np.array(counts), np.array(spans, SPAN))


def test_every_kind_comes_back() -> None:
    assert_kept(
        directory(b"d", 0o1777, owner=(3, 1 << 31 | 5), mtime=(-86_400, 999_999_999)),
        file(b"d/f", (7, 5000), (8, 70), mode=0o4755, owner=(0xFFFFFFFE, 1), mtime=(2**40, 1)),
        hardlink(b"hard", b"d/f"),
        symlink(b"link", b"d/f"),
        device(b"tty", 5, 300),
        device(b"disk", 0xFFF, 0xFFFFF, Kind.BLOCK),
        fifo(b"pipe"),
        file(b"empty"),
    )


def test_no_entries_is_an_image_of_a_root() -> None:
    image = read_image(assert_kept())
    assert image.device_bytes == DEVICE_BYTES
    assert Feature.COMPRESSION_SETTINGS not in image.features


def test_names_around_the_dots_are_in_byte_order() -> None:
    names = [
        b"!",
        b"-",
        b"--",
        b".!",
        b".-a",
        b"...",
        b"..!",
        b"..a",
        b".a",
        b"/"[:0] + b"0",
        b"~",
        b"\xff" * 255,
    ]
    assert_kept(*(file(name, (1, 9)) for name in names), directory(b"..d"), file(b"..d/-", (3, 9)))


@pytest.mark.parametrize("length", [1, 200, 255])
def test_directories_of_many_blocks(length: int) -> None:
    names = [b"%0*d" % (length, number) for number in range(10 if length == 1 else 1500)]
    data = assert_kept(directory(b"many"), *(file(b"many/" + name) for name in names))
    assert len(data) < (len(names) + 40) * (length + 12 + 64) * 1.2 + 3 * BLOCK


def test_30_000_names_in_a_directory() -> None:
    tree = tree_of(*(file(b"name-%06d" % number) for number in range(30_000)))
    assert len(read_image(direct(tree)).nodes) == 30_001


@pytest.mark.parametrize("length", [1, 59, 2047, 3900, 4032, 4033, 4095, 4096])
def test_links_of_any_length(length: int) -> None:
    assert_kept(*(symlink(name, name * length) for name in (b"a", b"b", b"c", b"d", b"e")))


@pytest.mark.parametrize("size", [4 * GIB - 1, 4 * GIB, 9000 * GIB])
def test_offsets_beyond_4_gib(size: int) -> None:
    rest, holes = size - 1000, []
    while rest:
        holes.append((HOLE, min(rest, 1 << 31)))
        rest -= holes[-1][1]
    assert_kept(file(b"big", (1, 400), *holes, (2, 600)), file(b"hole", *holes), file(b"z", (3, 9)))


def test_runs_of_zeros_are_one_record() -> None:
    tree = tree_of(
        file(b"f", (HOLE, 9), (HOLE, 9), (1, 9), (HOLE, 9), (2, 9), (HOLE, 8), (HOLE, 9))
    )
    node = dict(read_image(direct(tree)).walk())[b"f"]
    assert [(one.length, one.address is None) for one in node.extents] == [
        (18, True), (9, False), (9, True), (9, False), (17, True),
    ]  # fmt: skip


def test_a_file_of_zeros_has_no_map() -> None:
    node = dict(read_image(assert_kept(file(b"zeros", (HOLE, 1 << 20)))).walk())[b"zeros"]
    assert (node.layout, node.extents, node.size) == (Layout.CHUNKS, [], 1 << 20)


def test_attributes_come_back() -> None:
    common = {b"user.a": b"1", b"security.selinux": b"system_u:object_r:etc_t:s0\0"}
    acl = {b"system.posix_acl_access": b"\2\0\0\0" + bytes(range(24))}
    assert_kept(
        file(b"a", (1, 9), xattrs=common),
        file(b"b", (2, 9), xattrs=common | acl),
        directory(b"d", xattrs=acl | {b"system.posix_acl_default": b"\2\0\0\0"}),
        file(b"long", xattrs={b"trusted." + b"n" * 247: b"v" * 65_535, b"user.empty": b""}),
        file(
            b"many", (3, 9), xattrs={b"user.%d" % number: b"%d" % number for number in range(900)}
        ),
        item(Kind.SYMLINK, b"l", link=b"t" * 3000, xattrs={b"trusted.x": b"y" * 900}),
    )


def test_attributes_that_linux_cannot_show_are_left_out() -> None:
    odd = {b"system.nfs4_acl": b"1", b"novalue": b"", b"user.": b"1", b"user.big": b"v" * 65_536}
    nodes = dict(read_image(direct(tree_of(file(b"f", xattrs=odd | {b"user.ok": b"1"})))).walk())
    assert nodes[b"f"].xattrs == {b"user.ok": b"1"}
    nodes = dict(read_image(direct(tree_of(file(b"f", xattrs=odd)))).walk())
    assert nodes[b"f"].xattrs == {}


def test_what_is_behind_an_inode_does_not_cross_a_block() -> None:
    items = []
    for number in range(300):
        items += [file(b"f%d" % number, (1, 9)), symlink(b"s%d" % number, b"t" * (number * 13 + 1))]
        items += [directory(b"d%d" % number), file(b"d%d/" % number + b"n" * (number % 255 + 1))]
    assert_kept(*items)  # the reader refuses what crosses


def test_large_device_numbers_are_as_mknod_makes_them() -> None:
    nodes = dict(read_image(direct(tree_of(device(b"d", 0x1005, 0x100003)))).walk())
    assert nodes[b"d"].device == (5, 3)


def test_equal_arguments_give_equal_bytes() -> None:
    items = [file(b"a", (1, 9), xattrs={b"user.x": b"1", b"user.a": b"2"}), symlink(b"l", b"a")]
    other = [file(b"a", (1, 9), xattrs={b"user.a": b"2", b"user.x": b"1"}), symlink(b"l", b"a")]
    assert direct(tree_of(*items)) == direct(tree_of(*other))


@pytest.mark.parametrize(
    ("span", "problem"),
    [
        ((0, (1 << 20) + 1, 9), "no frame"),
        ((0, 9, (1 << 20) + 1), "no frame"),
        ((DEVICE_BYTES - 8, 9, 9), "no frame"),
        (((1 << 64) - 1, 9, 9), "no frame"),
        ((0, 9, 8), "do not add up"),
    ],
)
def test_places_that_linux_does_not_read_are_refused(
    span: tuple[int, int, int], problem: str
) -> None:
    tree = tree_of(file(b"f", (1, 9)))
    if span[2] > 9:
        tree.inodes["size"][1] = span[2]
    with pytest.raises(CorruptStore, match=problem):
        write_image(tree, np.array([span], SPAN), DEVICE_BYTES, UUID)


def test_a_chunk_of_another_length_is_refused() -> None:
    tree = tree_of(file(b"f", (1, 9)))
    with pytest.raises(CorruptStore, match="length"):
        place_extents(tree.extents, np.array([(0, 5, 8)], SPAN))


def test_metadata_redirects_files_and_nothing_else() -> None:
    tree = tree_of(
        file(b"a", (1, 9), xattrs={b"user.x": b"1"}),
        file(b"b", (1, 9)),
        file(b"empty", xattrs={b"user.x": b"1"}),
        file(b"zeros", (HOLE, 5000)),
        hardlink(b"c", b"a"),
        directory(b"d", xattrs={b"user.x": b"1"}),
    )
    names: list[bytes | None] = [None] * len(tree)
    names[tree.lookup(b"a")] = b"ab" * 32
    names[tree.lookup(b"b")] = b"cd" * 32
    data = write_metadata_image(tree, names, UUID)
    image = read_image(data)
    nodes = dict(image.walk())
    mark = b"trusted.overlay.metacopy"
    redirect = b"trusted.overlay.redirect"
    path = b"/ab/" + b"ab" * 31
    assert nodes[b"a"].xattrs == {b"user.x": b"1", mark: b"", redirect: path}
    assert nodes[b"b"].xattrs == {mark: b"", redirect: b"/cd/" + b"cd" * 31}
    assert nodes[b"c"].nid == nodes[b"a"].nid
    assert nodes[b"empty"].xattrs == nodes[b"d"].xattrs == {b"user.x": b"1"}
    assert nodes[b"zeros"].xattrs == {}
    assert {node.layout for node in nodes.values() if node.kind is Kind.FILE and node.size} == {
        Layout.CHUNKS
    }
    assert (image.device_bytes, content_path(b"ab" * 32)) == (0, path)


def test_metadata_needs_no_contents() -> None:
    tree = tree_of(symlink(b"l", b"t"))
    assert shown_by(read_image(write_metadata_image(tree, [None] * 2, UUID))) == shown(tree)


def test_overlay_attributes_of_the_image_are_escaped() -> None:
    own = {
        b"trusted.overlay.opaque": b"y",
        b"trusted.overlay.overlay.x": b"",
        b"user.overlay.o": b"1",
    }
    tree = tree_of(directory(b"d", xattrs=own), file(b"f", (1, 9), xattrs=own))
    nodes = dict(read_image(write_metadata_image(tree, [None, None, b"00" * 32], UUID)).walk())
    escaped = {
        b"trusted.overlay.overlay.opaque": b"y",
        b"trusted.overlay.overlay.overlay.x": b"",
        b"user.overlay.o": b"1",
    }
    assert nodes[b"d"].xattrs == escaped
    added = {b"trusted.overlay.metacopy", b"trusted.overlay.redirect"}
    assert {k: v for k, v in nodes[b"f"].xattrs.items() if k not in added} == escaped


def test_a_device_that_overlayfs_would_hide_is_a_whiteout_for_one_inside() -> None:
    tree = tree_of(
        directory(b"d", xattrs={b"user.x": b"1"}),
        device(b"d/gone", 0x1000, 0x100000),
        device(b"null", 1, 0),
    )
    nodes = dict(read_image(write_metadata_image(tree, [None] * len(tree), UUID)).walk())
    assert (nodes[b"d/gone"].kind, nodes[b"d/gone"].size) == (Kind.FILE, 0)
    assert nodes[b"d/gone"].xattrs == {b"trusted.overlay.overlay.whiteout": b""}
    assert nodes[b"d"].xattrs == {b"trusted.overlay.overlay.opaque": b"x", b"user.x": b"1"}
    assert nodes[b"null"].device == (1, 0)
    assert nodes[b""].xattrs == {}


def test_content_names_must_fit() -> None:
    tree = tree_of(file(b"a", (1, 9)), file(b"b", (1, 9)))
    with pytest.raises(InvalidArgument, match="2 content names for 3"):
        write_metadata_image(tree, [None, None], UUID)
    with pytest.raises(InvalidArgument, match="several lengths"):
        write_metadata_image(tree, [None, b"aabb", b"aabbcc"], UUID)


def test_a_data_image_has_every_content_once() -> None:
    files = data_files(1, 3, 2)
    image = read_image(write_data_image(files, DEVICE_BYTES, UUID))
    found = {b"/" + path: node for path, node in image.walk() if node.kind is Kind.FILE}
    assert sorted(found) == sorted(map(content_path, files.names))
    first = 0
    for name, count in zip(files.names, files.counts.tolist(), strict=True):
        node = found[content_path(name)]
        assert [one.address for one in node.extents] == [
            n << 21 for n in range(first, first + count)
        ]
        assert (node.size, node.mode, node.nlink) == (300 * count, 0o400, 1)
        first += count
    assert image.nodes[image.root].nlink == 3


def test_inodes_of_a_data_image_stand_in_the_order_given() -> None:
    files = data_files(1, 3, 2, 4)
    backwards = DataFiles(files.names[::-1], files.counts[::-1], files.spans[::-1].copy())
    for given in (files, backwards):
        image = read_image(write_data_image(given, DEVICE_BYTES, UUID))
        places = {id(node): place for place, node in image.nodes.items()}
        found = {b"/" + path: places[id(node)] for path, node in image.walk()}
        numbers = [found[content_path(name)] for name in given.names]
        assert numbers == sorted(numbers)


def test_a_data_image_may_be_empty() -> None:
    none = DataFiles([], np.empty(0, "i8"), np.empty(0, SPAN))
    assert len(read_image(write_data_image(none, DEVICE_BYTES, UUID)).nodes) == 1


def test_contents_of_equal_names_are_refused() -> None:
    files = data_files(1, 1)
    with pytest.raises(InvalidArgument, match="equal"):
        write_data_image(
            DataFiles([files.names[0]] * 2, files.counts, files.spans), DEVICE_BYTES, UUID
        )


def test_frames_that_grew_are_marked_partial() -> None:
    tree = tree_of(file(b"f", (1, 100), (2, 100)))
    node = dict(read_image(direct(tree)).walk())[b"f"]
    assert [(one.encoded, one.partial) for one in node.extents] == [
        (encoded_length(1, 100), False),
        (encoded_length(2, 100), True),
    ]

"""Linux reads our images: every byte and attribute of a hostile layer, through a direct mount and through overlayfs.

The expected tree is Python's `tarfile` and the bytes that went in; the store in between is real, on a real filesystem.
"""

from __future__ import annotations

# ruff: noqa: PTH116, PTH118, PTH208
# Names are bytes, which a Path cannot hold.
import errno
import hashlib
import os
import re
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.errors import CorruptStore
from layerstore.formats.erofs import write_metadata_image
from layerstore.mount.linux import create_mount, unmount
from layerstore.mount.probe import probe_erofs
from layerstore.tree import HOLE, Kind
from tests.support.archive_builders import Image, docker_archive_of
from tests.support.erofs_images import UUID, tree_of
from tests.support.erofs_mount import (
    mounted,
    mounted_direct,
    mounted_overlay,
    seen_by,
    tree_in,
    written,
)
from tests.support.lacking import lacking
from tests.support.tars import END, entry, noise, pax, pax_sparse
from tests.support.trees import file, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.tree import Tree
    from tests.support.erofs_mount import Seen, Written

pytestmark = [pytest.mark.root]

WORDS = b" ".join(b"%d layers" % number for number in range(200_000))
FAR = 5 << 30
ACL = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 1, 6, 0xFFFFFFFF, 2, 4, 1000, 4, 4, 0xFFFFFFFF, 0x10, 4, 0xFFFFFFFF, 0x20, 4, 0xFFFFFFFF),
)  # rw-r--r-- and user 1000: r--
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")

CONTENTS = {
    b"empty": b"",
    b"one": b"x",
    b"block": WORDS[:4096],
    b"block-1": WORDS[:4095],
    b"block+1": WORDS[:4097],
    b"words": WORDS[:1_500_001],
    b"noise": noise(1_500_001, 1),
    b"noise again": b"shift" + noise(1_500_001, 1)[200_000:1_400_000],
    b"zeros": bytes(3 << 20),
    b"zeros inside": noise(300_000, 2) + bytes(14 << 20) + noise(300_000, 3) + bytes(300_000),
    b"repeated": noise(70_000, 4) * 20,
    b"module.pyc": noise(12, 5) + WORDS[:90_000],
    b"\xff\xfe not text": b"name",
    b"n" * 255: b"longest",
}


def with_xattrs(xattrs: dict[bytes, bytes], then: bytes) -> bytes:
    return pax([(b"SCHILY.xattr." + name, value) for name, value in xattrs.items()]) + then


def hostile_layer() -> bytes:
    many = {b"user.%03d" % number: b"v" * number for number in range(120)}
    own = {b"trusted.overlay.redirect": b"/elsewhere", b"trusted.overlay.opaque": b"y"}
    members = [
        entry(b"./", typeflag=b"5", mode=0o711, uid=7, gid=8),
        *(pax([(b"path", name)]) + entry(b"-", data) for name, data in CONTENTS.items()),
        *(entry(b"small/%04d" % number, WORDS[number : number * 21]) for number in range(1, 400)),
        *(entry(b"names/" + b"%0*d" % (length, length), b"n") for length in range(1, 256)),
        *(entry(b"dots/" + name) for name in (b"!", b"-", b".-", b"..-", b"..a", b"...", b"a", b"~")),
        *(entry(b"many/a rather long name %05d" % number) for number in range(4000)),
        *(entry(b"l%d" % size, typeflag=b"2", link=b"t" * size) for size in (1, 59, 100)),
        *(pax([(b"linkpath", b"t" * size)]) + entry(b"l%d" % size, typeflag=b"2") for size in (2000, 3900, 4095)),
        entry(b"hard/link", typeflag=b"1", link=b"words"),
        entry(b"hard/other", typeflag=b"1", link=b"words"),
        entry(b"hard/zeros", typeflag=b"1", link=b"zeros"),
        entry(b"tty", typeflag=b"3", device=(5, 300), mode=0o620),
        entry(b"disk", typeflag=b"4", device=(0xFFF, 0xFFFFF)),
        entry(b"fifo", typeflag=b"6"),
        entry(b"setuid", b"#!", mode=0o4755),
        entry(b"sticky/", typeflag=b"5", mode=0o1777),
        entry(b"owner", b"1", uid=(1 << 31) + 5, gid=(1 << 32) - 2),
        entry(b"before 1970", b"1", mtime=-1),
        pax([(b"mtime", b"-86400.000000001")]) + entry(b"long before", b"1"),
        pax([(b"mtime", b"1234567890.123456789")]) + entry(b"nanoseconds", b"1"),
        pax([(b"mtime", b"99999999999.5")]) + entry(b"after 2446", b"1"),
        with_xattrs({b"user.a": b"1", b"trusted.b": b"\0\1"}, entry(b"x1", b"1")),
        with_xattrs({b"user.a": b"1", b"user.long": noise(5000, 6)}, entry(b"x2", b"2")),
        with_xattrs({b"user.huge": noise(60_000, 7)}, entry(b"x3", b"3")),
        with_xattrs(many, entry(b"x4", b"4")),
        with_xattrs(many, entry(b"x5/", typeflag=b"5")),
        with_xattrs({b"trusted.l": b"v" * 3000}, entry(b"x6", typeflag=b"2", link=b"t" * 100)),
        with_xattrs({b"security.capability": CAPABILITY}, entry(b"ping", b"elf", mode=0o755)),
        with_xattrs({b"system.posix_acl_access": ACL}, entry(b"acl", b"1", mode=0o644)),
        with_xattrs({b"system.posix_acl_default": ACL}, entry(b"acls/", typeflag=b"5")),
        with_xattrs(own, entry(b"nested/", typeflag=b"5")),
        with_xattrs(own, entry(b"nested/file", b"of an overlay")),
        pax_sparse("1.0", b"sparse", [(100, b"first"), (FAR - 4, b"over 4G"), (FAR + 99, b"end")], FAR + 1000),
    ]  # fmt: skip
    return b"".join(members) + END


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("erofs")
    if problem := probe_erofs(folder):
        lacking(problem)
    return folder


@pytest.fixture(scope="module")
def tree_and_images(folder: Path) -> Iterator[tuple[Tree, Written]]:
    archive = folder / "archive.tar"
    archive.write_bytes(docker_archive_of([Image.of([hostile_layer()], "test/hostile:1")]))
    with open_store(folder / "store") as store:
        store.load(archive)
        tree = tree_in(store, "test/hostile:1")
        assert tree.warnings == ()
        yield tree, written(store, tree, folder)


def assert_shows(seen: dict[bytes, Seen], tree: Tree) -> None:
    expected = shown(tree)
    assert seen.keys() == expected.keys()
    for path, inode in tree.walk():
        there, want = seen[path], expected[path]
        assert there.kind is want.kind, path
        assert (there.mode, there.owner, there.device) == (want.mode, want.owner, want.device), path
        assert there.mtime_ns == want.mtime[0] * 10**9 + want.mtime[1], path
        assert (there.target, there.group) == (want.target, want.group), path
        assert there.xattrs == dict(want.xattrs), path
        if there.kind is Kind.FILE:
            assert there.size == want.size, path
        if there.kind is not Kind.DIRECTORY:
            assert there.nlink == tree.inodes["nlink"][inode], path
    for path, data in CONTENTS.items():
        assert seen[path].content == sampled(data), path
    assert seen[b"hard/other"].content == sampled(CONTENTS[b"words"])
    for number in range(1, 400):
        assert seen[b"small/%04d" % number].content == sampled(WORDS[number : number * 21])


def sampled(data: bytes) -> str:
    """As `erofs_mount` hashes files: the whole, then the last MiB again."""
    return hashlib.sha256(data + data[max(len(data) - (1 << 20), 0) :]).hexdigest()


def assert_sparse(root: Path) -> None:
    with (root / "sparse").open("rb") as file:
        for at, data in (
            (0, bytes(100) + b"first" + bytes(50)),
            (FAR - 20, bytes(16) + b"over 4G" + bytes(9)),
        ):
            file.seek(at)
            assert file.read(len(data)) == data
        file.seek(FAR + 90)
        assert file.read() == bytes(9) + b"end" + bytes(1000 - 102)


def test_direct_image_shows_the_tree(tree_and_images: tuple[Tree, Written], tmp_path: Path) -> None:
    tree, images = tree_and_images
    with mounted_direct(images, tmp_path) as root:
        seen = seen_by(root)
        assert_shows(seen, tree)
        for path, inode in tree.walk():
            assert seen[path].nlink == tree.inodes["nlink"][inode], path
        assert_sparse(root)


def test_overlay_of_two_images_shows_the_tree(
    tree_and_images: tuple[Tree, Written], tmp_path: Path
) -> None:
    tree, images = tree_and_images
    with mounted_overlay(images, tmp_path) as root:
        assert_shows(seen_by(root), tree)
        assert_sparse(root)


def test_reads_by_threads_give_the_bytes(
    tree_and_images: tuple[Tree, Written], tmp_path: Path
) -> None:
    """A chunk that stands many times in a file is asked for in one batch; Linux fails that for plain extents."""
    _, images = tree_and_images
    names = (b"repeated", b"noise", b"noise again", b"words")

    def read(thread: int) -> int:
        found = 0
        for name in names[thread:] + names[:thread]:
            data = CONTENTS[name]
            fd = os.open(os.path.join(os.fsencode(root), name), os.O_RDONLY)
            try:
                for step in range(thread, 400, 4):
                    at = step * 7_919_993 % len(data)
                    found += os.pread(fd, 70_001, at) == data[at : at + 70_001]
                    if step % 20 == 0:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        return found

    with mounted_direct(images, tmp_path) as root, ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(read, range(4))) == 400 * len(names)


def test_large_directories_and_huge_holes(folder: Path, tmp_path: Path) -> None:
    size = 9000 << 30  # two chunks of 8 TiB
    holes = [(HOLE, 1 << 31)] * (size >> 31)
    many = [b"name-%06d" % number for number in range(100_000)]
    tree = tree_of(file(b"hole", *holes), *(file(b"d/" + name) for name in many))
    image = tmp_path / "image"
    image.write_bytes(write_metadata_image(tree, [None] * len(tree), UUID))
    with mounted("erofs", [("source", image), "ro"], tmp_path / "mounted") as root:
        assert sorted(os.listdir(os.fsencode(root / "d"))) == many
        for name in many[::997]:
            assert os.stat(os.path.join(os.fsencode(root), b"d", name)).st_size == 0
        assert not (root / "d" / "name-100000").exists()
        with (root / "hole").open("rb") as opened:
            assert opened.seek(-100, os.SEEK_END) == size - 100
            assert opened.read() == bytes(100)


def test_the_probe_says_why_not(tmp_path: Path) -> None:
    with create_mount("tmpfs", []) as mount:
        mount.attach(tmp_path)
    try:
        assert probe_erofs(tmp_path)
        assert list(tmp_path.iterdir()) == []
    finally:
        unmount(tmp_path)


def test_a_nested_whiteout_is_what_overlayfs_reads_as_one(folder: Path, tmp_path: Path) -> None:
    layer = entry(b"d/gone", typeflag=b"3", device=(0, 0)) + entry(b"d/there", b"1") + END
    archive = tmp_path / "archive.tar"
    archive.write_bytes(docker_archive_of([Image.of([layer], "test/nested:1")]))
    lower = tmp_path / "lower"
    (lower / "d").mkdir(parents=True)
    (lower / "d" / "gone").write_bytes(b"from below")
    (lower / "d" / "below").write_bytes(b"from below")
    with open_store(tmp_path / "store") as store:
        store.load(archive)
        tree = tree_in(store, "test/nested:1")
        images = written(store, tree, tmp_path)
        with mounted_direct(images, tmp_path) as root:
            assert seen_by(root)[b"d/gone"].kind is Kind.CHARACTER
        with mounted_overlay(images, tmp_path) as root:
            seen = seen_by(root)
            assert seen[b"d/gone"].xattrs == {b"trusted.overlay.whiteout": b""}
            assert seen[b"d"].xattrs == {b"trusted.overlay.opaque": b"x"}
            options = [("lowerdir+", root), ("lowerdir+", lower)]
            with mounted("overlay", options, tmp_path / "inside") as inside:
                assert sorted(os.listdir(inside / "d")) == ["below", "there"]
                assert not (inside / "d" / "gone").exists()


def test_damaged_frames_are_refused_by_the_kernel(folder: Path, tmp_path: Path) -> None:
    layer = entry(b"file", WORDS[:100_000]) + END
    archive = tmp_path / "archive.tar"
    archive.write_bytes(docker_archive_of([Image.of([layer], "test/damaged:1")]))
    with open_store(tmp_path / "store") as store:
        store.load(archive)
        images = written(store, tree_in(store, "test/damaged:1"), tmp_path)
        tree = tree_in(store, "test/damaged:1")
        with store.store.read() as txn:
            place = store.store.index.places(txn, tree.extents["number"][:1])[0]
    with images.chunks.open("r+b") as chunks:
        chunks.seek(int(place["address"]) + int(place["encoded"]) // 2)
        octet = chunks.read(1)[0]
        chunks.seek(-1, os.SEEK_CUR)
        chunks.write(bytes([octet ^ 1]))
    with mounted_direct(images, tmp_path) as root:
        with pytest.raises(OSError, match="cleaning") as caught:
            (root / "file").read_bytes()
        assert caught.value.errno == errno.EUCLEAN


def test_a_damaged_image_is_not_mounted(
    tree_and_images: tuple[Tree, Written], tmp_path: Path
) -> None:
    data = bytearray(tree_and_images[1].metadata.read_bytes())
    data[1024 + 48] ^= 1
    image = tmp_path / "image"
    image.write_bytes(data)
    with pytest.raises(CorruptStore, match="EBADMSG"):
        create_mount("erofs", [("source", image), "ro"])


@pytest.mark.skipif(
    shutil.which("fsck.erofs") is None, reason="fsck.erofs 1.9 or newer is in no Debian 12 package"
)
def test_fsck_finds_nothing(tree_and_images: tuple[Tree, Written]) -> None:
    # Version 1.5 knows only the short form of --version.
    said = subprocess.run(["fsck.erofs", "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)\.(\d+)", said.stdout + said.stderr)
    if found is None or (int(found[1]), int(found[2])) < (1, 9):
        pytest.skip(f"{found and found[0]}: a fsck.erofs before 1.9 does not know encoded extents")
    images = tree_and_images[1]
    for image in (images.direct, images.metadata, images.data):
        subprocess.run(["fsck.erofs", f"--device={images.chunks}", image], check=True)

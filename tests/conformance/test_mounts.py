"""All mount drivers show the same: what the Tree says, what the View reads. And they leave nothing behind."""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.digest import DiffID, digest_of
from layerstore.errors import (
    AlreadyExists,
    Busy,
    CorruptStore,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from layerstore.formats.erofs import read_image
from layerstore.formats.erofs.ondisk import Feature
from layerstore.mount import mounter
from layerstore.mount.mounter import (
    DRIVERS,
    MountOptions,
    choose_driver,
    hold_lower,
    list_mounts,
    mount_stack,
    release_lowers,
    umount_target,
)
from layerstore.mount.mountinfo import MountEntry, boot_id, mount_namespace, read_mountinfo
from layerstore.mount.objects import ObjectsDriver
from layerstore.mount.places import Places
from layerstore.mount.sysfs import sysfs_name
from layerstore.store.mountstate import MountRecord, MountTable
from layerstore.store.snapstate import SnapshotTable
from layerstore.tree import Kind
from layerstore.view import open_view
from tests.support.layers import put
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.store.store import Store
    from layerstore.view import View

pytestmark = pytest.mark.root

OVERLAYS = ("erofs", "objects")
WRITABLE = (*OVERLAYS, "checkout")
_TYPES = {
    Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """No mount and no descriptor outlives a test; mounts are taken away even if it failed."""
    descriptors = _descriptors()
    yield
    left = _mounts_below(tmp_path)
    for entry in reversed(left):
        subprocess.run(["umount", "-l", entry.target], check=False, capture_output=True)
    assert left == []
    assert _descriptors() <= descriptors


def _mounts_below(folder: Path) -> list[MountEntry]:
    """The mounts of this test; other tests may run beside it."""
    prefix = f"{os.path.realpath(folder)}/"
    return [entry for entry in read_mountinfo() if entry.target.startswith(prefix)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened.store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def _info(name: str, type_: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.mode = type_, 1_600_000_000, 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def _layer(build: Callable[[tarfile.TarFile], None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        build(tar)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = _info(name, **fields)  # type: ignore[arg-type]  # passed through
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _torture_lower(tar: tarfile.TarFile) -> None:
    _add(tar, "./", type_=tarfile.DIRTYPE, mode=0o751, uid=7, gid=8, mtime=1_500_000_000)
    for name, mode in (("etc", 0o755), ("gone", 0o755), ("opaque", 0o700), ("tmp", 0o1777)):
        _add(tar, name, type_=tarfile.DIRTYPE, mode=mode)
    _add(tar, "etc/motd", b"hello\n", uid=1000, gid=100)
    _add(tar, "etc/empty")
    _add(tar, "gone/file", b"x")
    _add(tar, "opaque/lower", b"x")
    _add(tar, "replaced", b"a file that becomes a folder")
    _add(tar, "big", payload(1, 3 << 20), mode=0o600)
    _add(tar, "zeros", bytes(300_000))
    _add(tar, "holes", payload(2, 50_000) + bytes(400_000) + payload(3, 70_001))
    _add(tar, "suid", b"#!/bin/sh\n", mode=0o6755)
    _add(tar, "hard1", b"three names", mode=0o640)
    _add(tar, "hard2", type_=tarfile.LNKTYPE, linkname="hard1")
    _add(tar, "etc/hard3", type_=tarfile.LNKTYPE, linkname="hard1")
    _add(tar, "link", type_=tarfile.SYMTYPE, linkname="etc/motd", uid=5)
    _add(tar, "dangling", type_=tarfile.SYMTYPE, linkname="/no/such/" + "t" * 200)
    _add(tar, "null", type_=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    _add(tar, "disk", type_=tarfile.BLKTYPE, devmajor=8, devminor=300, mode=0o660)
    _add(tar, "pipe", type_=tarfile.FIFOTYPE)
    _add(tar, "n" * 255, b"long name")
    _add(tar, "sp ace\\,:\nline\u00e9", b"odd name")
    _add(tar, "/".join(["deep"] * 40) + "/leaf", b"deep")
    for number in range(300):
        _add(tar, f"many/{number:04}", b"%d" % number, uid=number, mtime=number)
    records = {"SCHILY.xattr.user.note": "yes", "SCHILY.xattr.trusted.secret": "no"}
    _add(tar, "attributes", b"x", pax_headers=records)
    _add(tar, "ns", b"x", pax_headers={"mtime": "1234567890.123456789"})
    _add(tar, "before", b"x", pax_headers={"mtime": "-100.5"})
    overlay = {"SCHILY.xattr.trusted.overlay.opaque": "y"}
    _add(tar, "nested", type_=tarfile.DIRTYPE, mode=0o755, pax_headers=overlay)
    _add(tar, "nested/inside", b"x")
    folder = {"SCHILY.xattr.user.folder": "yes"}
    _add(tar, "etc/sub", type_=tarfile.DIRTYPE, mode=0o2775, gid=44, pax_headers=folder)


def _torture_upper(tar: tarfile.TarFile) -> None:
    _add(tar, ".wh.gone")
    _add(tar, "opaque", type_=tarfile.DIRTYPE, mode=0o711)
    _add(tar, "opaque/.wh..wh..opq")
    _add(tar, "opaque/upper", b"only this")
    _add(tar, "replaced", type_=tarfile.DIRTYPE, mode=0o755)
    _add(tar, "replaced/inside", b"x")
    _add(tar, "copy of big", payload(1, 3 << 20))


def _torture(store: Store) -> list[DiffID]:
    layers = [_layer(_torture_lower), _layer(_torture_upper)]
    for layer in layers:
        put(store, layer)
    return [DiffID(digest_of(layer)) for layer in layers]


def _simple(store: Store, seed: int = 0, *more: tuple[str, bytes]) -> list[DiffID]:
    def build(tar: tarfile.TarFile) -> None:
        _add(tar, "./", type_=tarfile.DIRTYPE, mode=0o755)
        _add(tar, "folder", type_=tarfile.DIRTYPE, mode=0o755)
        for name in ("a", "b", "c"):
            _add(tar, f"folder/{name}", name.encode() * 3)
        _add(tar, "shared", payload(99, 400_000))
        _add(tar, "own", payload(seed, 200_000))
        for name, data in more:
            _add(tar, name, data, mode=0o755)

    layer = _layer(build)
    put(store, layer)
    return [DiffID(digest_of(layer))]


def _differences(view: View, target: Path) -> list[str]:
    """What is otherwise below `target` than in the view."""
    wrong, seen = list[str](), set[Path]()
    groups: dict[int, set[tuple[int, int]]] = {}
    tree = view.tree
    for path, inode in tree.walk():
        place = target / os.fsdecode(path)
        seen.add(place)
        want, got = view.stat_inode(inode), os.lstat(place)
        for field in (
            "st_mode",
            "st_uid",
            "st_gid",
            "st_mtime_ns",
            "st_rdev",
            "st_size",
            "st_nlink",
        ):
            if field == "st_size" and not stat.S_ISREG(want.st_mode):
                continue
            # overlayfs counts 1 for any directory that it merges, as some filesystems do
            if field == "st_nlink" and stat.S_ISDIR(want.st_mode):
                continue
            if getattr(want, field) != getattr(got, field):
                wrong.append(f"{path!r} {field}: {getattr(want, field)} is {getattr(got, field)}")
        groups.setdefault(inode, set()).add((got.st_dev, got.st_ino))
        kind = tree.kind(inode)
        if kind is Kind.SYMLINK and os.fsencode(place.readlink()) != tree.target_of(inode):
            wrong.append(f"{path!r} target")
        xattrs = {
            os.fsencode(name): os.getxattr(place, name, follow_symlinks=False)
            for name in os.listxattr(place, follow_symlinks=False)
        }
        if xattrs != tree.xattrs_of(inode):
            wrong.append(f"{path!r} attributes: {tree.xattrs_of(inode)} is {xattrs}")
        if kind is Kind.FILE and place.read_bytes() != view.read_inode(inode, 0, want.st_size):
            wrong.append(f"{path!r} content")
    wrong += [f"inode {inode} is {len(ids)}" for inode, ids in groups.items() if len(ids) > 1]
    for folder, folders, names in os.walk(target):
        wrong += [
            f"{name!r} is too much" for name in (*folders, *names) if Path(folder, name) not in seen
        ]
    return wrong


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_shows_the_tree(store: Store, target: Path, driver: str) -> None:
    diff_ids = _torture(store)
    view = open_view(store, diff_ids)
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)) as mount:
        assert mount.info.driver == driver
        assert [one.target for one in list_mounts(store)] == [target]
        assert _differences(view, target) == []
    assert list_mounts(store) == []
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("driver", WRITABLE)
def test_a_writable_mount_starts_as_the_tree(store: Store, target: Path, driver: str) -> None:
    diff_ids = _torture(store)
    with mount_stack(store, diff_ids, target, MountOptions(rw=True, driver=driver)):
        assert _differences(open_view(store, diff_ids), target) == []


@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="no loop devices here")
def test_objects_need_nothing_that_linux_6_6_lacks(
    store: Store, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No EROFS image from a file (6.12), no option for each layer (6.8), no 48-bit feature (6.15)."""
    driver = ObjectsDriver(as_before_6_8=True)
    monkeypatch.setitem(mounter.DRIVERS, "objects", driver)
    diff_ids = _torture(store)
    view = open_view(store, diff_ids)
    places = Places.of(store.layout.root)
    places.make()
    assert driver.probe(store, places, rw=False).ok
    for rw in (False, True):
        with mount_stack(store, diff_ids, target, MountOptions(rw=rw, driver="objects")):
            sources = [entry.source for entry in _mounts_below(target.parent)]
            assert [source.startswith("/dev/loop") for source in sources] == [True, False]
            assert len(_loop_devices(target.parent)) == 1
            assert _differences(view, target) == []
        assert _loop_devices(target.parent) == []
    for path in (store.layout.root / "images").glob("meta-*.erofs"):
        assert Feature.BIG_ADDRESSES not in read_image(path.read_bytes()).features


@pytest.mark.parametrize("driver", [*OVERLAYS, "fuse"])
def test_a_read_only_mount_refuses_writes(store: Store, target: Path, driver: str) -> None:
    diff_ids = _simple(store)
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)):
        for attempt in (
            lambda: (target / "new").write_bytes(b""),
            lambda: (target / "own").write_bytes(b""),
            lambda: (target / "own").unlink(),
            lambda: (target / "own").chmod(0o777),
        ):
            with pytest.raises(OSError, match="Read-only"):
                attempt()


@pytest.mark.parametrize("driver", WRITABLE)
def test_writes_do_what_they_do_elsewhere(store: Store, target: Path, driver: str) -> None:
    script = b"#!/bin/sh\necho ran\n"
    diff_ids = _simple(store, 1, ("script", script))
    with mount_stack(store, diff_ids, target, MountOptions(rw=True, driver=driver)):
        (target / "new").write_bytes(b"new")
        with (target / "own").open("ab") as file:
            file.write(b"more")
        assert (target / "own").read_bytes() == payload(1, 200_000) + b"more"
        (target / "shared").chmod(0o4755)
        os.chown(target / "shared", 12, 34)
        os.setxattr(target / "shared", "user.x", b"y")
        os.utime(target / "shared", ns=(5, 7))
        status = (target / "shared").stat()
        assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (12, 34, 7)
        assert os.getxattr(target / "shared", "user.x") == b"y"
        assert (target / "shared").read_bytes() == payload(99, 400_000)
        os.link(target / "shared", target / "linked")
        assert (target / "linked").samefile(target / "shared")
        (target / "new").rename(target / "newer")
        (target / "folder").rename(target / "moved")
        assert _names(target / "moved") == ["a", "b", "c"]
        assert (target / "moved" / "b").read_bytes() == b"bbb"
        (target / "moved" / "b").unlink()
        assert _names(target / "moved") == ["a", "c"]
        shutil.rmtree(target / "moved")
        (target / "moved").mkdir()
        assert _names(target / "moved") == []
        with (target / "own").open("r+b") as both, mmap.mmap(both.fileno(), 0) as window:
            window[:4] = b"mmap"
        assert (target / "own").read_bytes()[:5] == b"mmap" + payload(1, 200_000)[4:5]
        done = subprocess.run([target / "script"], capture_output=True, check=True)
        assert done.stdout == b"ran\n"
    # The store is as it was.
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)):
        assert _differences(open_view(store, diff_ids), target) == []


@pytest.mark.parametrize("driver", OVERLAYS)
def test_changes_stay_in_the_callers_folder(store: Store, target: Path, driver: str) -> None:
    diff_ids = _simple(store)
    upper = target.parent / "upper"
    upper.mkdir()
    options = MountOptions(rw=True, driver=driver, upper=upper)
    with mount_stack(store, diff_ids, target, options):
        (target / "new").write_bytes(b"kept")
        (target / "own").unlink()
        target.chmod(0o711)
    with mount_stack(store, diff_ids, target, options):
        assert (target / "new").read_bytes() == b"kept"
        assert not (target / "own").exists()
        assert stat.S_IMODE(target.stat().st_mode) == 0o711


def test_changes_without_a_folder_are_gone_with_the_mount(store: Store, target: Path) -> None:
    diff_ids = _simple(store)
    for _ in range(2):
        with mount_stack(store, diff_ids, target, MountOptions(rw=True)):
            assert not (target / "new").exists()
            (target / "new").write_bytes(b"")
    assert list((store.layout.root / "uppers").iterdir()) == []


def _assert_pages_are_right_or_refused(path: Path, want: bytes) -> None:
    """Page by page. Not asked of `erofs`: docs/adr/0005."""
    good = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(0, len(want), 4096):
            try:
                piece = os.pread(fd, 4096, at)
            except OSError:
                continue
            assert piece == want[at : at + 4096]
            good += 1
    finally:
        os.close(fd)
    assert 0 < good < -(-len(want) // 4096)


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_reading_a_damaged_file_is_an_error(store: Store, target: Path, driver: str) -> None:
    diff_ids = _simple(store, 5)
    view = open_view(store, diff_ids)
    want = view.read_bytes("own")
    numbers = view.tree.extents_of(view.resolve("own"))["number"]
    with store.read() as txn:
        place = store.index.places(txn, numbers)[len(numbers) // 2]
    with store.layout.chunks.open("r+b") as chunks:
        chunks.seek(int(place["address"]) + int(place["encoded"]) // 2)
        byte = chunks.read(1)
        chunks.seek(-1, os.SEEK_CUR)
        chunks.write(bytes([byte[0] ^ 1]))
    from layerstore.cache import process_cache

    process_cache().clear()
    with mount_stack(store, diff_ids, target, MountOptions(driver=driver)):
        with pytest.raises(OSError, match=r"(?i)error|clean"):
            (target / "own").read_bytes()
        if driver == "fuse":
            _assert_pages_are_right_or_refused(target / "own", want)
        assert (target / "shared").read_bytes() == payload(99, 400_000)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mount_that_is_verified_shows_no_damaged_file(
    store: Store, target: Path, driver: str
) -> None:
    diff_ids = _simple(store, 5)
    options = MountOptions(driver=driver, verify=True)
    with mount_stack(store, diff_ids, target, options):
        assert (target / "own").read_bytes() == payload(5, 200_000)
    if driver == "objects":
        shutil.rmtree(store.layout.root / "objects")
    view = open_view(store, diff_ids)
    number = view.tree.extents_of(view.resolve("own"))["number"][:1]
    with store.read() as txn:
        place = store.index.places(txn, number)[0]
    with store.layout.chunks.open("r+b") as chunks:
        chunks.seek(int(place["address"]) + int(place["encoded"]) // 2)
        byte = chunks.read(1)
        chunks.seek(-1, os.SEEK_CUR)
        chunks.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptStore, match="damaged on disk: '/own'"):
        mount_stack(store, diff_ids, target, options)
    assert _mounts_below(target.parent) == []
    assert _records(store) == []
    assert _names(target) == []


def _loop_devices(folder: Path) -> list[str]:
    """What loop devices of this test there are."""
    names = Path("/sys/block").glob("loop*/loop/backing_file")
    return [name for name in map(_text_of, names) if name.startswith(os.path.realpath(folder))]


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it went meanwhile
        return ""


def _files_below(root: Path) -> set[str]:
    return {os.path.relpath(path, root) for path in root.rglob("*")}


def test_two_hundred_mounts_end_in_any_order_and_leave_nothing(
    store: Store, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    rng = random.Random(seed)
    stacks = [_simple(store, seed) for seed in range(10)]
    targets = [tmp_path / f"mnt{number:03}" for number in range(200)]

    def begin(number: int) -> None:
        targets[number].mkdir()
        driver = OVERLAYS[number // 10 % 2]
        options = MountOptions(rw=number % 3 == 0, driver=driver)
        mount_stack(store, stacks[number % 10], targets[number], options)

    def end(number: int) -> None:
        assert (targets[number] / "shared").read_bytes() == payload(99, 400_000)
        assert (targets[number] / "own").read_bytes() == payload(number % 10, 200_000)
        umount_target(store, targets[number])

    for number in range(20):  # everything that stays is made: images, objects
        begin(number)
        end(number)
        targets[number].rmdir()
    kept, descriptors = _files_below(store.layout.root), _descriptors()
    order = list(range(200))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, rng.sample(order, 200)))
        entries = _mounts_below(tmp_path)
        # 200 overlays, 10 metadata images, and one data image for each stack: the shared file is in the first only
        assert len(entries) == 200 + 10 + 10
        assert len({entry.target for entry in entries}) == len(entries)
        assert len(list_mounts(store)) == 200
        list(threads.map(end, rng.sample(order, 200)))
    assert list_mounts(store) == []
    assert _mounts_below(tmp_path) == []
    assert _loop_devices(tmp_path) == []
    assert _descriptors() == descriptors
    assert _records(store) == []
    assert _files_below(store.layout.root) == kept
    assert [*(store.layout.root / "run" / "meta").iterdir()] == []
    assert [*(store.layout.root / "run" / "data").iterdir()] == []
    assert [*(store.layout.root / "uppers").iterdir()] == []
    with store.read() as txn:
        assert list(SnapshotTable(store.database).records(txn)) == []


def test_contents_go_into_one_data_image_only(store: Store, target: Path) -> None:
    for seed in (1, 2):
        with mount_stack(store, _simple(store, seed), target, MountOptions(driver="erofs")):
            pass
    images = sorted(path.name for path in (store.layout.root / "images").glob("data-*.erofs"))
    assert images == ["data-1.erofs", "data-2.erofs"]
    names = []
    for name in images:
        image = read_image((store.layout.root / "images" / name).read_bytes())
        names.append({path for path, node in image.walk() if node.kind is Kind.FILE})
    assert len(names[0]) == 5
    assert len(names[1]) == 1  # its own
    assert names[0].isdisjoint(names[1])


def _resident(path: Path) -> float:
    """The share of a file's pages that the page cache has."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_long,
    )
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    pages = (ctypes.c_ubyte * -(-size // 4096))()
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert libc.mincore(address, size, pages) == 0
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.munmap(address, size)
    return sum(page & 1 for page in pages) / len(pages)


@pytest.mark.parametrize("driver", OVERLAYS)
def test_images_share_the_page_cache(store: Store, tmp_path: Path, driver: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    options = MountOptions(driver=driver)
    stacks = _simple(store, 1), _simple(store, 2)
    with mount_stack(store, stacks[0], one, options), mount_stack(store, stacks[1], two, options):
        for name in ("shared", "own"):
            fd = os.open(two / name, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        os.sync()
        if driver == "erofs":
            assert _resident(two / "shared") == 0
            assert _resident(two / "own") == 0
            (one / "own").read_bytes()
            assert _resident(two / "own") == 0
        (one / "shared").read_bytes()
        assert _resident(two / "shared") == 1


def test_frames_are_read_past_the_page_cache_and_far_ahead(store: Store, target: Path) -> None:
    with mount_stack(store, _simple(store), target, MountOptions(driver="erofs")):
        (shown,) = [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f"{store.layout.root}/run/data/1 " in line
        ]  # fmt: skip
        assert {"directio", "cache_strategy=disabled"} <= set(shown.split()[-1].split(","))
        os.sync()
        with store.layout.chunks.open("rb") as chunks:
            os.posix_fadvise(chunks.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        (target / "shared").read_bytes()
        assert _resident(store.layout.chunks) == 0
        if not os.access("/sys/class/bdi", os.W_OK):
            pytest.skip("sysfs is read-only here")
        kind, name = sysfs_name(Places.of(store.layout.root).data_mount(1))
        assert kind == "erofs"
        assert Path(f"/sys/class/bdi/{name}/read_ahead_kb").read_text() == "1024\n"
        assert Path(f"/sys/fs/erofs/{name}/sync_decompress").read_text() == "2\n"


def _record(target: Path, driver: str, **fields: object) -> MountRecord:
    values: dict[str, object] = {
        "token": "layerstore:00crash", "target": str(target), "driver": driver, "diff_ids": (),
        "rw": False, "meta": "", "data": (), "upper": "", "owns_upper": False, "created_ns": 1,
        "boot": boot_id(), "namespace": mount_namespace(),
    }  # fmt: skip
    return MountRecord(**values | fields)  # type: ignore[arg-type]  # as the defaults


def _records(store: Store) -> list[MountRecord]:
    with store.read() as txn:
        return [record for _, record in MountTable(store.database).items(txn)]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_crash_between_record_and_mount_is_cleaned_up(
    store: Store, target: Path, driver: str
) -> None:
    places = Places.of(store.layout.root)
    places.make()
    upper = places.upper("00crash")
    (upper / "fs").mkdir(parents=True)
    (target / "mine").write_bytes(b"not of a mount")
    record = _record(target, driver, rw=True, upper=str(upper), owns_upper=True)
    with store.write() as txn:
        MountTable(store.database).add(txn, record)
    assert list_mounts(store) == []
    with pytest.raises(NotFound):
        umount_target(store, target)
    assert _records(store) == []
    assert not upper.exists()
    assert (target / "mine").exists()


def test_a_crash_between_private_mounts_and_overlay_is_cleaned_up(
    store: Store, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diff_ids = _simple(store)
    with monkeypatch.context() as patch:
        patch.setattr(mounter, "_forget", lambda *_: None)  # as if the process died here
        patch.setattr("layerstore.mount.erofs.mount_overlay", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mount_stack(store, diff_ids, target, MountOptions(driver="erofs"))
    assert len(_mounts_below(target.parent)) == 2
    assert len(_records(store)) == 1
    with pytest.raises(NotFound):
        umount_target(store, target)
    assert _mounts_below(target.parent) == []
    assert _records(store) == []


def test_an_unfinished_checkout_is_removed_as_far_as_it_is_marked(
    store: Store, target: Path
) -> None:
    (target / ".layerstore-00crash").touch()
    (target / "half").mkdir()
    with store.write() as txn:
        MountTable(store.database).add(txn, _record(target, "checkout"))
    with mount_stack(store, _simple(store), target, MountOptions(driver="checkout")):
        assert not (target / "half").exists()


def test_records_of_an_earlier_boot_go_and_those_of_another_namespace_stay(
    store: Store, target: Path
) -> None:
    earlier = _record(target, "erofs", boot="another")
    elsewhere = _record(target, "erofs", namespace=1)
    with store.write() as txn:
        MountTable(store.database).add(txn, earlier)
        MountTable(store.database).add(txn, elsewhere)
    with mount_stack(store, _simple(store), target, MountOptions()):
        pass
    assert _records(store) == [elsewhere]


@pytest.mark.parametrize("driver", OVERLAYS)
def test_an_image_file_that_is_damaged_or_missing_is_made_anew(
    store: Store, target: Path, driver: str
) -> None:
    diff_ids = _simple(store)
    options = MountOptions(driver=driver)
    view = open_view(store, diff_ids)
    for damage in ("flip", "remove", "cut"):
        with mount_stack(store, diff_ids, target, options):
            pass
        for path in (store.layout.root / "images").glob("*-*"):
            data = bytearray(path.read_bytes())
            if damage == "flip":
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
            elif damage == "cut":
                path.write_bytes(data[: len(data) // 2])
            else:
                path.unlink()
        with mount_stack(store, diff_ids, target, options):
            assert _differences(view, target) == []


def test_objects_that_no_mount_needs_go_over_budget(store: Store, tmp_path: Path) -> None:
    from layerstore.mount.objects import evict_objects

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    options = MountOptions(driver="objects")
    places = Places.of(store.layout.root)
    with mount_stack(store, _simple(store, 1), one, options):
        with mount_stack(store, _simple(store, 2), two, options):
            assert evict_objects(store, places, 0) == 0
        freed = evict_objects(store, places, 0)
        assert 200_000 <= freed < 400_000  # `own` of the second
        assert (one / "own").read_bytes() == payload(1, 200_000)
        assert (one / "shared").read_bytes() == payload(99, 400_000)
    assert evict_objects(store, places, 1 << 30) == 0
    evict_objects(store, places, 0)
    assert [path for path in places.objects.rglob("*") if path.is_file()] == []


def test_requests_that_cannot_be_met_say_so(store: Store, target: Path, tmp_path: Path) -> None:
    diff_ids = _simple(store)
    with pytest.raises(NotFound):
        mount_stack(store, diff_ids, tmp_path / "absent", MountOptions())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, file, MountOptions())
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, store.layout.tmp, MountOptions())
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, target, MountOptions(driver="nfs"))
    with pytest.raises(InvalidArgument):
        mount_stack(store, diff_ids, target, MountOptions(upper=tmp_path))
    with pytest.raises(Unsupported):
        mount_stack(store, diff_ids, target, MountOptions(driver="fuse", rw=True))
    with pytest.raises(NotFound):
        mount_stack(store, [DiffID(digest_of(b"absent"))], target, MountOptions())
    (target / "mine").touch()
    with pytest.raises(FailedPrecondition):
        mount_stack(store, diff_ids, target, MountOptions(driver="checkout"))
    assert _names(target) == ["mine"]
    assert _records(store) == []
    with mount_stack(store, diff_ids, target, MountOptions()), pytest.raises(AlreadyExists):
        mount_stack(store, diff_ids, target, MountOptions())


@pytest.mark.parametrize("driver", [*OVERLAYS, "fuse"])
def test_a_mount_in_use_is_busy_and_stays(store: Store, target: Path, driver: str) -> None:
    mount = mount_stack(store, _simple(store), target, MountOptions(driver=driver))
    with (target / "own").open("rb") as file:
        with pytest.raises(Busy):
            mount.umount()
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(payload(0, 200_000)).digest()
    mount.umount()


def test_auto_takes_the_best_and_says_why(store: Store) -> None:
    driver, reason = choose_driver(store, MountOptions())
    assert driver.name == "erofs"
    assert reason


def test_held_layers_serve_an_overlay_of_somebody_else(store: Store, target: Path) -> None:
    diff_ids = _simple(store)
    held = hold_lower(store, diff_ids)
    assert hold_lower(store, diff_ids) == held
    assert len(_records(store)) == 1
    assert list_mounts(store) == []
    lower = "::".join(map(str, (held.root, *held.data)))
    options = f"ro,metacopy=on,redirect_dir=follow,lowerdir={lower}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", target], check=True)
    assert (target / "own").read_bytes() == payload(0, 200_000)
    release_lowers(store)
    assert (target / "shared").read_bytes() == payload(99, 400_000)
    subprocess.run(["umount", target], check=True)


def test_an_empty_image_is_an_empty_folder(store: Store, target: Path) -> None:
    layer = _layer(lambda tar: _add(tar, "./", type_=tarfile.DIRTYPE, mode=0o700))
    put(store, layer)
    for driver in DRIVERS:
        with mount_stack(store, [DiffID(digest_of(layer))], target, MountOptions(driver=driver)):
            assert _names(target) == []
            assert stat.S_IMODE(target.stat().st_mode) == 0o700


_MOUNT_OFTEN = """
import sys
from pathlib import Path
from layerstore.api import open_store
from layerstore.mount.mounter import MountOptions, mount_stack
root, target, *diff_ids = sys.argv[1:]
with open_store(root) as opened:
    for _ in range(10):
        with mount_stack(opened.store, diff_ids, Path(target), MountOptions(driver="erofs")):
            assert (Path(target) / "shared").stat().st_size == 400_000
            assert len((Path(target) / "shared").read_bytes()) == 400_000
"""


def test_processes_mount_at_once(store: Store, tmp_path: Path) -> None:
    stacks = [_simple(store, seed) for seed in range(2)]
    workers = []
    for number in range(4):
        target = tmp_path / f"mnt{number}"
        target.mkdir()
        argv = [sys.executable, "-c", _MOUNT_OFTEN, str(store.layout.root), str(target)]
        workers.append(
            subprocess.Popen([*argv, *stacks[number % 2]], cwd=Path(__file__).parents[2])
        )
    assert [worker.wait() for worker in workers] == [0] * 4
    assert list_mounts(store) == []
    assert _records(store) == []


def test_a_killed_fuse_server_can_be_unmounted(store: Store, target: Path) -> None:
    diff_ids = _simple(store)
    mount = mount_stack(store, diff_ids, target, MountOptions(driver="fuse"))
    root = os.fsencode(store.layout.root)
    servers = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and {root, os.fsencode(diff_ids[0])} <= {*_command_line(path)}
    ]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    with pytest.raises(OSError, match=r"(?i)connect|abort"):
        (target / "own").read_bytes()
    assert [one.target for one in list_mounts(store)] == [target]
    mount.umount()
    assert list_mounts(store) == []


def _command_line(process: Path) -> list[bytes]:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []
    return words


def test_the_command_mounts_lists_and_unmounts(tmp_path: Path, target: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "layerstore", "--root", str(tmp_path / "store"), *words]
        return subprocess.run(
            argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        )

    archive = tmp_path / "root.tar"
    archive.write_bytes(_layer(_torture_lower))
    assert run("import", str(archive), "test:1").returncode == 0
    assert run("mount", "test:1", str(target)).stdout == f"Mounted: {target} (erofs)\n"
    assert (target / "etc" / "motd").read_bytes() == b"hello\n"
    assert run("mount", "test:1", str(target)).returncode == 4
    listed = json.loads(run("mounts", "--format", "json").stdout)
    assert [(one["target"], one["driver"]) for one in listed] == [(str(target), "erofs")]
    done = run("umount", "--format", "json", str(tmp_path), str(target))
    assert json.loads(done.stdout)["unmounted"] == [str(target)]
    assert done.returncode == 3
    assert list(target.iterdir()) == []

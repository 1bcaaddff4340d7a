"""Images to mount and what a mount shows: the torture of all kinds of files, small stacks that share, and every difference.

diff_ids = put_torture(store)
assert differences(open_view(store, diff_ids), target) == []
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.digest import DiffID, digest_of
from layerstore.mount.mountinfo import MountEntry, boot_id, mount_namespace, read_mountinfo
from layerstore.store.mountstate import MountRecord, MountTable
from layerstore.tree import Kind
from tests.support.layers import put
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.store.store import Store
    from layerstore.view import View


__all__ = [
    "OVERLAYS",
    "WRITABLE",
    "add_entry",
    "differences",
    "layer_with",
    "loop_devices",
    "mount_record",
    "mount_records",
    "mounts_below",
    "names_in",
    "open_descriptors",
    "put_simple",
    "put_torture",
    "resident_share",
    "torture_lower",
    "torture_upper",
]

OVERLAYS = ("erofs", "objects")
WRITABLE = (*OVERLAYS, "checkout")
_TYPES = {
    Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO,
}  # fmt: skip


def mounts_below(folder: Path) -> list[MountEntry]:
    """The mounts of this test; other tests may run beside it."""
    prefix = f"{os.path.realpath(folder)}/"
    return [entry for entry in read_mountinfo() if entry.target.startswith(prefix)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def _info(name: str, type_: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.mode = type_, 1_600_000_000, 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def layer_with(build: Callable[[tarfile.TarFile], None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        build(tar)
    return out.getvalue()


def add_entry(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = _info(name, **fields)  # type: ignore[arg-type]  # passed through
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def torture_lower(tar: tarfile.TarFile) -> None:
    add_entry(tar, "./", type_=tarfile.DIRTYPE, mode=0o751, uid=7, gid=8, mtime=1_500_000_000)
    for name, mode in (("etc", 0o755), ("gone", 0o755), ("opaque", 0o700), ("tmp", 0o1777)):
        add_entry(tar, name, type_=tarfile.DIRTYPE, mode=mode)
    add_entry(tar, "etc/motd", b"hello\n", uid=1000, gid=100)
    add_entry(tar, "etc/empty")
    add_entry(tar, "gone/file", b"x")
    add_entry(tar, "opaque/lower", b"x")
    add_entry(tar, "replaced", b"a file that becomes a folder")
    add_entry(tar, "big", payload(1, 3 << 20), mode=0o600)
    add_entry(tar, "zeros", bytes(300_000))
    add_entry(tar, "holes", payload(2, 50_000) + bytes(400_000) + payload(3, 70_001))
    add_entry(tar, "suid", b"#!/bin/sh\n", mode=0o6755)
    add_entry(tar, "hard1", b"three names", mode=0o640)
    add_entry(tar, "hard2", type_=tarfile.LNKTYPE, linkname="hard1")
    add_entry(tar, "etc/hard3", type_=tarfile.LNKTYPE, linkname="hard1")
    add_entry(tar, "link", type_=tarfile.SYMTYPE, linkname="etc/motd", uid=5)
    add_entry(tar, "dangling", type_=tarfile.SYMTYPE, linkname="/no/such/" + "t" * 200)
    add_entry(tar, "null", type_=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    add_entry(tar, "disk", type_=tarfile.BLKTYPE, devmajor=8, devminor=300, mode=0o660)
    add_entry(tar, "pipe", type_=tarfile.FIFOTYPE)
    add_entry(tar, "n" * 255, b"long name")
    add_entry(tar, "sp ace\\,:\nline\u00e9", b"odd name")
    add_entry(tar, "/".join(["deep"] * 40) + "/leaf", b"deep")
    for number in range(300):
        add_entry(tar, f"many/{number:04}", b"%d" % number, uid=number, mtime=number)
    records = {"SCHILY.xattr.user.note": "yes", "SCHILY.xattr.trusted.secret": "no"}
    add_entry(tar, "attributes", b"x", pax_headers=records)
    add_entry(tar, "ns", b"x", pax_headers={"mtime": "1234567890.123456789"})
    add_entry(tar, "before", b"x", pax_headers={"mtime": "-100.5"})
    overlay = {"SCHILY.xattr.trusted.overlay.opaque": "y"}
    add_entry(tar, "nested", type_=tarfile.DIRTYPE, mode=0o755, pax_headers=overlay)
    add_entry(tar, "nested/inside", b"x")
    folder = {"SCHILY.xattr.user.folder": "yes"}
    add_entry(tar, "etc/sub", type_=tarfile.DIRTYPE, mode=0o2775, gid=44, pax_headers=folder)


def torture_upper(tar: tarfile.TarFile) -> None:
    add_entry(tar, ".wh.gone")
    add_entry(tar, "opaque", type_=tarfile.DIRTYPE, mode=0o711)
    add_entry(tar, "opaque/.wh..wh..opq")
    add_entry(tar, "opaque/upper", b"only this")
    add_entry(tar, "replaced", type_=tarfile.DIRTYPE, mode=0o755)
    add_entry(tar, "replaced/inside", b"x")
    add_entry(tar, "copy of big", payload(1, 3 << 20))
    add_entry(tar, "another copy of big", payload(1, 3 << 20))


def put_torture(store: Store) -> list[DiffID]:
    layers = [layer_with(torture_lower), layer_with(torture_upper)]
    for layer in layers:
        put(store, layer)
    return [DiffID(digest_of(layer)) for layer in layers]


def put_simple(store: Store, seed: int = 0, *more: tuple[str, bytes]) -> list[DiffID]:
    def build(tar: tarfile.TarFile) -> None:
        add_entry(tar, "./", type_=tarfile.DIRTYPE, mode=0o755)
        add_entry(tar, "folder", type_=tarfile.DIRTYPE, mode=0o755)
        for name in ("a", "b", "c"):
            add_entry(tar, f"folder/{name}", name.encode() * 3)
        add_entry(tar, "shared", payload(99, 400_000))
        add_entry(tar, "own", payload(seed, 200_000))
        for name, data in more:
            add_entry(tar, name, data, mode=0o755)

    layer = layer_with(build)
    put(store, layer)
    return [DiffID(digest_of(layer))]


def differences(view: View, target: Path, *, is_shared: bool = False) -> list[str]:
    """What is otherwise below `target` than in the view; if its files are shared with others, they have more names."""
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
            if field == "st_nlink" and is_shared and stat.S_ISREG(want.st_mode):
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
    if len(set.union(*groups.values())) != len(groups):
        wrong.append("different inodes are one")
    for folder, folders, names in os.walk(target):
        wrong += [
            f"{name!r} is too much" for name in (*folders, *names) if Path(folder, name) not in seen
        ]
    return wrong


def loop_devices(folder: Path) -> list[str]:
    """What loop devices of this test there are."""
    names = Path("/sys/block").glob("loop*/loop/backing_file")
    return [name for name in map(_text_of, names) if name.startswith(os.path.realpath(folder))]


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it went meanwhile
        return ""


def resident_share(path: Path) -> float:
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


def mount_record(target: Path, driver: str, **fields: object) -> MountRecord:
    values: dict[str, object] = {
        "token": "layerstore:00crash", "target": str(target), "driver": driver, "diff_ids": (),
        "rw": False, "meta": "", "data": (), "upper": "", "owns_upper": False, "created_ns": 1,
        "boot": boot_id(), "namespace": mount_namespace(),
    }  # fmt: skip
    return MountRecord(**values | fields)  # type: ignore[arg-type]  # as the defaults


def mount_records(store: Store) -> list[MountRecord]:
    with store.read() as txn:
        return [record for _, record in MountTable(store.database).items(txn)]

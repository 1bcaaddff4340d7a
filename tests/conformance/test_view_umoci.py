"""The view of an image is what umoci unpacks from the same OCI layout: names, metadata, links, devices, contents.

umoci applies layer after layer to a directory, entry by entry, with code that shares nothing with ours. Where its result depends
on the order of entries (a whiteout behind the file of the same layer) the image here has the order that it handles.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.view import View, open_view
from tests.support.archive_builders import oci_layout, write_folder
from tests.support.tars import END, entry, gnu_long, noise, pax, pax_sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.client("umoci")]

_CAPABILITY = b"\1\0\0\2\0\4\0\0" + bytes(12)
_ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
)
_LONG = b"/".join([b"n" * 99] * 5)
_LAYERS = (
    b"".join(
        (
            entry(b"./", typeflag=b"5", mode=0o751, mtime=11),
            entry(b"bin/", typeflag=b"5", mode=0o755, mtime=12),
            entry(b"bin/su", noise(70_000, 1), mode=0o4755, uid=0, gid=42),
            pax([(b"SCHILY.xattr.security.capability", _CAPABILITY)]) + entry(b"bin/ping", noise(300, 2), mode=0o755),
            pax([(b"SCHILY.xattr.user.a", b"1"), (b"SCHILY.xattr.user.b", b"\0\xff=\n")]) + entry(b"etc/", typeflag=b"5", mode=0o755),
            pax([(b"SCHILY.xattr.system.posix_acl_access", _ACL)]) + entry(b"etc/acl", b"acl", mode=0o664),
            entry(b"etc/passwd", b"root\n"),
            entry(b"etc/shadow", b"secret", mode=0, uid=0, gid=42),
            entry(b"tmp/", typeflag=b"5", mode=0o1777),
            entry(b"opt/app/lib/deep/file", b"implied parents"),
            entry(b"opt/app/other", b"x"),
            entry(b"var/log/a", b"a"),
            entry(b"var/log/b", b"b"),
            entry(b"var/cache/x/y/z", b"z"),
            entry(b"usr/lib/libfoo.so.1", noise(200_000, 3) + bytes(200_000)),
            entry(b"usr/lib/libfoo.so", typeflag=b"2", link=b"libfoo.so.1"),
            entry(b"usr/lib/hard1", typeflag=b"1", link=b"usr/lib/libfoo.so.1"),
            entry(b"usr/lib/hard2", typeflag=b"1", link=b"/usr/lib/hard1"),
            entry(b"dangling", typeflag=b"2", link=b"../../nowhere"),
            entry(b"dev/null", typeflag=b"3", device=(1, 3), mode=0o666),
            entry(b"dev/sda", typeflag=b"4", device=(8, 1), mode=0o660, gid=6),
            entry(b"run/fifo", typeflag=b"6", mode=0o600),
            pax_sparse("1.0", b"sparse", [(4096, noise(5000, 4)), (900_000, noise(100, 5))], 1 << 20),
            pax([(b"mtime", b"1700000000.123456789")]) + entry(b"nanoseconds", b"n"),
            pax([(b"mtime", b"-86400")]) + entry(b"before-1970", b"o"),
            pax([(b"uid", b"3000000000"), (b"gid", b"2097152")]) + entry(b"large-ids", b"i"),
            gnu_long(_LONG) + entry(_LONG[:100], b"long", form="gnu"),
            gnu_long(b"t" * 900, b"K") + entry(b"long-link", typeflag=b"2", link=b"t" * 100, form="gnu"),
            entry(b"file-to-dir", b"f"),
            entry(b"dir-to-file/x", b"x"),
            entry(b"twice", b"first"),
            entry(b"twice", b"second, and this one counts"),
            entry(b"caf\xe9\xff", b"no UTF-8"),
            entry(b"empty/", typeflag=b"5", mode=0o700, uid=1000, gid=1000, mtime=13),
        )
    ),
    b"".join(
        (
            entry(b"opt/app/", typeflag=b"5", mode=0o750, uid=5, mtime=21),
            entry(b"opt/app/.wh..wh..opq"),
            entry(b"opt/app/new", b"new"),
            entry(b"var/log/.wh.a"),
            entry(b"var/.wh.cache"),
            pax([(b"SCHILY.xattr.user.b", b"2")]) + entry(b"etc/", typeflag=b"5", mode=0o700, mtime=22),
            entry(b"dir-to-file", b"now a file"),
            entry(b".wh.file-to-dir"),
            entry(b"file-to-dir/", typeflag=b"5", mode=0o711, mtime=23),
            entry(b"file-to-dir/y", b"y"),
            entry(b"lower-link", typeflag=b"1", link=b"etc/passwd"),
            entry(b"usr/lib/hard2", b"no longer a link"),
        )
    ),
    b"".join(
        (
            entry(b".wh.opt"),
            entry(b"var/cache/again", b"again", mtime=31),
            entry(b"third-link", typeflag=b"1", link=b"lower-link"),
            entry(b"etc/.wh.never-there"),
            entry(b"./", typeflag=b"5", mode=0o711, mtime=33),
        )
    ),
)  # fmt: skip


def test_a_view_is_what_umoci_unpacks(tmp_path: Path) -> None:
    layout = write_folder(tmp_path / "layout", oci_layout([layer + END for layer in _LAYERS]))
    differences = list(differences_to_umoci(layout, tmp_path))
    assert differences == []


def differences_to_umoci(layout: Path, work: Path) -> Iterator[str]:
    """Load an OCI layout, unpack it with umoci, and compare; `work` is an empty or new folder."""
    rootfs = work / "rootfs"
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:latest", os.fspath(rootfs)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    with open_store(work / "store") as store:
        [image] = store.load(layout).images
        diff_ids = [layer.diff_id for layer in store.inspect(image.id).layers]
        view = open_view(store.store, diff_ids)
        assert view.tree.warnings == ()
        yield from _compare(view, os.fsencode(rootfs))


def _compare(view: View, rootfs: bytes) -> Iterator[str]:
    names: dict[int, list[str]] = {}
    unpacked: dict[int, list[str]] = {}
    ours = {os.fsdecode(path): inode for path, inode in view.tree.walk()}
    theirs = dict(_walk(rootfs))
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in theirs or path not in ours:
            yield f"{path}: only in {'the view' if path in ours else 'umoci'}"
            continue
        wanted, got = theirs[path], view.lstat(path)
        for field in (
            "st_mode",
            "st_uid",
            "st_gid",
            "st_mtime_ns",
            "st_nlink",
            "st_rdev",
            "st_size",
        ):
            if stat.S_ISDIR(wanted.st_mode) and field in ("st_size", "st_nlink"):
                continue
            if stat.S_ISDIR(got.st_mode) and got.st_mtime_ns == 0 and field == "st_mtime_ns":
                continue  # a directory without an entry: umoci's has the time of the unpacking
            if getattr(wanted, field) != getattr(got, field):
                yield f"{path}: {field} is {getattr(got, field)}, umoci has {getattr(wanted, field)}"
        host = os.path.join(rootfs, os.fsencode(path))  # noqa: PTH118 - names that are no UTF-8
        xattrs = {name: os.getxattr(host, name, follow_symlinks=False) for name in os.listxattr(host, follow_symlinks=False)}  # fmt: skip
        if view.xattrs(path, follow_symlinks=False) != xattrs:
            yield f"{path}: xattrs {view.xattrs(path, follow_symlinks=False)}, umoci has {xattrs}"
        if stat.S_ISLNK(wanted.st_mode) and view.readlink(path) != os.fsdecode(os.readlink(host)):  # noqa: PTH115
            yield f"{path}: leads to {view.readlink(path)}"
        if stat.S_ISREG(wanted.st_mode):
            names.setdefault(got.st_ino, []).append(path)
            unpacked.setdefault(wanted.st_ino, []).append(path)
            with open(host, "rb") as theirs_file, view.open(path) as our_file:  # noqa: PTH123
                if _sha256(theirs_file) != _sha256(our_file):
                    yield f"{path}: other content"
    if sorted(names.values()) != sorted(unpacked.values()):
        yield f"hard links differ: {[group for group in names.values() if group not in unpacked.values()]}"


def _walk(rootfs: bytes) -> Iterator[tuple[str, os.stat_result]]:
    yield "", os.lstat(rootfs)
    for folder, folders, files in os.walk(rootfs):
        for name in folders + files:
            path = os.path.join(folder, name)  # noqa: PTH118
            yield os.fsdecode(os.path.relpath(path, rootfs)), os.lstat(path)


def _sha256(file: object) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a BinaryIO

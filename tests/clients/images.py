"""Images for real programs: one that runs, and one with everything that makes unpacking hard."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tests.support.archive_builders import Image, image_config, layer_tar
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["awkward_image", "busybox_image", "runnable_image", "tree_of"]


def runnable_image(tag: str) -> Image:
    """`/bin/true` with its libraries, taken from this machine, and a layer above it."""
    program = Path("/bin/true").resolve()
    loaded = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = {Path(word) for word in loaded.split() if word.startswith("/")}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted({*paths, Path("/bin/true")}):
            info = tarfile.TarInfo(str(path).lstrip("/"))
            data = path.resolve().read_bytes()
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
        for name in ("dev", "proc", "sys", "tmp", "etc"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
    layers = [stream.getvalue(), layer_tar({"etc/motd": payload(1, 100_000)})]
    config = {"Cmd": ["/bin/true"], "Env": ["PATH=/bin", "TEXT=a=b"], "Labels": {"who": "tests"}}
    return Image(layers, image_config(layers, config=config), [tag])


def busybox_image(tag: str, *layers: bytes) -> Image:
    """A shell and a web server in one static program of this machine, and layers above it; waits until it is killed."""
    program = Path(shutil.which("busybox") or "").read_bytes()
    links = [_link(f"bin/{name}", "busybox", tarfile.SYMTYPE) for name in ("sh", "httpd", "cat")]
    folders = [_folder(name, 0o755) for name in ("bin", "dev", "proc", "sys", "tmp")]
    base = _tar(*folders, _file("bin/busybox", program, mode=0o755), *links)
    config = {"Cmd": ["/bin/busybox", "sleep", "3600"], "Env": ["PATH=/bin"]}
    return Image([base, *layers], image_config([base, *layers], config=config), [tag])


def awkward_image(tag: str) -> Image:
    """Whiteouts, an opaque folder, links, devices, a fifo, owners, times, attributes, odd names."""
    lower = _tar(
        _folder("opaque", 0o750),
        _file("opaque/below", b"hidden"),
        _file("gone", b"removed by the layer above"),
        _file("kept/a", payload(2, 60_000), uid=1000, gid=2000, mtime=1),
        _link("kept/hard", "kept/a", tarfile.LNKTYPE),
        _link("kept/soft", "../gone", tarfile.SYMTYPE),
        _file("setuid", b"#!/bin/true\n", mode=0o4755),
        _file("becomes-folder", b"file"),
        _device("dev/null", tarfile.CHRTYPE, 1, 3),
        _device("dev/disk", tarfile.BLKTYPE, 7, 200),
        _device("pipe", tarfile.FIFOTYPE, 0, 0),
        _file("naïve name \n with a newline", b"x"),
        _file("deep/" * 40 + "file", b"deep"),
        _file("long-" + "n" * 200, b"long"),
    )
    upper = _tar(
        _file(".wh.gone", b""),
        _file("opaque/above", b"seen"),
        _file("opaque/.wh..wh..opq", b""),
        _file("kept/.wh.soft", b""),
        _folder("becomes-folder", 0o700),
        _file("becomes-folder/inside", bytes(200_000)),
        _file("empty", b""),
        _file("attributed", b"a", pax={"SCHILY.xattr.user.note": "value"}),
    )
    return Image.of([lower, upper], tag)


_Entry: TypeAlias = tuple[tarfile.TarInfo, bytes]


def _tar(*entries: _Entry) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _file(
    name: str,
    data: bytes,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_600_000_000,
    pax: dict[str, str] | None = None,
) -> _Entry:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid, info.mtime = len(data), mode, uid, gid, mtime
    info.pax_headers = pax or {}
    return info, data


def _folder(name: str, mode: int) -> _Entry:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, mode, 1_500_000_000
    return info, b""


def _link(name: str, target: str, kind: bytes) -> _Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def _device(name: str, kind: bytes, major: int, minor: int) -> _Entry:
    info = tarfile.TarInfo(name)
    info.type, info.devmajor, info.devminor, info.mode = kind, major, minor, 0o600
    return info, b""


def tree_of(root: Path, since_ns: int) -> dict[bytes, tuple[object, ...]]:
    """Everything that can be seen of a tree: path -> kind, mode, owners, time, contents, links, attributes.

    Times from `since_ns` on are those of the unpacking (folders that no layer names), and left out.
    """
    top = os.fsencode(root)
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[int, bytes] = {}
    for path in sorted(_below(top)):
        status = os.lstat(path)
        name = path[len(top) :]
        content: object = None
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:  # noqa: PTH123  # a name that is not text
                content = hashlib.file_digest(file, "sha256").digest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)  # noqa: PTH115
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            content = status.st_rdev
        is_folder = stat.S_ISDIR(status.st_mode)
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns if status.st_mtime_ns < since_ns else None,
            content,
            None if is_folder else first.setdefault(status.st_ino, name),
            {key: os.getxattr(path, key, follow_symlinks=False) for key in _attributes(path)},
        )
    return found


def _attributes(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _below(folder: bytes) -> Iterable[bytes]:
    for parent, folders, files in os.walk(folder):
        yield from (os.path.join(parent, name) for name in folders + files)  # noqa: PTH118

"""The FUSE server's answers, byte for byte as `linux/fuse.h` lays them out."""

from __future__ import annotations

import errno
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from layerstore.errors import CorruptStore
from layerstore.merge import merge
from layerstore.mount import fuseserver
from layerstore.mount.fuseserver import FuseServer
from layerstore.view import View
from tests.support.trees import device, directory, file, layer_of, symlink

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS = 1, 2, 3, 5, 14, 15, 17
GETXATTR, LISTXATTR, INIT, READDIR, READDIRPLUS = 22, 23, 26, 28, 44


class _Chunks:
    def read(self, numbers: npt.NDArray[np.uint64], /) -> Sequence[bytes]:
        if 99 in numbers:
            raise CorruptStore("damaged")
        return [bytes([number]) * 10 for number in numbers.tolist()]


@pytest.fixture
def server() -> FuseServer:
    items = [
        directory(b"", 0o751),
        file(b"a", (3, 10), (4, 10), xattrs={b"user.x": b"value", b"user.y": b""}),
        file(b"bad", (99, 10)),
        directory(b"d", mtime=(-3, 7)),
        device(b"dev", 8, 300),
        symlink(b"link", b"a"),
        *(file(b"d/%04d" % number) for number in range(500)),
    ]
    return FuseServer(View(merge([layer_of(*items)]), _Chunks()), -1)


def _ask(server: FuseServer, operation: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
    length = 40 + len(body)
    header = struct.pack("<IIQQIIIHH", length, operation, 77, node, 0, 0, 0, 0, 0)
    answer = server.answer(header + body)
    assert answer is not None
    size, error, unique = struct.unpack_from("<IiQ", answer)
    assert (size, unique) == (len(answer), 77)
    return error, answer[16:]


def _node(server: FuseServer, name: bytes, parent: int = 1) -> int:
    error, body = _ask(server, LOOKUP, parent, name + b"\0")
    assert error == 0
    return int(struct.unpack_from("<Q", body)[0])


def test_structures_have_the_sizes_of_the_header() -> None:
    assert (fuseserver.IN_HEADER.size, fuseserver.OUT_HEADER.size) == (40, 16)
    assert (fuseserver.ATTR.size, fuseserver.ENTRY.size + fuseserver.ATTR.size) == (88, 128)
    assert (fuseserver.INIT_OUT.size, fuseserver.STATFS.size) == (64, 80)
    assert fuseserver.ATTR_OUT.size == 16


def test_init_agrees_on_what_both_can(server: FuseServer) -> None:
    error, body = _ask(server, INIT, 0, struct.pack("<IIII44x", 7, 40, 1 << 20, 1 << 17 | 1 << 10))
    major, minor, readahead, flags = struct.unpack_from("<IIII", body)
    assert (error, major, minor, readahead, flags) == (0, 7, 31, 1 << 20, 1 << 17)
    assert _ask(server, INIT, 0, struct.pack("<IIII", 6, 1, 0, 0))[0] == -errno.EPROTO


def test_a_name_that_is_not_there_is_remembered_for_ever(server: FuseServer) -> None:
    error, body = _ask(server, LOOKUP, 1, b"absent\0")
    node, _, valid = struct.unpack_from("<QQQ", body)
    assert (error, node, valid, len(body)) == (0, 0, 0xFFFFFFFF, 128)


def test_attributes(server: FuseServer) -> None:
    error, body = _ask(server, GETATTR, _node(server, b"d"), bytes(16))
    assert (error, len(body)) == (0, 104)
    _, _, _, ino, _, _, atime, mtime, _, _, nsec, _, mode = struct.unpack_from(
        "<QIIQQQqqqIIII", body
    )
    assert (ino, mtime, atime, nsec) == (_node(server, b"d"), -3, -3, 7)
    assert mode == stat.S_IFDIR | 0o755
    _, body = _ask(server, GETATTR, _node(server, b"dev"), bytes(16))
    rdev = struct.unpack_from("<I", body, 16 + 76)[0]
    assert rdev == (300 & 0xFF) | 8 << 8 | (300 & ~0xFF) << 12


@pytest.mark.parametrize(("offset", "size"), [(0, 20), (0, 4096), (5, 10), (19, 5), (20, 5)])
def test_reads(server: FuseServer, offset: int, size: int) -> None:
    body = struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)
    want = (bytes([3]) * 10 + bytes([4]) * 10)[offset : offset + size]
    assert _ask(server, READ, _node(server, b"a"), body) == (0, want)


def test_damage_is_an_io_error_and_is_told(
    server: FuseServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = struct.pack("<QQIIQII", 0, 0, 10, 0, 0, 0, 0)
    assert _ask(server, READ, _node(server, b"bad"), body) == (-errno.EIO, b"")
    assert caplog.messages == [f"operation {READ}: damaged"]


@pytest.mark.parametrize(("operation", "head"), [(READDIR, 0), (READDIRPLUS, 128)])
@pytest.mark.parametrize("size", [512, 4096, 1 << 20])
def test_a_folder_is_listed_in_pieces(
    server: FuseServer, operation: int, head: int, size: int
) -> None:
    node, at, names = _node(server, b"d"), 0, []
    while True:
        error, body = _ask(
            server, operation, node, struct.pack("<QQIIQII", 0, at, size, 0, 0, 0, 0)
        )
        assert error == 0
        assert len(body) <= size
        if not body:
            break
        place = 0
        while place < len(body):
            ino, at, length, kind = struct.unpack_from("<QQII", body, place + head)
            name = body[place + head + 24 : place + head + 24 + length]
            if head and name not in (b".", b".."):
                assert struct.unpack_from("<Q", body, place)[0] == ino == _node(server, name, node)
            assert kind == (stat.S_IFDIR if name in (b".", b"..") else stat.S_IFREG) >> 12
            names.append(name)
            place += head + (24 + length + 7) // 8 * 8
    assert names == [b".", b"..", *(b"%04d" % number for number in range(500))]


def test_extended_attributes(server: FuseServer) -> None:
    node = _node(server, b"a")
    ask = struct.Struct("<II")
    assert _ask(server, GETXATTR, node, ask.pack(0, 0) + b"user.x\0") == (0, ask.pack(5, 0))
    assert _ask(server, GETXATTR, node, ask.pack(9, 0) + b"user.x\0") == (0, b"value")
    assert _ask(server, GETXATTR, node, ask.pack(4, 0) + b"user.x\0") == (-errno.ERANGE, b"")
    assert _ask(server, GETXATTR, node, ask.pack(9, 0) + b"user.z\0") == (-errno.ENODATA, b"")
    assert _ask(server, LISTXATTR, node, ask.pack(99, 0)) == (0, b"user.x\0user.y\0")


def test_links_statistics_and_what_there_is_not(server: FuseServer) -> None:
    assert _ask(server, READLINK, _node(server, b"link")) == (0, b"a")
    assert len(_ask(server, STATFS, 1)[1]) == 80
    assert _ask(server, OPEN, 2, bytes(8)) == (-errno.ENOSYS, b"")
    assert _ask(server, GETATTR, 100_000, bytes(16)) == (-errno.ESTALE, b"")
    assert _ask(server, READLINK, _node(server, b"a")) == (-errno.EIO, b"")


def test_forget_gets_no_answer(server: FuseServer) -> None:
    request = struct.pack("<IIQQIIIHHQ", 48, FORGET, 1, 2, 0, 0, 0, 0, 0, 1)
    assert server.answer(request) is None

"""The process behind a FUSE mount: reads requests of the kernel, answers from a view, ends when it is unmounted.

    IN_HEADER  arguments of the operation            /dev/fuse ──> several threads ──> /dev/fuse
    OUT_HEADER  answer

A node is an inode of the tree plus 1, so that the root is 1, as the protocol wants it; nodes need no book-keeping.
Everything may be cached for ever, also that a name does not exist. `open` is answered with ENOSYS once, which tells
the kernel to do without and to keep the pages of files. Damaged data is EIO.

Source: Linux `include/uapi/linux/fuse.h`, protocol 7.31 and what later ones keep of it.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import sys
import threading
from contextlib import suppress
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layerstore.digest import DiffID, parse_digest
from layerstore.errors import LayerstoreError
from layerstore.mount.siblings import SiblingReader
from layerstore.store.store import Store
from layerstore.tree import Kind
from layerstore.view import open_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.view import View

__all__ = ["FuseServer", "main"]

IN_HEADER = struct.Struct(
    "<IIQQIIIHH"
)  # length, operation, unique, node, uid, gid, pid, extension, -
OUT_HEADER = struct.Struct("<IiQ")  # length, -errno, unique
INIT_IN = struct.Struct("<IIII")  # major, minor, readahead, flags
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
ENTRY = struct.Struct(
    "<QQQQII"
)  # node, generation, valid of the name, of the attributes, ns of both
ATTR_OUT = struct.Struct("<QII")
READ_IN = struct.Struct("<QQII")  # handle, offset, size, flags
XATTR = struct.Struct("<II")
DIRENT = struct.Struct("<QQII")  # node, offset of the next, name length, type
STATFS = struct.Struct("<QQQQQIIII24x")

_log = logging.getLogger(__name__)

_VERSION = (7, 31)
_FOREVER = (1 << 32) - 1  # seconds
_ASYNC_READ, _EXPORT, _READDIRPLUS, _READDIRPLUS_AUTO = 1, 1 << 4, 1 << 13, 1 << 14
_NO_OPEN, _PARALLEL_DIROPS = 1 << 17, 1 << 18
_MAX_PAGES, _CACHE_LINKS, _NO_OPENDIR = 1 << 22, 1 << 23, 1 << 24
_WANTED = (
    _ASYNC_READ | _EXPORT | _READDIRPLUS | _READDIRPLUS_AUTO | _NO_OPEN | _PARALLEL_DIROPS
    | _MAX_PAGES | _CACHE_LINKS | _NO_OPENDIR
)  # fmt: skip
_INIT = 26
_UNANSWERED = (2, 36, 42)  # forget, interrupt, batch of forget
_READ = 1 << 20  # bytes of one read, and of the kernel's readahead
_PAGE = 4096
_REQUEST = 64 << 10  # bytes of the largest request, with room: nothing is written
_THREADS = 4
_MODES = {
    Kind.FILE: 0o100000, Kind.DIRECTORY: 0o040000, Kind.SYMLINK: 0o120000,
    Kind.CHARACTER: 0o020000, Kind.BLOCK: 0o060000, Kind.FIFO: 0o010000,
}  # fmt: skip


class _Refused(Exception):
    """Answer with an error number."""

    def __init__(self, code: int) -> None:
        self.code = code


class FuseServer:
    """Answers for one connection. Thread safety: `answer` from any thread."""

    def __init__(self, view: View, connection: int) -> None:
        self._view, self._tree, self._connection = view, view.tree, connection
        self._siblings = SiblingReader(view)
        self._operations: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup, 3: self._getattr, 5: self._readlink, 15: self._read, 17: self._statfs,
            22: self._getxattr, 23: self._listxattr, 26: self._init, 28: self._readdir,
            44: self._readdirplus, 18: self._nothing, 29: self._nothing,
            38: self._nothing,
        }  # fmt: skip

    def serve(self) -> None:
        """Answer until the mount is gone, in several threads."""
        threads = [threading.Thread(target=self._loop) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def answer(self, request: bytes) -> bytes | None:
        """The answer to a request; None for those that get none (forget, interrupt)."""
        _, operation, unique, node, *_ = IN_HEADER.unpack_from(request)
        if operation in _UNANSWERED:
            return None
        body, code = b"", 0
        try:
            body = self._do(operation, node, request[IN_HEADER.size :])
        except _Refused as error:
            code = error.code
        except Exception as error:  # whatever it is, the one who reads must not hang
            is_known = isinstance(error, (LayerstoreError, OSError))
            _log.error("operation %d: %s", operation, error, exc_info=not is_known)
            code = errno.EIO
        return OUT_HEADER.pack(OUT_HEADER.size + len(body), -code, unique) + body

    def _do(self, operation: int, node: int, body: bytes) -> bytes:
        function = self._operations.get(operation)
        if function is None:
            raise _Refused(errno.ENOSYS)
        if not 1 <= node <= len(self._tree) and operation != _INIT:
            raise _Refused(errno.ESTALE)
        return function(node - 1, body)

    def _loop(self) -> None:
        while True:
            try:
                request = os.read(self._connection, _REQUEST)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue  # the request was taken back
                return  # ENODEV: unmounted
            if not request:
                return
            answer = self.answer(request)
            if answer is not None:
                try:
                    os.write(self._connection, answer)
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return  # ENOENT: nobody waits for it any more

    def _init(self, inode: int, body: bytes) -> bytes:
        del inode
        major, minor, readahead, flags = INIT_IN.unpack_from(body)
        if major != _VERSION[0] or minor < _VERSION[1]:
            raise _Refused(errno.EPROTO)
        return INIT_OUT.pack(
            *_VERSION,
            min(readahead, _READ),
            flags & _WANTED,
            64,
            48,
            _PAGE,
            1,
            _READ // _PAGE,
            0,
            0,
        )

    def _lookup(self, inode: int, body: bytes) -> bytes:
        child = self._tree.child(inode, body[: body.index(b"\0")])
        if child is None:
            return ENTRY.pack(0, 0, _FOREVER, 0, 0, 0) + bytes(ATTR.size)
        return self._entry(child)

    def _getattr(self, inode: int, body: bytes) -> bytes:
        del body
        return ATTR_OUT.pack(_FOREVER, 0, 0) + self._attributes(inode)

    def _readlink(self, inode: int, body: bytes) -> bytes:
        del body
        return self._tree.target_of(inode)

    def _read(self, inode: int, body: bytes) -> bytes:
        _, offset, size, _ = READ_IN.unpack_from(body)
        self._siblings.before_read(inode, offset, size)
        return self._view.read_inode(inode, offset, size)

    def _statfs(self, inode: int, body: bytes) -> bytes:
        del inode, body
        blocks = -(-int(self._tree.inodes["size"].sum()) // _PAGE)
        return STATFS.pack(blocks, 0, 0, len(self._tree), 0, _PAGE, 255, _PAGE, 0)

    def _getxattr(self, inode: int, body: bytes) -> bytes:
        room, _ = XATTR.unpack_from(body)
        value = self._tree.xattrs_of(inode).get(body[XATTR.size : body.index(b"\0", XATTR.size)])
        if value is None:
            raise _Refused(errno.ENODATA)
        return _fit(value, room)

    def _listxattr(self, inode: int, body: bytes) -> bytes:
        room, _ = XATTR.unpack_from(body)
        return _fit(b"".join(name + b"\0" for name in sorted(self._tree.xattrs_of(inode))), room)

    def _readdir(self, inode: int, body: bytes) -> bytes:
        return self._list(inode, body, with_attributes=False)

    def _readdirplus(self, inode: int, body: bytes) -> bytes:
        return self._list(inode, body, with_attributes=True)

    def _nothing(self, inode: int, body: bytes) -> bytes:
        del inode, body
        return b""

    def _list(self, inode: int, body: bytes, *, with_attributes: bool) -> bytes:
        """Entries from an offset on: `.`, `..`, then the names; the offset of an entry is its place plus 1."""
        _, first, size, _ = READ_IN.unpack_from(body)
        tree = self._tree
        start, end = np.searchsorted(tree.parents, (inode, inode + 1)).tolist()
        dots = [(b".", inode), (b"..", tree.parent_of(inode))]
        out, room = [], size
        for at in range(first, end - start + len(dots)):
            if at < len(dots):
                name, child = dots[at]
            else:
                entry = start + at - len(dots)
                name, child = tree.names[entry], int(tree.children[entry])
            kind = _MODES[tree.kind(child)] >> 12
            dirent = DIRENT.pack(child + 1, at + 1, len(name), kind) + name
            dirent += bytes(-len(dirent) % 8)
            if with_attributes:
                # A node of 0: the kernel takes no reference, as it must not for the dots.
                plus = self._entry(child) if at >= len(dots) else bytes(ENTRY.size + ATTR.size)
                dirent = plus + dirent
            if len(dirent) > room:
                break
            out.append(dirent)
            room -= len(dirent)
        return b"".join(out)

    def _entry(self, inode: int) -> bytes:
        return ENTRY.pack(inode + 1, 0, _FOREVER, _FOREVER, 0, 0) + self._attributes(inode)

    def _attributes(self, inode: int) -> bytes:
        kind, mode, uid, gid, mtime, nsec, size, nlink, major, minor, *_ = self._tree.inodes[
            inode
        ].item()
        device = 0
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            device = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
        return ATTR.pack(
            inode + 1, size, -(-size // 512), mtime, mtime, mtime, nsec, nsec, nsec,
            _MODES[kind] | mode, nlink, uid, gid, device, _PAGE, 0,
        )  # fmt: skip


def _fit(value: bytes, room: int) -> bytes:
    """An attribute's value, or its length if that is what was asked."""
    if room == 0:
        return XATTR.pack(len(value), 0)
    if len(value) > room:
        raise _Refused(errno.ERANGE)
    return value


def _log_to_system(root: str) -> None:
    """Nobody reads what a server prints: what it could not answer goes to the system's log, where there is one."""
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):
        handler = SysLogHandler("/dev/log")
    name = root.replace("%", "%%")
    handler.setFormatter(logging.Formatter(f"layerstore: fuse mount of {name}: %(message)s"))
    _log.addHandler(handler)
    _log.propagate = False


def main() -> None:
    """Serve: ROOT CONNECTION DIFF-ID…; says "ready" on standard output, or what is wrong."""
    root, connection, *diff_ids = sys.argv[1:]
    try:
        store = Store(Path(root), create=False, read_only=True)
        view = open_view(store, [DiffID(parse_digest(diff_id)) for diff_id in diff_ids])
    except LayerstoreError as error:
        sys.exit(str(error))
    server = FuseServer(view, int(connection))
    _log_to_system(root)
    os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    server.serve()
    store.close()

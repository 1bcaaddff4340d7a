"""The driver `checkout`: an image's root filesystem as plain files in an empty folder. It works everywhere.

Contents are cloned from ROOT/objects where that has them and the filesystem can share blocks (FICLONE), else written
out; holes stay holes. The files are nobody else's; those of the driver `hardlinks` are shared.

Nothing of an image can get outside the folder: it is opened once, each directory in it from there down, name by name,
without following a symbolic link, and everything is made with exclusive calls relative to that descriptor. An image has
no `..`. Whoever swaps a name for a link meanwhile makes the checkout fail, and leads it nowhere.

Without root, owners are not set, and devices and attributes other than `user.*` are left out.

    TARGET/.layerstore-<token>    there while the checkout is being made; what it marks may be taken away
    ROOT/run/checkout-<token>     there when it is finished

Source: openat(2), ioctl_ficlone(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layerstore.cache import cached_reader
from layerstore.digest import DiffID, parse_digest
from layerstore.errors import Busy, CorruptStore, FailedPrecondition, MalformedInput
from layerstore.formats.erofs import content_path
from layerstore.mount.contents import name_contents
from layerstore.mount.driver import Needs, Support
from layerstore.mount.images import merged_tree
from layerstore.mount.links import Metadata
from layerstore.mount.mountinfo import read_mountinfo
from layerstore.store import files
from layerstore.tree import HOLE, ROOT, Kind, Tree
from layerstore.view import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import BinaryIO

    from layerstore.mount.links import LinkPool
    from layerstore.mount.places import Places
    from layerstore.store.mountstate import MountRecord
    from layerstore.store.store import Store
    from layerstore.tree import Dirent

__all__ = [
    "CheckoutDriver",
    "check_out",
    "read_ahead",
    "remove_contents",
    "write_sparse",
    "write_view",
]

_FICLONE = 0x40049409
_NO_CLONE = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM)
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AHEAD = 8 << 20  # bytes of files whose chunks are read together
_DEVICES = {Kind.CHARACTER: 0o020000, Kind.BLOCK: 0o060000}


class CheckoutDriver:
    """See the module. Thread safety: stateless."""

    name = "checkout"

    def finished_mark(self, places: Places, record: MountRecord) -> Path | None:
        """Made last; it survives a boot, as the files do."""
        return _finished(places, record.token)

    def probe(self, store: Store, places: Places, *, rw: bool) -> Support:
        """It works everywhere."""
        del store, places, rw
        return Support(True)

    def prepare(self, store: Store, places: Places, diff_ids: Sequence[DiffID]) -> Needs:
        """Nothing is needed."""
        del store, places, diff_ids
        return Needs()

    def mount(self, store: Store, places: Places, record: MountRecord) -> None:
        """Write all files.

        Raises: FailedPrecondition: the folder is not empty. StoreFull, CorruptStore, MalformedInput.
        """
        mark = _mark(record.token)
        diff_ids = [DiffID(parse_digest(diff_id)) for diff_id in record.diff_ids]
        with _directory(record.target) as fd:
            if os.listdir(fd):  # noqa: PTH208 - of a descriptor
                raise FailedPrecondition(
                    f"{record.target} is not empty; a checkout needs an empty folder"
                )
            os.close(os.open(mark, _CREATE, 0o600, dir_fd=fd))
            try:
                view = View(merged_tree(store, diff_ids), cached_reader(store))
                with files.no_room(f"write {record.target}"):
                    self._write(store, places, view, fd)
            except BaseException:
                _remove_contents(fd)
                raise
            status = os.fstat(fd)
            os.unlink(mark, dir_fd=fd)
            os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
        _finished(places, record.token).touch(mode=0o600)

    def _write(self, store: Store, places: Places, view: View, folder: int) -> None:
        """Write the files into the open directory `folder`."""
        del store
        write_view(view, folder, places.objects)

    def umount(self, store: Store, places: Places, target: Path) -> None:
        """Remove all that is in the folder, changes too. Raises: Busy: something is mounted in it."""
        del store
        prefix = f"{target}/"
        if any(entry.target.startswith(prefix) for entry in read_mountinfo()):
            raise Busy(f"something is mounted in {target}; unmount it first")
        remove_contents(target)

    def discard(self, places: Places, record: MountRecord) -> None:
        """Forget a checkout; what a crash left of an unfinished one goes, as far as it is marked."""
        target = Path(record.target)
        if (target / _mark(record.token)).exists():
            remove_contents(target)
        _finished(places, record.token).unlink(missing_ok=True)


def check_out(view: View, target: Path, objects: Path | None = None) -> None:
    """Write a view into an empty folder; otherwise as `write_view`."""
    with _directory(target) as fd:
        write_view(view, fd, objects)


def write_view(
    view: View, folder: int, objects: Path | None = None, pool: LinkPool | None = None
) -> None:
    """Write a view into the open, empty directory `folder`.

    `objects` is where contents may be cloned from; `pool` has files to link to, and gets those that it has not.

    Raises: MalformedInput: a name that no filesystem has. CorruptStore: a chunk is damaged.
    """
    _Writer(view, folder, objects, pool).write_all()


def write_sparse(file: BinaryIO, view: View, inode: int) -> None:
    """Write a file of a view; pieces of zeros become holes."""
    for piece in view.iter_inode(inode):
        if piece[0] == 0 and not bytes(piece).strip(b"\0"):
            file.seek(len(piece), os.SEEK_CUR)
        else:
            file.write(piece)
    file.truncate(int(view.tree.inodes["size"][inode]))


def read_ahead(view: View, inodes: Iterable[int]) -> Iterator[int]:
    """The inodes again, a group of them at a time whose chunks were read together: many small reads are slow."""
    group: list[int] = []
    size = 0
    for inode in inodes:
        group.append(inode)
        size += int(view.tree.inodes["size"][inode])
        if size >= _AHEAD:
            yield from _read_group(view, group, size)
            group, size = [], 0
    yield from _read_group(view, group, size)


def _read_group(view: View, group: list[int], size: int) -> list[int]:
    if len(group) > 1 and size <= 2 * _AHEAD:  # a large file reads itself in large steps
        numbers = np.concatenate([view.tree.extents_of(inode)["number"] for inode in group])
        with suppress(CorruptStore):  # which file it is will be found again
            view.contents.read(numbers[numbers != HOLE])
    return group


class _Writer:
    """One checkout."""

    def __init__(self, view: View, root: int, objects: Path | None, pool: LinkPool | None) -> None:
        self.root = root
        self._pool = pool
        self._view, self._tree = view, view.tree
        self._is_root = os.geteuid() == 0
        self._objects = objects
        self._names = name_contents(view.tree).of_inodes if objects is not None else []
        self._first: dict[int, tuple[int, bytes]] = {}  # inode -> directory and name it has got
        self._can_clone = objects is not None

    def write_all(self) -> None:
        """Make everything in the order of directory inodes; parents come first."""
        tree = self._tree
        folders = [n for n in range(len(tree)) if tree.kind(n) is Kind.DIRECTORY]
        for folder in folders:
            with self._opened(folder) as fd:
                for name, inode in self._entries(folder):
                    _check_name(name)
                    self._write_entry(fd, folder, name, inode)
        for folder in reversed(folders):  # last, as making entries changes times
            with self._opened(folder) as fd:
                self._set_attributes(fd, folder)

    def _entries(self, folder: int) -> Iterator[Dirent]:
        """The entries of a directory: those to link to first, then those to write, whose chunks are read together."""
        linked = self._pool.present if self._pool is not None else set[int]()
        entries = list(self._tree.iter_dir(folder))
        yield from (entry for entry in entries if entry.inode in linked)
        others = [entry for entry in entries if entry.inode not in linked]
        ahead = read_ahead(self._view, [inode for _, inode in others])
        yield from (entry for entry, _ in zip(others, ahead, strict=True))

    def _write_entry(self, fd: int, folder: int, name: bytes, inode: int) -> None:
        kind = self._tree.kind(inode)
        if kind is Kind.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=fd)
            return
        if inode in self._first:
            other, other_name = self._first[inode]
            with self._opened(other) as other_fd:
                os.link(other_name, name, src_dir_fd=other_fd, dst_dir_fd=fd, follow_symlinks=False)
            return
        row = self._tree.inodes[inode]
        match kind:
            case Kind.FILE:
                self._write_file(fd, name, inode)
            case Kind.SYMLINK:
                os.symlink(self._tree.target_of(inode), name, dir_fd=fd)
                self._set_link_attributes(fd, name, inode)
            case Kind.CHARACTER | Kind.BLOCK:
                if not self._is_root:
                    return
                number = os.makedev(int(row["major"]), int(row["minor"]))
                os.mknod(name, _DEVICES[kind] | 0o600, number, dir_fd=fd)
                self._set_link_attributes(fd, name, inode)
            case _:
                os.mkfifo(name, 0o600, dir_fd=fd)
                self._set_link_attributes(fd, name, inode)
        self._first[inode] = folder, name

    def _write_file(self, fd: int, name: bytes, inode: int) -> None:
        if self._pool is not None and self._pool.take(inode, name, fd):
            return
        with os.fdopen(os.open(name, _CREATE, 0o600, dir_fd=fd), "wb") as file:
            if not self._clone(file.fileno(), inode):
                write_sparse(file, self._view, inode)
            file.flush()
            self._set_attributes(file.fileno(), inode)
            if self._pool is not None:
                self._pool.add(inode, file.fileno())

    def _clone(self, fd: int, inode: int) -> bool:
        """Share the blocks of the content in ROOT/objects, if it is there and this can be done."""
        content = self._names[inode] if self._can_clone else None
        if content is None or self._objects is None:
            return False
        path = self._objects / os.fsdecode(content_path(content.hex().encode())[1:])
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.ioctl(fd, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            self._can_clone = False
            return False
        finally:
            os.close(source)
        return True

    def _set_attributes(self, fd: int, inode: int) -> None:
        metadata = Metadata.of(self._tree, inode, is_root=self._is_root)
        if metadata.owner is not None:
            os.fchown(fd, *metadata.owner)
        os.fchmod(fd, metadata.mode)
        for name, value in metadata.xattrs.items():
            os.setxattr(fd, name, value)
        os.utime(fd, ns=(metadata.mtime_ns, metadata.mtime_ns))

    def _set_link_attributes(self, fd: int, name: bytes, inode: int) -> None:
        """As `_set_attributes`, for what is not opened: symbolic links, devices, fifos."""
        metadata = Metadata.of(self._tree, inode, is_root=self._is_root)
        if metadata.owner is not None:
            os.chown(name, *metadata.owner, dir_fd=fd, follow_symlinks=False)
        # By /proc, as these calls take no descriptor of a directory.
        path = b"/proc/self/fd/%d/%s" % (fd, name)
        if self._tree.kind(inode) is not Kind.SYMLINK:
            files.change_mode(name, metadata.mode, dir_fd=fd)
        for key, value in metadata.xattrs.items():
            os.setxattr(path, key, value, follow_symlinks=False)
        times = metadata.mtime_ns, metadata.mtime_ns
        os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

    @contextmanager
    def _opened(self, folder: int) -> Iterator[int]:
        """A directory, reached from the root without following anything."""
        names = _names_of(self._tree, folder)
        fd = os.dup(self.root)
        try:
            for name in names:
                below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)


def _names_of(tree: Tree, folder: int) -> list[bytes]:
    return tree.path_of(folder).split(b"/") if folder != ROOT else []


def _check_name(name: bytes) -> None:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise MalformedInput(f"an image has a file named {name!r}")


def remove_contents(target: Path) -> None:
    """Remove what is in a folder, however deep; symbolic links are removed, not followed."""
    with _directory(target) as fd:
        _remove_contents(fd)


def _remove_contents(fd: int) -> None:
    folders = _unlink_files(fd)
    moved = 0
    while folders:
        name = folders.pop()
        below = _open_anyway(fd, name)
        try:
            # What is deeper comes up here first: neither descriptors nor the stack have to reach it.
            for inner in _unlink_files(below):
                os.close(_open_anyway(below, inner))
                moved += 1
                up = f".layerstore-removed-{moved}"
                os.rename(inner, up, src_dir_fd=below, dst_dir_fd=fd)
                folders.append(up)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=fd)


@contextmanager
def _directory(path: Path | str) -> Iterator[int]:
    fd = os.open(path, _OPEN_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _unlink_files(fd: int) -> list[str]:
    """Remove what is no directory; returns the names of those."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=fd)
    return [name for name, is_folder in found if is_folder]


def _open_anyway(fd: int, name: str) -> int:
    """A directory of ours whatever its mode, and writable from here on."""
    try:
        below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    except PermissionError:
        files.change_mode(name, 0o700, dir_fd=fd)
        below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    os.fchmod(below, 0o700)
    return below


def _mark(token: str) -> str:
    return f".layerstore-{token.partition(':')[2]}"


def _finished(places: Places, token: str) -> Path:
    return places.run / f"checkout-{token.partition(':')[2]}"

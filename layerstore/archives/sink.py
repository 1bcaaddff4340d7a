"""Write an archive of images member by member: into a tar, or into the folder of an OCI layout.

    with TarSink(Path("image.tar")) as sink:
        sink.put("blobs/sha256/9f86...", size, blocks)
        sink.put("index.json", len(index), [index])
        sink.commit()

Nothing is at the target before `commit`: both sinks build beside it and rename, and leaving the context without
`commit` removes what was built. A tar to a stream cannot do that; it lacks its end marker when aborted.

The bytes of a tar depend on names and contents only: mode 0644, owner 0, time 0, in the order of `put`.

Source: POSIX.1-2017 ustar and pax; OCI image-spec `image-layout.md`; rename(2).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from layerstore.errors import AlreadyExists, InvalidArgument
from layerstore.store.files import no_room

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

__all__ = ["FolderSink", "ImageSink", "TarSink"]

_BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"(?:(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+/)*(?!\.{1,2}$)[A-Za-z0-9._-]+")
_INDEX = "index.json"


class ImageSink(Protocol):
    """Where an archive is written. Thread safety: one thread at a time.

    Leaving the context without `commit` aborts: the target is as it was.
    """

    def put(self, name: str, size: int, blocks: Iterable[bytes]) -> None:
        """Write a member of exactly `size` bytes; a name that was put before is ignored, blocks unread.

        Raises:
            InvalidArgument: the name is not a plain relative path, or the blocks are not `size` bytes.
            StoreFull: no room at the target.
        """
        ...

    def commit(self) -> None:
        """Make all of it visible at the target, durably; the sink is of no more use."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class TarSink:
    """An archive as a tar, to a path or straight to a stream, which stays the caller's to close."""

    def __init__(self, target: Path | BinaryIO) -> None:
        """Begin a tar; an existing file at the path is replaced by `commit`.

        Raises: InvalidArgument: the path cannot be written, or is no regular file (open it and give the stream).
        """
        self._names: set[str] = set()
        self._target: Path | None = None
        self._building: Path | None = None
        if isinstance(target, Path):
            self._target = target.resolve()
            if self._target.exists() and not self._target.is_file():
                raise InvalidArgument(f"{target}: not a regular file; open it and give the stream")
            self._building = _sibling(self._target)
            try:
                self._stream: BinaryIO = self._building.open("xb")
            except OSError as error:
                raise InvalidArgument(f"{target}: {error.strerror}") from error
            self._what = target
        else:
            self._stream = target
            self._what = Path(str(getattr(target, "name", "the output")))

    def put(self, name: str, size: int, blocks: Iterable[bytes]) -> None:
        """Write a member; see `ImageSink.put`. Its parent folders become members before it, once."""
        _check_name(name)
        if name in self._names:
            return
        with no_room(f"write {self._what}"):
            for parent in reversed(Path(name).parents[:-1]):
                folder = parent.as_posix() + "/"
                if folder not in self._names:
                    self._write(_header(folder, 0))
                    self._names.add(folder)
            self._write(_header(name, size))
            for block in _exactly(name, size, blocks):
                self._write(block)
            self._write(b"\0" * (-size % _BLOCK))
        self._names.add(name)

    def commit(self) -> None:
        """Write the end marker; for a path, make the tar durable and put it in place."""
        with no_room(f"write {self._what}"):
            self._write(b"\0" * (2 * _BLOCK))
            self._stream.flush()
            if self._target is not None and self._building is not None:
                os.fsync(self._stream.fileno())
                self._stream.close()
                self._building.replace(self._target)
                self._building = None
                _sync_folder(self._target.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._building is not None:
            with suppress(OSError):  # a full disk may refuse the last buffer once more
                self._stream.close()
            self._building.unlink(missing_ok=True)
            self._building = None

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # raw streams may take a part only
            rest = rest[self._stream.write(rest) :]


class FolderSink:
    """The folder of an OCI layout, new or extended.

    A new one is built beside the target and renamed. Into an existing layout, members are renamed one by one at `commit`,
    `index.json` last: a crash between leaves blobs that nothing names. Blobs that it has are kept.

    Attributes:
        index: the `index.json` of the layout that is being extended, else None (`formats.oci.extend_index`).
    """

    def __init__(self, path: Path) -> None:
        """Begin a folder.

        Raises:
            AlreadyExists: the target is there, is not empty, and is no OCI layout.
            InvalidArgument: it cannot be written.
        """
        self._target = path.resolve()
        self.index = _existing_index(self._target)
        self._names: set[str] = set()
        self._building: Path | None = _sibling(self._target)
        try:
            self._building.mkdir()
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror}") from error

    def put(self, name: str, size: int, blocks: Iterable[bytes]) -> None:
        """Write a member; see `ImageSink.put`."""
        _check_name(name)
        if name in self._names or self._building is None:
            return
        if self.index is not None and _is_whole_blob(self._target / name):
            return
        path = self._building / name
        with no_room(f"write {self._target}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for block in _exactly(name, size, blocks):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        self._names.add(name)

    def commit(self) -> None:
        """Put everything in place, durably."""
        if self._building is None:
            return
        with no_room(f"write {self._target}"):
            for folder, _, _ in os.walk(self._building):
                _sync_folder(Path(folder))
            if self.index is None:
                self._building.replace(self._target)
            else:
                self._extend(self._building)
            _sync_folder(self._target.parent)
        self._building = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._building is not None:
            shutil.rmtree(self._building, ignore_errors=True)
            self._building = None

    def _extend(self, building: Path) -> None:
        folders = {self._target}
        for name in sorted(self._names - {_INDEX}):
            place = self._target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            (building / name).replace(place)
            folders.add(place.parent)
        for folder in folders:
            _sync_folder(folder)
        if _INDEX in self._names:
            (building / _INDEX).replace(self._target / _INDEX)
            _sync_folder(self._target)
        shutil.rmtree(building)


def _existing_index(target: Path) -> bytes | None:
    if not target.exists():
        return None
    if not target.is_dir():
        raise AlreadyExists(f"{target}: is a file, where a folder is to be written")
    if (target / "oci-layout").is_file() and (target / _INDEX).is_file():
        return (target / _INDEX).read_bytes()
    if any(target.iterdir()):
        raise AlreadyExists(f"{target}: is not empty and not an OCI layout")
    return None


def _is_whole_blob(path: Path) -> bool:
    """Whether a blob is there with the bytes of its name; a torn or rotten one is replaced."""
    if path.parent.name != "sha256" or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == path.name


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    folder = name.endswith("/")
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    info.mode = 0o755 if folder else 0o644
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _exactly(name: str, size: int, blocks: Iterable[bytes]) -> Iterable[bytes]:
    left = size
    for block in blocks:
        left -= len(block)
        if left < 0:
            break
        yield block
    if left:
        raise InvalidArgument(
            f"{name}: {'more' if left < 0 else 'fewer'} than {size} bytes were given"
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{name[:200]!r} is not a plain relative path of an archive member")


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

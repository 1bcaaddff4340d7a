"""A file inside an archive, readable by several threads at once.

SharedFile    one descriptor, read with pread: no position to fight over
MemberReader  a range of it, with a position of its own
Members       what has named files: a tar, a folder
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from layerstore.errors import MalformedInput, NotFound

if TYPE_CHECKING:
    import io
    from types import TracebackType
    from typing import Self

    from layerstore.limits import Limits

__all__ = ["MemberReader", "Members", "SharedFile", "read_document"]


class SharedFile:
    """An open file of known size, from `base` on. Thread safety: `pread` from any thread, until `close`."""

    def __init__(self, file: io.FileIO, base: int, source: str) -> None:
        self._file, self._base = file, base
        self.source = source
        self.size = max(os.fstat(file.fileno()).st_size - base, 0)

    def pread(self, size: int, offset: int) -> bytes:
        """Give up to `size` bytes from an offset, none behind the end; ValueError once closed."""
        return os.pread(self._file.fileno(), size, self._base + offset)

    def close(self) -> None:
        """Close the descriptor; readers fail from now on."""
        self._file.close()


class MemberReader:
    """A range of a file as a stream.

    Thread safety: one thread at a time for one reader; readers of the same file do not disturb each other.
    """

    def __init__(
        self, file: SharedFile, offset: int, size: int, name: str, *, owns: bool = False
    ) -> None:
        self._file: SharedFile | None = file
        self._offset, self._end, self._owns = offset, offset + size, owns
        self.name, self.size = name, size

    def read(self, size: int = -1, /) -> bytes:
        """Give up to `size` bytes, or all that is left; none at the end.

        Raises: MalformedInput: the file has become shorter than it was.
        """
        file = self._file
        if file is None:
            raise ValueError(f"read of {self.name} after close")
        left = self._end - self._offset
        size = left if size < 0 else min(size, left)
        if not size:
            return b""
        data = file.pread(size, self._offset)
        if not data:
            raise MalformedInput(
                "the file ends early", source=file.source, entry=self.name, offset=self._offset
            )
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Release the file if this reader alone uses it."""
        if self._owns and self._file is not None:
            self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Members(Protocol):
    """Named files of an archive, by relative paths with `/`."""

    @property
    def source(self) -> str:
        """What errors call the archive."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a regular file, None when there is none of that name; MalformedInput when it is odd."""
        ...

    def open(self, name: str) -> MemberReader:
        """Open a regular file; NotFound, or MalformedInput when it is odd."""
        ...

    def close(self) -> None:
        """Release the archive."""
        ...


def read_document(members: Members, name: str, limits: Limits) -> bytes:
    """Read a whole small member.

    Raises:
        NotFound: there is none.
        LimitExceeded: it is larger than `limits.document_bytes`.
    """
    size = members.size(name)
    if size is None:
        raise NotFound(f"{members.source}: no {name}")
    limits.check("document_bytes", size, source=members.source, entry=name)
    parts = []
    with members.open(name) as reader:
        while part := reader.read():
            parts.append(part)
    return b"".join(parts)

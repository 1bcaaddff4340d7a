"""The OCI image layout: in a folder, or as the members of a tar.

    oci-layout              {"imageLayoutVersion": "1.0.0"}
    index.json              the roots: an index of manifests and indexes, names in their annotations
    blobs/sha256/<hex>      everything, by digest; blobs of other platforms may be absent

A folder may come from anybody, so links in it are not followed: every step is opened with O_NOFOLLOW, and only regular
files are read. Bytes that `read_blob` gives are verified; a stream of `open_blob` is for the caller to verify.

Source: OCI image-spec `image-layout.md`; containerd's `io.containerd.image.name` annotation; moby since 25, which
writes such a layout and a `manifest.json` into one archive.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.archives.member import MemberReader, SharedFile, read_document
from layerstore.archives.names import complete_names, names_of_annotations
from layerstore.digest import VerifyingReader
from layerstore.errors import InvalidArgument, MalformedInput, NotFound
from layerstore.formats.oci import (
    MANIFEST_LIMIT,
    Index,
    is_index,
    is_manifest,
    parse_document,
    parse_index,
)
from layerstore.formats.strictjson import open_document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from layerstore.archives.member import Members
    from layerstore.digest import Digest
    from layerstore.formats.oci import Descriptor
    from layerstore.limits import Limits

__all__ = ["INDEX", "LAYOUT", "FolderMembers", "LayoutRoot", "OciLayout"]

LAYOUT = "oci-layout"
INDEX = "index.json"
_MAX_DOCUMENTS = 4096  # manifests and indexes looked into for names


@dataclass(frozen=True, slots=True)
class LayoutRoot:
    """One manifest or index of a layout's `index.json`, with its complete references."""

    names: tuple[str, ...]
    descriptor: Descriptor


class OciLayout:
    """The roots and blobs of a layout. Thread safety: everything but `close`, from any thread.

    Attributes:
        warnings: what was ignored, as text for the user.

    Raises: MalformedInput: `index.json` or `oci-layout` has a wrong shape, or a version other than 1.
    """

    def __init__(
        self,
        members: Members,
        base: str,
        tags: Mapping[Digest, Sequence[str]],
        limits: Limits,
    ) -> None:
        """Read the roots; `base` is the name for images with only a tag, `tags` are more names by config digest."""
        self._members, self._limits = members, limits
        self.warnings: list[str] = []
        _check_version(members, limits)
        data = read_document(members, INDEX, limits)
        index = parse_index(data, f"{members.source} {INDEX}")
        self._roots = self._name(index, base, tags)

    @property
    def source(self) -> str:
        """What errors call the layout."""
        return self._members.source

    def roots(self) -> tuple[LayoutRoot, ...]:
        """The entries of `index.json` in order; one that is listed under several names is one root."""
        return self._roots

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is here, of whatever size."""
        return self._members.size(_blob(digest)) is not None

    def blob_size(self, digest: Digest) -> int:
        """Bytes of a blob; NotFound."""
        size = self._members.size(_blob(digest))
        if size is None:
            raise NotFound(f"{self.source}: no blob {digest}")
        return size

    def open_blob(self, digest: Digest) -> MemberReader:
        """Open a blob, to be closed and to be verified by the caller; NotFound."""
        return self._members.open(_blob(digest))

    def read_blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """Read a whole small blob and verify it.

        Raises:
            NotFound: it is not here.
            MalformedInput: its descriptor says more than `limit` bytes, which its kind never has.
            LimitExceeded: more than `document_bytes`.
            DigestMismatch: its size or digest is not the descriptor's.
        """
        name = f"{self.source} {descriptor.digest}"
        self._limits.check("document_bytes", descriptor.size, source=name)
        if descriptor.size > limit:
            raise MalformedInput(
                f"a document of {descriptor.size} bytes, where {limit} are allowed",
                source=name,
            )
        with self.open_blob(descriptor.digest) as source:
            reader = VerifyingReader(source, descriptor.digest, descriptor.size, name)
            parts = []
            while part := reader.read(limit + 1):
                parts.append(part)
            reader.finish()
        return b"".join(parts)

    def close(self) -> None:
        """Close the layout; open readers of a tar fail from now on."""
        self._members.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _name(
        self, index: Index, base: str, tags: Mapping[Digest, Sequence[str]]
    ) -> tuple[LayoutRoot, ...]:
        names: dict[Digest, list[str]] = {}
        descriptors: dict[Digest, Descriptor] = {}
        for descriptor in index.manifests:
            descriptors.setdefault(descriptor.digest, descriptor)
            found = names_of_annotations(descriptor.annotations, base, self.warnings)
            names.setdefault(descriptor.digest, []).extend(found)
        unused = set(tags)
        for digest, descriptor in descriptors.items() if tags else ():
            for config in self._configs(descriptor):
                names[digest].extend(complete_names(tags.get(config, ()), self.warnings))
                unused.discard(config)
        for config in sorted(unused):
            self.warnings.append(
                f"name ignored: {', '.join(tags[config])} is of no image in {INDEX}"
            )
        return tuple(
            LayoutRoot(tuple(dict.fromkeys(names[digest])), descriptor)
            for digest, descriptor in descriptors.items()
        )

    def _configs(self, root: Descriptor) -> list[Digest]:
        """The config digests of the manifests below a root that are present."""
        configs = []
        pending, seen = [root], {root.digest}
        while pending and len(seen) < _MAX_DOCUMENTS:
            descriptor = pending.pop()
            known = is_index(descriptor.media_type) or is_manifest(descriptor.media_type)
            if not known or not self.has_blob(descriptor.digest):
                continue
            name = f"{self.source} {descriptor.digest}"
            data = self.read_blob(descriptor, MANIFEST_LIMIT)
            document = parse_document(data, descriptor.media_type, name)
            if isinstance(document, Index):
                fresh = [d for d in document.manifests if d.digest not in seen]
                seen.update(d.digest for d in fresh)
                pending.extend(fresh)
            else:
                configs.append(document.config.digest)
        return configs


class FolderMembers:
    """The files below a folder, no link followed below it. Thread safety: everything but `close`.

    Raises: InvalidArgument: the folder cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror}") from error
        self._source = str(path)

    @property
    def source(self) -> str:
        """What errors call the folder."""
        return self._source

    def size(self, name: str) -> int | None:
        """Bytes of a regular file, None when there is none; MalformedInput for a link or a special file."""
        file = self._open(name)
        if file is None:
            return None
        file.close()
        return file.size

    def open(self, name: str) -> MemberReader:
        """Open a regular file; NotFound, or MalformedInput for a link or a special file."""
        file = self._open(name)
        if file is None:
            raise NotFound(f"{self.source}: no {name}")
        return MemberReader(file, 0, file.size, name, owns=True)

    def close(self) -> None:
        """Release the folder; open readers stay usable."""
        if self._root >= 0:
            os.close(self._root)
        self._root = -1

    def _open(self, name: str) -> SharedFile | None:
        *folders, last = name.split("/")
        descriptor = os.dup(self._root)
        try:
            for folder in folders:
                parent = descriptor
                descriptor = os.open(
                    folder,
                    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    dir_fd=parent,
                )
                os.close(parent)
            # O_NONBLOCK: opening a FIFO must not wait for a writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = open(os.open(last, flags, dir_fd=descriptor), "rb", buffering=0)  # noqa: PTH123, SIM115
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR}:
                raise self._odd(name) from None
            raise
        finally:
            os.close(descriptor)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise self._odd(name)
        return SharedFile(file, 0, self.source)

    def _odd(self, name: str) -> MalformedInput:
        return MalformedInput(
            "not a regular file below the layout; links are not followed",
            source=self.source,
            entry=name,
        )


def _blob(digest: Digest) -> str:
    return "blobs/" + digest.replace(":", "/")


def _check_version(members: Members, limits: Limits) -> None:
    # Some writers leave the file out, and the readers in use do not look at it.
    if members.size(LAYOUT) is None:
        return
    root = open_document(read_document(members, LAYOUT, limits), 4096, f"{members.source} {LAYOUT}")
    version = root.text("imageLayoutVersion")
    if version.split(".")[0] != "1":
        raise root.bad(f"imageLayoutVersion {version[:40]!r}, where '1.0.0' is expected")

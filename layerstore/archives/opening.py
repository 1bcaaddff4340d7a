"""Open whatever the user gives as an archive of images.

    folder ───────────────────────────────────────> OciLayout
    file ──> compressed? ──yes──> spool ──┐
    pipe ──> compressed? ──any──> spool ──┴─> tar ─┬─> OciLayout       oci-layout, index.json
                                                   └─> DockerArchive   manifest.json

What it is is told by content, never by file name. An archive with both forms (Docker since 25) is read as an OCI layout,
the form with descriptors, and gets the names of its `manifest.json` on top.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from layerstore.archives import docker, layout
from layerstore.archives.docker import DockerArchive
from layerstore.archives.layout import FolderMembers, OciLayout
from layerstore.archives.member import MemberReader, SharedFile
from layerstore.archives.names import base_name
from layerstore.archives.spool import spool
from layerstore.archives.tarindex import TarIndex
from layerstore.errors import InvalidArgument, MalformedInput, NotFound, Unsupported
from layerstore.formats.codecs import SNIFF_SIZE, Compression, open_decoder, sniff
from layerstore.limits import Limits

if TYPE_CHECKING:
    from layerstore.digest import Readable

__all__ = ["ImageArchive", "open_archive"]

ImageArchive: TypeAlias = DockerArchive | OciLayout


def open_archive(
    source: Path | BinaryIO,
    spool_dir: Path,
    limits: Limits = Limits(),  # noqa: B008  # frozen
) -> ImageArchive:
    """Open an archive of images; use the result as a context manager.

    Args:
        source: a folder, a file, or a stream of bytes from where it stands; a stream stays the caller's to close.
        spool_dir: where a temporary copy goes, if one is needed; it is gone when the archive is closed.
        limits: what the archive may ask for.

    Raises:
        NotFound: no such file.
        MalformedInput: not an archive of images, broken, or beyond the limits.
        StoreFull: no room in `spool_dir`.
    """
    if not isinstance(source, Path):
        return _open_tar(_random_access(source, spool_dir, limits), "", limits)
    if source.is_dir():
        return _open_folder(source, limits)
    try:
        file = open(source, "rb", buffering=0)  # noqa: PTH123, SIM115  # Path.open has no unbuffered type
    except FileNotFoundError as error:
        raise NotFound(f"{source}: no such file or folder") from error
    except OSError as error:
        raise InvalidArgument(f"{source}: {error.strerror}") from error
    with file:
        return _open_tar(_random_access(file, spool_dir, limits), base_name(source.name), limits)


def _open_folder(path: Path, limits: Limits) -> OciLayout:
    members = FolderMembers(path)
    try:
        if members.size(layout.INDEX) is None:
            raise MalformedInput(  # noqa: TRY301
                f"no {layout.INDEX}: not an OCI layout; other archives are read from one file",
                source=str(path),
            )
        return OciLayout(members, base_name(path.resolve().name), {}, limits)
    except BaseException:
        members.close()
        raise


def _open_tar(file: SharedFile, base: str, limits: Limits) -> ImageArchive:
    try:
        index = TarIndex(file, limits)
        has_manifest = index.size(docker.MANIFEST) is not None
        if _is_layout(index):
            tags = docker.names_by_config(index, limits) if has_manifest else {}
            return OciLayout(index, base, tags, limits)
        if has_manifest:
            return DockerArchive(index, limits)
        raise _no_images(index)  # noqa: TRY301
    except BaseException:
        file.close()
        raise


def _is_layout(index: TarIndex) -> bool:
    # A root filesystem may well have an index.json of its own: one file alone does not make a layout.
    if index.size(layout.INDEX) is None:
        return False
    return index.size(layout.LAYOUT) is not None or any(
        n.startswith("blobs/sha256/") for n in index.names()
    )


def _no_images(index: TarIndex) -> Exception:
    if index.size(docker.REPOSITORIES) is not None:
        return Unsupported(
            f"{index.source}: saved by a Docker before 1.10, with no manifest.json; load and save it with a newer one"
        )
    return MalformedInput(
        "no manifest.json and no index.json, so not an archive of images; "
        "if it is a plain root filesystem, use `layerstore import`",
        source=index.source,
    )


def _random_access(source: BinaryIO | io.FileIO, spool_dir: Path, limits: Limits) -> SharedFile:
    """The uncompressed bytes of a stream as a file of its own: the stream's file itself if that can be."""
    name = _name_of(source)
    file = _same_file(source)
    if file is None:
        stream: Readable = source
        head = _read_head(source)
    else:
        shared = SharedFile(file, source.tell(), name)
        head = shared.pread(SNIFF_SIZE, 0)
        if sniff(head) is Compression.NONE:
            return shared
        stream = MemberReader(shared, len(head), shared.size - len(head), name, owns=True)
    try:
        decoder = open_decoder(_Rejoined(head, stream), sniff(head), name)
        return spool(decoder, spool_dir, limits, name)
    finally:
        if isinstance(stream, MemberReader):
            stream.close()


def _same_file(source: BinaryIO | io.FileIO) -> io.FileIO | None:
    """Another descriptor of a regular file behind a stream, else None.

    Only for the classes that are known to give the file's own bytes: a GzipFile has a `fileno` as well.
    """
    raw = source.raw if isinstance(source, io.BufferedReader) else source
    if not isinstance(raw, io.FileIO) or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        return None
    return io.FileIO(os.dup(raw.fileno()), "rb")


def _read_head(source: Readable) -> bytes:
    head = b""
    while len(head) < SNIFF_SIZE and (more := source.read(SNIFF_SIZE - len(head))):
        head += more
    return head


def _name_of(source: BinaryIO | io.FileIO) -> str:
    name = getattr(source, "name", None)
    return os.fsdecode(name) if isinstance(name, str | bytes) else "stream"


class _Rejoined:
    """A stream with the bytes put back that were read to sniff at it."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int, /) -> bytes:
        if not self._head:
            return self._rest.read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data

"""Import: a root filesystem, as a tar or a folder, becomes an image of one layer.

A folder is read as a deterministic tar: names in byte order, PAX headers with nanoseconds and extended attributes,
hard links kept; sockets have no place in a tar and are left out.
"""

from __future__ import annotations

import json
import os
import stat
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.digest import DiffID, digest_of
from layerstore.errors import InvalidArgument
from layerstore.formats import oci
from layerstore.formats.codecs import Compression, sniff
from layerstore.images.changes import apply_changes
from layerstore.images.lookup import host_platform
from layerstore.images.progress import SILENT, CountedReader
from layerstore.ingest import Expected, ingest_document, ingest_layer
from layerstore.reference import parse_reference
from layerstore.store.catalog import BlobRecord, ImageRecord, Wrapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    from layerstore.digest import Digest, Readable
    from layerstore.images.progress import Progress
    from layerstore.ingest import IngestReport
    from layerstore.store.store import Store

__all__ = ["ImportOptions", "ImportReport", "import_rootfs"]

_SNIFF = 64


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the image says of itself.

    Attributes:
        changes: Dockerfile-like words, as `docker import --change`: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL,
            USER, VOLUME, WORKDIR.
        message: comment of its one history entry.
        platform: `os/architecture[/variant]`, this machine's by default.
        created: RFC 3339 text; now by default.
    """

    changes: tuple[str, ...] = ()
    message: str = ""
    platform: str | None = None
    created: str | None = None


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The image that was made."""

    name: str
    id: Digest
    digest: Digest
    layer: IngestReport


def import_rootfs(
    store: Store,
    source: Path | BinaryIO,
    name: str,
    options: ImportOptions,
    progress: Progress = SILENT,
) -> ImportReport:
    """Make an image named `name` from a tar (plain or compressed, file or stream) or from a folder.

    Raises:
        MalformedInput: not a tar.
        InvalidArgument: the name, or a change.
        StoreFull.
    """
    full_name = str(parse_reference(name))
    runtime = apply_changes({}, options.changes)
    label = str(source) if isinstance(source, Path) else "standard input"
    progress.start(
        label, source.stat().st_size if isinstance(source, Path) and source.is_file() else None
    )
    outcome = "failed"
    try:
        with store.begin() as session:
            with _open_rootfs(source) as (stream, compression):
                counted = CountedReader(stream, progress.advance)
                layer = ingest_layer(counted, Expected(label), compression, session)
            config = _config(layer.diff_id, runtime, options)
            config_digest = digest_of(config)
            manifest = oci.encode_manifest(
                oci.Descriptor(oci.OCI_CONFIG, config_digest, len(config)),
                [oci.Descriptor(oci.OCI_LAYER, layer.diff_id, layer.size)],
            )
            digest = digest_of(manifest)
            documents = [
                (digest_of(data), len(data), ingest_document(data, session))
                for data in (config, manifest)
            ]
            blob = BlobRecord(layer.size, Wrapping.PLAIN, layer.diff_id, Compression.NONE.value, ())
            now = int(datetime.now(UTC).timestamp() * 1e9)
            with session.commit() as txn:
                session.catalog.put_blob(txn, layer.diff_id, blob)
                for document, size, stretches in documents:
                    record = BlobRecord(
                        size, Wrapping.KEPT, None, Compression.NONE.value, stretches()
                    )
                    session.catalog.put_blob(txn, document, record)
                session.catalog.put_image(
                    txn, digest, ImageRecord(config_digest, (layer.diff_id,), now)
                )
                session.catalog.put_ref(txn, full_name, digest)
        outcome = "imported"
    finally:
        progress.finish(outcome)
    return ImportReport(full_name, config_digest, digest, layer)


def _config(diff_id: DiffID, runtime: dict[str, Any], options: ImportOptions) -> bytes:
    platform = oci.parse_platform(options.platform) if options.platform else host_platform()
    created = options.created or datetime.now(UTC).isoformat().replace("+00:00", "Z")
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        **({"variant": platform.variant} if platform.variant else {}),
        "created": created,
        "config": runtime,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "comment": options.message or "imported by layerstore"}],
    }
    return json.dumps(document, separators=(",", ":")).encode()


@contextmanager
def _open_rootfs(source: Path | BinaryIO) -> Iterator[tuple[Readable, Compression]]:
    """A tar of the root filesystem, and how it is compressed."""
    if not isinstance(source, Path):
        head = source.read(_SNIFF)
        yield _Prefixed(head, source), sniff(head)
    elif source.is_dir():
        with _folder_tar(source) as stream:
            yield stream, Compression.NONE
    else:
        try:
            file = source.open("rb")
        except OSError as error:
            raise InvalidArgument(f"cannot read {source}: {error.strerror}") from error
        with file:
            head = file.read(_SNIFF)
            yield _Prefixed(head, file), sniff(head)


class _Prefixed:
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._rest.read(size)


@contextmanager
def _folder_tar(folder: Path) -> Iterator[Readable]:
    """A folder as a tar, written by a thread into a pipe."""
    read_end, write_end = os.pipe()
    failure: list[BaseException] = []

    def write() -> None:
        try:
            with (
                os.fdopen(write_end, "wb") as pipe,
                tarfile.open(mode="w|", fileobj=pipe, format=tarfile.PAX_FORMAT) as tar,
            ):
                _add_folder(tar, folder, ".")
        except BrokenPipeError:
            return  # the reader has given up, and says why
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=write, name="layerstore-folder", daemon=True)
    with os.fdopen(read_end, "rb") as pipe:
        thread.start()
        yield _Checked(pipe, thread, failure)
    thread.join()


class _Checked:
    """The pipe's end is the tar's end only if the writer did not fail."""

    def __init__(
        self, pipe: BinaryIO, thread: threading.Thread, failure: list[BaseException]
    ) -> None:
        self._pipe, self._thread, self._failure = pipe, thread, failure

    def read(self, size: int) -> bytes:
        data = self._pipe.read(size)
        if not data:
            self._thread.join()
            if self._failure:
                raise InvalidArgument(
                    f"cannot read the folder: {self._failure[0]}"
                ) from self._failure[0]
        return data


def _add_folder(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a folder and all below it; hard links are found by tarfile itself."""
    _add(tar, path, name)
    with os.scandir(path) as entries:
        children = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in children:
        child = f"{name}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            _add_folder(tar, path / entry.name, child)
        else:
            _add(tar, path / entry.name, child)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.lstat()
    if stat.S_ISSOCK(status.st_mode):
        return
    info = tar.gettarinfo(path, arcname=name)
    records = dict(info.pax_headers)
    info.uname = info.gname = ""
    if status.st_mtime_ns % 10**9:
        seconds, nsec = divmod(abs(status.st_mtime_ns), 10**9)
        records["mtime"] = f"{'-' if status.st_mtime_ns < 0 else ''}{seconds}.{nsec:09d}"
        info.mtime = status.st_mtime_ns // 10**9
    for key in sorted(os.listxattr(path, follow_symlinks=False)):
        value = os.getxattr(path, key, follow_symlinks=False)
        records[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    info.pax_headers = records
    if info.isreg():
        with path.open("rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)

"""Commit: what a writable snapshot shows becomes an image, on top of the one it came from.

    snapshot ── stack below + its changes ──> layers      config of the base image, changed, history one entry longer
                                               └────────> manifest: the base's layers as they are known, the new one plain

The snapshot stays as it is, as with `docker commit`. The base image is the one that the snapshot was forked from (its
label), else one whose layers are the bottom of the stack, the longest such; without one the config starts empty.

Source: OCI image-spec `config.md`, `manifest.md`; `docker commit`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstore import emit
from layerstore.digest import DiffID, digest_of, parse_digest
from layerstore.errors import CorruptStore, InvalidArgument, NotFound
from layerstore.formats import oci
from layerstore.formats.codecs import Compression
from layerstore.images.changes import apply_changes
from layerstore.images.lookup import find_image, host_platform
from layerstore.ingest import ingest_document
from layerstore.reference import parse_reference
from layerstore.snapshots import SnapshotKind
from layerstore.store.catalog import BlobRecord, ImageRecord, Wrapping
from layerstore.store.mountstate import MountTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerstore.digest import Digest
    from layerstore.ingest import IngestReport
    from layerstore.snapshots import Info, Snapshots
    from layerstore.store.session import WriteSession
    from layerstore.store.store import Store

__all__ = ["IMAGE_LABEL", "CommitOptions", "CommitReport", "commit_image", "fork_image"]

IMAGE_LABEL = (
    "layerstore.image"  # label of a snapshot: the manifest digest of the image it stands on
)

# How a layer that was stored under Docker's name is called in an OCI manifest.
_OCI_TYPES = {
    oci.DOCKER_LAYER: oci.OCI_LAYER,
    oci.DOCKER_LAYER_GZIP: oci.OCI_LAYER_GZIP,
    oci.DOCKER_LAYER_ZSTD: oci.OCI_LAYER_ZSTD,
}


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """What the new image says of itself.

    Attributes:
        author: of the image, and of its new history entry.
        message: comment of the new history entry.
        changes: Dockerfile-like words, as for `import_rootfs`.
        created: RFC 3339 text; now by default.
    """

    author: str = ""
    message: str = ""
    changes: tuple[str, ...] = ()
    created: str | None = None


@dataclass(frozen=True, slots=True)
class CommitReport:
    """The image that was made; `layer` is None for a committed snapshot, whose layers were there."""

    name: str
    id: Digest
    digest: Digest
    layer: IngestReport | None


@dataclass(frozen=True, slots=True)
class _Base:
    """The image below: its config as it is, and what is known of its layers' blobs."""

    config: dict[str, Any]
    layers: dict[DiffID, oci.Descriptor]


def fork_image(
    store: Store, snapshots: Snapshots, image: str, keys: Sequence[str], platform: str | None = None
) -> list[Info]:
    """Make writable root filesystems of an image, all or none.

    Raises: NotFound: no such image. AlreadyExists: a key is in use. InvalidArgument, StoreFull.
    """
    digest = find_image(store, image, platform)
    with store.read() as txn:
        record = store.catalog.image(txn, digest)
    if record is None:
        raise NotFound(f"{image} was removed meanwhile")
    return snapshots.fork(record.diff_ids, keys, {IMAGE_LABEL: digest})


def commit_image(
    store: Store,
    snapshots: Snapshots,
    source: str | os.PathLike[str],
    name: str,
    options: CommitOptions = CommitOptions(),
) -> CommitReport:
    """Make an image named `name` of a snapshot, given by its key or by the directory where it is mounted.

    Raises:
        NotFound: no such snapshot, or nothing of this store is mounted there.
        FailedPrecondition: the snapshot is a view, or a file changed while it was read.
        InvalidArgument: the name, or a change.
        StoreFull: nothing became visible.
    """
    reference = parse_reference(name)
    if reference.digest is not None:
        raise InvalidArgument(f"{name} has a digest; a name to give has only a tag")
    apply_changes({}, options.changes)
    with store.begin() as session:  # it keeps the new layer until the image leads to it
        stack, layer, labels = _source(store, snapshots, source, session)
        session.hold(stack)
        base = _find_base(store, labels.get(IMAGE_LABEL), stack, session)
        created = options.created or datetime.now(UTC).isoformat().replace("+00:00", "Z")
        config = _config(base, stack, options, created)
        digest = _commit(store, session, stack, base, config, str(reference))
    return CommitReport(str(reference), digest_of(config), digest, layer)


def _source(
    store: Store, snapshots: Snapshots, source: str | os.PathLike[str], session: WriteSession
) -> tuple[tuple[DiffID, ...], IngestReport | None, Mapping[str, str]]:
    """The layers of a snapshot or of a mount, the newest of them just made if it was writable; and its labels."""
    if isinstance(source, str):
        try:
            info = snapshots.stat(source)
        except (NotFound, InvalidArgument):
            if not Path(source).is_dir():
                raise
        else:
            return _of_snapshot(snapshots, info, session)
    place = os.path.realpath(source)
    with store.read() as txn:
        records = [record for _, record in MountTable(store.database).items(txn)]
    for record in records:
        if record.target == place and record.upper:
            below = tuple(DiffID(parse_digest(diff_id)) for diff_id in record.diff_ids)
            upper = Path(record.upper) / "fs"
            captured = snapshots.capture_upper(upper, below, f"the mount at {place}", session)
            return (*below, captured.layer.diff_id), captured.layer, {}
    upper = _mounted_upper(place)
    return _of_snapshot(snapshots, snapshots.stat(snapshots.key_of_upper(upper)), session)


def _of_snapshot(
    snapshots: Snapshots, info: Info, session: WriteSession
) -> tuple[tuple[DiffID, ...], IngestReport | None, Mapping[str, str]]:
    if info.kind is SnapshotKind.COMMITTED:
        return snapshots.stack(info.name), None, info.labels
    below, layer = snapshots.capture(info.name, session)
    return (*below, layer.diff_id), layer, info.labels


def _mounted_upper(place: str) -> Path:
    """The upper directory of the overlay, or the root of the bind mount, that is mounted on top there."""
    upper = ""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        words = line.split()
        if _plain(words[4]) != os.fsencode(place):
            continue
        kind, _, options = words[words.index(b"-") + 1 :][:3]
        if kind == b"overlay":
            pairs = dict(word.partition(b"=")[::2] for word in options.split(b","))
            upper = os.fsdecode(_plain(pairs.get(b"upperdir", b"")))
        else:
            upper = os.fsdecode(_plain(words[3]))
    if not upper:
        raise NotFound(f"{place}: no such snapshot, and nothing writable mounted there")
    return Path(upper)


def _plain(text: bytes) -> bytes:
    """A field of mountinfo, whose white space and backslashes are octal."""
    for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
        text = text.replace(code, bytes([int(code[1:], 8)]))
    return text


def _find_base(
    store: Store, named: str | None, stack: tuple[DiffID, ...], session: WriteSession
) -> _Base | None:
    with store.read() as txn:
        images = {digest: record.diff_ids for digest, record in store.catalog.images(txn)}
    found = [
        digest
        for digest, diff_ids in images.items()
        if diff_ids == stack[: len(diff_ids)] and (named is None or digest == named)
    ]
    if not found:
        # The image was removed meanwhile: its layers are there all the same, and may be another image's.
        found = [digest for digest, ids in images.items() if ids == stack[: len(ids)]]
    if not found:
        return None
    digest = max(found, key=lambda one: (len(images[one]), one))
    session.hold([digest])
    try:
        manifest = oci.parse_manifest(emit.read_document(store, digest), digest)
        config = json.loads(emit.read_document(store, manifest.config.digest))
    except NotFound:
        return None  # collected before it was held
    return _Base(config, dict(zip(images[digest], manifest.layers, strict=True)))


def _config(
    base: _Base | None, stack: Sequence[DiffID], options: CommitOptions, created: str
) -> bytes:
    """The base's config with what is new; members that nobody here knows stay."""
    document: dict[str, Any] = dict(base.config) if base else {}
    for stale in ("id", "parent", "container", "container_config", "size"):
        document.pop(stale, None)
    if not document.get("os"):
        platform = host_platform()
        document |= {"os": platform.os, "architecture": platform.architecture}
    document["created"] = created
    if options.author:
        document["author"] = options.author
    document["config"] = apply_changes(document.get("config") or {}, options.changes)
    document["rootfs"] = {"type": "layers", "diff_ids": list(stack)}
    entry: dict[str, Any] = {"created": created, "created_by": "layerstore commit"}
    if options.author:
        entry["author"] = options.author
    if options.message:
        entry["comment"] = options.message
    known = len(base.layers) if base else 0
    added = [dict(entry) for _ in stack[known:]] or [entry | {"empty_layer": True}]
    document["history"] = [*(document.get("history") or []), *added]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _commit(
    store: Store,
    session: WriteSession,
    stack: Sequence[DiffID],
    base: _Base | None,
    config: bytes,
    name: str,
) -> Digest:
    """Record config, manifest, image and name in one transaction; returns the manifest's digest."""
    layers, plain = _layers(store, stack, base)
    config_digest = digest_of(config)
    manifest = oci.encode_manifest(
        oci.Descriptor(oci.OCI_CONFIG, config_digest, len(config)), layers
    )
    digest = digest_of(manifest)
    none = Compression.NONE.value
    now_ns = int(datetime.now(UTC).timestamp() * 1e9)
    documents = [
        (digest_of(data), len(data), ingest_document(data, session)) for data in (config, manifest)
    ]
    with session.commit() as txn:
        catalog = session.catalog
        for diff_id, size in plain.items():
            if catalog.blob(txn, diff_id) is None:
                catalog.put_blob(txn, diff_id, BlobRecord(size, Wrapping.PLAIN, diff_id, none, ()))
        for document, size, stretches in documents:
            record = BlobRecord(size, Wrapping.KEPT, None, none, stretches())
            catalog.put_blob(txn, document, record)
        catalog.put_image(txn, digest, ImageRecord(config_digest, tuple(stack), now_ns))
        catalog.put_ref(txn, name, digest)
    return digest


def _layers(
    store: Store, stack: Sequence[DiffID], base: _Base | None
) -> tuple[list[oci.Descriptor], dict[DiffID, int]]:
    """Descriptors of the layers: the base's where their blobs can be had, else plain tars, which are also returned."""
    layers = []
    plain: dict[DiffID, int] = {}
    with store.read() as txn:
        for diff_id in stack:
            known = base.layers.get(diff_id) if base else None
            blob = store.catalog.blob(txn, known.digest) if known else None
            if known and blob and blob.wrapping is not Wrapping.DROPPED:
                media_type = _OCI_TYPES.get(known.media_type, known.media_type)
                layers.append(oci.Descriptor(media_type, known.digest, known.size))
                continue
            record = store.catalog.layer(txn, diff_id)
            if record is None:
                raise CorruptStore(f"layer {diff_id} of a snapshot is missing")
            plain[diff_id] = record.size
            layers.append(oci.Descriptor(oci.OCI_LAYER, diff_id, record.size))
    return layers, plain

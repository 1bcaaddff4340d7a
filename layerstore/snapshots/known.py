"""Layers that a client is about to fetch and unpack, and that the store has already.

containerd says with the label `containerd.io/snapshot.ref` which stack an unpacked layer will complete, by its chain ID:

    ref = sha256(CHAIN ID OF THE PARENT + " " + DIFF ID OF THE LAYER)         without a parent, the diff ID itself

So a layer of the store is the wanted one if it makes that name: the hash says so, whatever the client believes. Looked
for are, in this order,

    snapshots   of the same chain ID, unpacked for another namespace of containerd, or imported
    blobs       of the digest in the label `containerd.io/snapshot/cri.layer-digest`, whose layer is here
    layers      all of them: a hash of 143 bytes each

A layer that was unpacked is known by its chain ID alone, as the tar that we made of it is another one than the image's.

Source: containerd `docs/remote-snapshotter.md`, `metadata/snapshot.go`; OCI image-spec `config.md`, "Layer ChainID".
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from layerstore.digest import ChainID, DiffID, chain_id, parse_digest, raw
from layerstore.errors import InvalidArgument
from layerstore.store.snapstate import SnapshotKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerstore.store.database import Transaction
    from layerstore.store.snapstate import SnapshotRecord, SnapshotTable
    from layerstore.store.store import Store

__all__ = ["REF_LABEL", "KnownLayers", "name_for", "wanted_chain"]

REF_LABEL: Final = "containerd.io/snapshot.ref"
_BLOB_LABEL = "containerd.io/snapshot/cri.layer-digest"

_PLACE = re.compile(
    r"[^/]+/\d+/"
)  # containerd's own words before a client's key: namespace, number
_NAMED_BY_CHAIN = re.compile(r"(?:.*/)?(sha256:[0-9a-f]{64})")


def wanted_chain(labels: Mapping[str, str]) -> ChainID | None:
    """The chain ID that a new snapshot is to complete, if its labels say one."""
    return _chain(labels.get(REF_LABEL, ""))


def name_for(key: str, wanted: ChainID) -> str:
    """The name of the committed snapshot that takes the place of the active one `key`: as containerd would commit it."""
    place = _PLACE.match(key)
    return f"{place[0] if place else ''}{wanted}"


class KnownLayers:
    """Looks for layers by the stack that they complete. Thread safety: stateless; transactions are the caller's."""

    def __init__(self, store: Store, table: SnapshotTable) -> None:
        self._store, self._table = store, table

    def snapshot(
        self, txn: Transaction, wanted: ChainID, parent: SnapshotRecord | None
    ) -> SnapshotRecord | None:
        """A committed snapshot that a client would find itself: on this parent, and labelled with the chain ID."""
        for record in self._of_chain(txn, wanted):
            is_labelled = record.labels.get(REF_LABEL) == wanted
            if is_labelled and record.parent_id == (parent.id if parent else 0):
                return record
        return None

    def layer(
        self,
        txn: Transaction,
        wanted: ChainID,
        parent: SnapshotRecord | None,
        labels: Mapping[str, str],
    ) -> DiffID | None:
        """The layer that completes the stack on this parent, or None."""
        for record in self._of_chain(txn, wanted):
            return record.stack[-1]
        base = None if parent is None else _chain_of(parent)
        by_blob = self._of_blob(txn, labels.get(_BLOB_LABEL, ""))
        if by_blob is not None and _on(base, by_blob) == wanted:
            return by_blob
        return self._among_all(txn, wanted, base)

    def _of_chain(self, txn: Transaction, wanted: ChainID) -> Iterator[SnapshotRecord]:
        for record in self._table.mentioning(txn, wanted):
            is_base = record.kind is SnapshotKind.COMMITTED and record.stack
            if is_base and _chain_of(record) == wanted:
                yield record

    def _of_blob(self, txn: Transaction, digest: str) -> DiffID | None:
        try:
            blob = self._store.catalog.blob(txn, parse_digest(digest))
        except InvalidArgument:
            return None
        if blob is None or blob.diff_id is None:
            return None
        return blob.diff_id if self._store.catalog.layer_identity(txn, blob.diff_id) else None

    def _among_all(self, txn: Transaction, wanted: ChainID, base: ChainID | None) -> DiffID | None:
        if base is None:
            bottom = DiffID(wanted)
            return bottom if self._store.catalog.layer_identity(txn, bottom) else None
        want = raw(wanted)
        begun = hashlib.sha256(f"{base} ".encode())
        for diff_id in self._store.catalog.layer_digests(txn):
            whole = begun.copy()
            whole.update(diff_id.encode())
            if whole.digest() == want:
                return diff_id
        return None


def _on(base: ChainID | None, layer: DiffID) -> ChainID:
    return chain_id([layer] if base is None else [DiffID(base), layer])


def _chain_of(record: SnapshotRecord) -> ChainID | None:
    """The chain ID of what a committed snapshot shows, as its client calls it, else by its layers."""
    said = _chain(record.labels.get(REF_LABEL, ""))
    if said is not None:
        return said
    named = _NAMED_BY_CHAIN.fullmatch(record.key)
    if named is not None:
        return ChainID(parse_digest(named[1]))
    return chain_id(record.stack) if record.stack else None


def _chain(text: str) -> ChainID | None:
    try:
        return ChainID(parse_digest(text)) if text else None
    except InvalidArgument:
        return None

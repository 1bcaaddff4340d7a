"""What garbage collection begins with: everything that says of a record that it must stay.

    references, images, snapshots, mounts, sessions, leases  ->  digests of manifests, indexes, blobs, layers

Read in one transaction, and compared with what another one sees: equal roots mean that what was found unreachable is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.digest import DiffID, parse_digest
from layerstore.store.leases import LeaseTable
from layerstore.store.mountstate import MountTable
from layerstore.store.sessionstate import SessionTable
from layerstore.store.snapstate import SnapshotTable

if TYPE_CHECKING:
    from layerstore.digest import Digest
    from layerstore.store.database import Transaction
    from layerstore.store.store import Store

__all__ = ["Roots", "expire_leases", "read_roots"]


@dataclass(frozen=True, slots=True)
class Roots:
    """The roots of a moment.

    Attributes:
        refs: what each name points to.
        images: manifest digests of all images, named or not.
        used: what mounts, snapshots, sessions and leases hold.
        everything: a session or a lease holds all there is.
        all_leased: a lease does, so that it stays beyond what runs now.
    """

    refs: frozenset[Digest]
    images: frozenset[Digest]
    used: frozenset[Digest]
    everything: bool
    all_leased: bool

    def targets(self) -> set[Digest]:
        """All digests that something must stay for."""
        return {*self.refs, *self.images, *self.used}


def read_roots(store: Store, txn: Transaction) -> Roots:
    """The roots as a transaction sees them. Raises: CorruptStore: a record is damaged, so that nothing is safe to free."""
    database, now = store.database, time.time_ns()
    sessions = [record for _, record in SessionTable(database).items(txn)]
    leases = [one for _, one in LeaseTable(database).items(txn) if one.expires_ns > now]
    used: set[Digest] = set(SnapshotTable(database).diff_ids(txn))
    for _, mount in MountTable(database).items(txn):
        used.update(DiffID(parse_digest(diff_id)) for diff_id in mount.diff_ids)
    for session in sessions:
        used |= session.holds
    for lease in leases:
        used.update(lease.holds)
    all_leased = any(one.holds_all for one in leases)
    return Roots(
        frozenset(target for _, target in store.catalog.refs(txn)),
        frozenset(store.catalog.image_digests(txn)),
        frozenset(used),
        all_leased or any(one.holds_all for one in sessions),
        all_leased,
    )


def expire_leases(store: Store) -> int:
    """Forget the leases whose time is over; returns how many."""
    now, table = time.time_ns(), LeaseTable(store.database)
    with store.read() as txn:
        over = [number for number, one in table.items(txn) if one.expires_ns <= now]
    if over:
        with store.write() as txn:
            # Renewed meanwhile, it goes on.
            still = {n for n, one in table.items(txn) if n in over and one.expires_ns <= now}
            for number in still:
                table.delete(txn, number)
    return len(over)

"""Snapshots: writable root filesystems on stacks of layers, with containerd's life cycle."""

from layerstore.snapshots.info import Info, Usage
from layerstore.snapshots.lower import Lower, LowerProvider
from layerstore.snapshots.provider import StoreLowers
from layerstore.snapshots.service import Snapshots
from layerstore.snapshots.specs import MountSpec
from layerstore.store.snapstate import SnapshotKind

__all__ = [
    "Info",
    "Lower",
    "LowerProvider",
    "MountSpec",
    "SnapshotKind",
    "Snapshots",
    "StoreLowers",
    "Usage",
]

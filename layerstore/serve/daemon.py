"""The snapshotter as a service, from its start to its end.

    sweep > tidy what a crash has left > count calls > listen > ready > … > drain > metrics off > sweep no more

Mounts belong to the kernel, and snapshots to the store: neither ends with the service, and the next one finds both.

Source: docs/snapshotter.md.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.serve.listening import parse_listen, serving
from layerstore.serve.metrics import CallMetrics, serve_metrics
from layerstore.serve.snapshotter import SnapshotsService
from layerstore.serve.sweeper import Sweeper
from layerstore.snapshots import Snapshots, StoreLowers
from layerstore.store.snapstate import SnapshotDirectories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.api import LayerStore

__all__ = ["ServeOptions", "snapshotter_daemon"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve.

    Attributes:
        listen: `unix:///PATH`.
        metrics: HOST:PORT for Prometheus; empty for none.
        grace_s: how long calls that are under way may take once the service ends.
    """

    listen: str
    metrics: str = ""
    grace_s: float = 30.0


@contextmanager
def snapshotter_daemon(store: LayerStore, options: ServeOptions) -> Iterator[Path]:
    """Serve a store's snapshots to containerd during the block; gives the socket's path once it listens.

    Raises: InvalidArgument: an address. Busy: another service listens there. FailedPrecondition, OSError.
    """
    path = parse_listen(options.listen)
    if not _shares_mounts_with_init():
        _log.warning(
            "this process has a mount namespace of its own: containerd will not see what is mounted here; "
            "start both in one (no PrivateTmp, ProtectSystem or PrivateMounts in the unit)"
        )
    with ExitStack() as stack:
        sweeper = stack.enter_context(Sweeper(SnapshotDirectories.delete))
        snapshots = Snapshots(store.store, StoreLowers(store.store), sweeper.put)
        removed = snapshots.cleanup()
        metrics = CallMetrics(snapshots)
        if options.metrics:
            stack.callback(serve_metrics(metrics, options.metrics))
        handler = SnapshotsService(snapshots, metrics).handler()
        stack.enter_context(serving(path, handler, grace_s=options.grace_s))
        _log.info("serving", extra={"address": options.listen, "left_over": removed})
        yield path
        _log.info("stopping")


def _shares_mounts_with_init() -> bool:
    """Whether mounts made here are seen by the rest of the machine; unknown counts as yes."""
    try:
        ours, theirs = (Path(f"/proc/{who}/ns/mnt").stat() for who in ("self", "1"))
    except OSError:
        return True
    return ours.st_ino == theirs.st_ino

"""The embedding API: `layerstore.open(root)` gives a `LayerStore` with the verbs that people know from Docker.

Every method delegates; what an operation does, and in which order, stands in the module of that operation. It is imported
by the method, so that a program waits for what it uses and for nothing else.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from layerstore.digest import DiffID, parse_digest
from layerstore.images.progress import SILENT
from layerstore.limits import Limits
from layerstore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from layerstore.hotblobs import HotBlobs
    from layerstore.images import (
        accounting,
        checking,
        commit,
        holding,
        listing,
        load,
        naming,
        optimize,
        prune,
        removal,
        repair,
        rootfs,
        run,
        save,
    )
    from layerstore.images.bundle import RunOptions
    from layerstore.images.progress import Progress
    from layerstore.mount.mounter import Mount, MountInfo
    from layerstore.snapshots import Info, Snapshots
    from layerstore.store.leases import Lease
    from layerstore.treediff import Change
    from layerstore.view import View

__all__ = ["LayerStore", "open_store", "repair_store"]

_HOT_BLOB_BYTES = 1 << 30  # of disk: the layers of a few images that are pulled right now


def open_store(
    root: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    hot_blob_bytes: int = _HOT_BLOB_BYTES,
) -> LayerStore:
    """Open the store in the folder `root`, made first where there is none and `create` holds.

    `limits` are what layers and archives may ask for; see docs/security.md. Blobs that `iter_blob` made again stay in
    temporary files of up to `hot_blob_bytes` until this is closed.

    Raises:
        NotFound: no store is there, and it is not to be created.
        FailedPrecondition: the folder holds something else.
        Unsupported: made by a version of layerstore whose features this one does not know.
        CorruptStore: the version file or the tables are damaged.
    """
    store = Store(Path(root), create=create, read_only=read_only, limits=limits)
    return LayerStore(store, hot_blob_bytes)


def repair_store(
    root: str | os.PathLike[str],
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    accept_loss: bool = False,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    progress: Progress = SILENT,
) -> repair.RepairReport:
    """Repair the store in the folder `root`, which must not be open here; what stays damaged is in the report.

    Tables that are lost or damaged are made anew from the journal; from one that is known to lack something only with
    `accept_loss`. Damaged chunks get their bytes from `sources`: archives or layouts of images, folders of other stores.
    Deletes nothing. See docs/durability.md.

    Raises:
        NotFound: no store is there, or a source is not.
        Busy: the tables are damaged and somebody has the store open; or a prune or repair is under way.
        CorruptStore: the journal is not enough to make the tables; they are as they were.
        MalformedInput: a source is damaged; what was healed before stays.
    """
    from layerstore.images import repair

    options = repair.RepairOptions(tuple(map(Path, sources)), accept_loss, limits)
    return repair.repair_store(Path(root), options, progress)


class LayerStore:
    """A store of container images. Close it, or use it as a context manager.

    Images are named as Docker names them (`python:3.12`, `localhost:5000/app@sha256:…`), or by an ID or a prefix of
    one. Several processes may use one root at once. After a fork, open it again in the child.
    Thread safety: all methods, from any thread.
    """

    def __init__(self, store: Store, hot_blob_bytes: int = _HOT_BLOB_BYTES) -> None:
        """Wrap an open store; `open_store` is the usual way here."""
        self.store = store
        self._hot_blob_bytes = hot_blob_bytes

    @cached_property
    def hot_blobs(self) -> HotBlobs:
        """The regenerated blobs that are held, and counters of them. See docs/embedding.md."""
        from layerstore.hotblobs import HotBlobs

        return HotBlobs(self.store, self._hot_blob_bytes)

    @cached_property
    def snapshots(self) -> Snapshots:
        """The store's snapshots. See docs/snapshots.md."""
        from layerstore.snapshots import Snapshots, StoreLowers

        return Snapshots(self.store, StoreLowers(self.store))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store's files. Iterators that it gave must be finished before."""
        if "hot_blobs" in vars(self):
            self.hot_blobs.close()
        self.store.close()

    def load(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        blobs: load.BlobPolicy | None = None,
        platform: str | None = None,
        name: str | None = None,
        progress: Progress = SILENT,
    ) -> load.LoadReport:
        """Load the images of a docker-archive or an OCI layout: a folder, a file however compressed, or a stream.

        Each image is durable and visible when it is in the report. Compressed layers come out exactly again, unless
        `blobs` says otherwise. See `load.LoadOptions` for the arguments.

        Raises: MalformedInput, DigestMismatch: bad input; nothing of that image is visible. StoreFull, NotFound.
        """
        from layerstore.archives import open_archive
        from layerstore.images import load

        opened = Path(source) if isinstance(source, (str, os.PathLike)) else source
        options = load.LoadOptions(blobs or load.BlobPolicy.EXACT, platform, name)
        with open_archive(opened, self.store.layout.tmp, self.store.limits) as archive:
            return load.load_archive(self.store, archive, options, progress)

    def save(
        self,
        names: str | Sequence[str],
        target: str | os.PathLike[str] | BinaryIO,
        *,
        kind: save.ArchiveKind | None = None,
        zstd: bool = False,
        platform: str | None = None,
        progress: Progress = SILENT,
    ) -> save.SaveReport:
        """Write images to an archive or layout that other tools load. See `save.SaveOptions` for the arguments.

        Raises: NotFound, InvalidArgument, CorruptStore, StoreFull; no file appears then.
        """
        from layerstore.images import save

        opened = Path(target) if isinstance(target, (str, os.PathLike)) else target
        options = save.SaveOptions(kind or save.ArchiveKind.DOCKER, zstd, platform)
        wanted = [names] if isinstance(names, str) else names
        return save.save_images(self.store, wanted, opened, options, progress)

    def import_rootfs(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        name: str,
        options: rootfs.ImportOptions | None = None,
        *,
        progress: Progress = SILENT,
    ) -> rootfs.ImportReport:
        """Make an image of one layer from a root filesystem: a tar, however compressed, a stream, or a folder.

        Raises: MalformedInput, InvalidArgument, StoreFull.
        """
        from layerstore.images import rootfs

        opened = Path(source) if isinstance(source, (str, os.PathLike)) else source
        return rootfs.import_rootfs(
            self.store, opened, name, options or rootfs.ImportOptions(), progress
        )

    def images(self) -> list[listing.ImageSummary]:
        """All images, by name; those without a name last."""
        from layerstore.images import listing

        return listing.list_images(self.store)

    def inspect(self, name: str, *, platform: str | None = None) -> listing.ImageDetails:
        """One image, its layers, and what each layer shares with the others of the store.

        Raises: NotFound, InvalidArgument.
        """
        from layerstore.images import listing

        return listing.inspect_image(self.store, name, platform)

    def history(self, name: str, *, platform: str | None = None) -> list[listing.HistoryStep]:
        """The build steps of an image, newest first. Raises: NotFound, InvalidArgument."""
        from layerstore.images import listing

        return listing.history(self.store, name, platform)

    def view(self, name: str, *, platform: str | None = None) -> View:
        """An image's root filesystem as an object, read as `os` and `open` read. Use it while this is open.

        Raises: NotFound, InvalidArgument, CorruptStore.
        """
        from layerstore.images import viewing

        return viewing.view_image(self.store, name, platform)

    def export(self, name: str, *, platform: str | None = None) -> Iterator[bytes]:
        """An image's root filesystem as one tar, block by block, layers merged; equal trees give equal bytes.

        Raises: NotFound, InvalidArgument, at once; CorruptStore, Unsupported, within the tar.
        """
        from layerstore.images import viewing

        return viewing.export_image(self.store, name, platform)

    def diff(self, lower: str, upper: str, *, platform: str | None = None) -> list[Change]:
        """What turns one image's root filesystem into another's, by path. Raises as `view`."""
        from layerstore.images import viewing

        return viewing.diff_images(self.store, lower, upper, platform)

    def tag(self, source: str, name: str) -> str:
        """Give an image one more name; returns the full name. Raises: NotFound, InvalidArgument."""
        from layerstore.images import naming

        return naming.tag_image(self.store, source, name)

    def remove(self, name: str, *, force: bool = False) -> naming.RemoveReport:
        """Forget a name, and the image with its last name. Raises: NotFound, FailedPrecondition."""
        from layerstore.images import naming

        return naming.remove_image(self.store, name, force=force)

    def removal(self, *names: str, force: bool = False) -> removal.RemovalForecast:
        """What `remove` of these names and a `prune` would free, all of them together; nothing is changed.

        Raises: NotFound, FailedPrecondition: as `remove`. CorruptStore.
        """
        from layerstore.images import removal

        return removal.forecast_removal(self.store, names, force=force)

    def usage(self) -> accounting.DiskUsage:
        """Where every byte of the store's disk is, by image and in all. See docs/measuring.md.

        Raises: CorruptStore.
        """
        from layerstore.images import accounting

        return accounting.account(self.store)

    def why(self, text: str) -> list[holding.Held]:
        """Who needs an image, a digest, or what is at a path that begins with a slash, in all images at once.

        Raises: NotFound, InvalidArgument, CorruptStore.
        """
        from layerstore.images import holding

        return holding.why(self.store, text)

    def prune(self, options: prune.PruneOptions | None = None) -> prune.PruneReport:
        """Remove images that nobody needs, and free all that nothing needs; safe beside all other work.

        Raises: Busy: another prune is under way. InvalidArgument: a filter. CorruptStore: damage; nothing is freed.
        """
        from layerstore.images import prune

        return prune.prune_images(self.store, self.snapshots, options or prune.PruneOptions())

    def lease(self, *names: str, ttl: float, label: str = "") -> Lease:
        """Keep images from `prune` for `ttl` seconds, also when they are removed and whoever lives; all, without a name.

        Renew it before its time, or release it; as a context manager it ends with the block.

        Raises: NotFound: no such image. InvalidArgument.
        """
        from layerstore.images import lookup
        from layerstore.store.leases import Lease

        targets = [lookup.find_target(self.store, name) for name in names]
        with self.store.hold(*targets):  # until the lease is there
            for name in names:
                lookup.find_image(self.store, name)
            return Lease.take(self.store.database, targets, ttl, label)

    def mount(
        self,
        name: str,
        target: str | os.PathLike[str] | None = None,
        *,
        rw: bool = False,
        driver: str = "auto",
        upper: str | os.PathLike[str] | None = None,
        verify: bool = False,
        platform: str | None = None,
    ) -> Mount:
        """Show an image in a folder until `umount`, or the end of the block that the result is used for.

        The result is a path. Without `target` the folder is a temporary one, and is removed in the end.
        `rw` puts a writable layer on top, kept in the folder `upper` where one is given. `verify` reads all contents
        first. See docs/mounting.md.

        Raises: NotFound, InvalidArgument, Unsupported (no driver works here), AlreadyExists, FailedPrecondition,
            CorruptStore (`verify`: files are damaged).
        """
        from layerstore import mounting

        return mounting.mount(
            self.store,
            name,
            target,
            rw=rw,
            driver=driver,
            upper=upper,
            verify=verify,
            platform=platform,
        )

    def umount(self, target: str | os.PathLike[str]) -> None:
        """End the mount at a folder. Raises: NotFound, Busy (somebody uses it)."""
        from layerstore import mounting

        mounting.umount(self.store, target)

    def mounts(self) -> list[MountInfo]:
        """The mounts of this store, oldest first."""
        from layerstore import mounting

        return mounting.mounts(self.store)

    def fork(self, name: str, keys: Sequence[str], *, platform: str | None = None) -> list[Info]:
        """Writable root filesystems of one image, a snapshot for each key, all or none. See docs/snapshots.md.

        Raises: NotFound, AlreadyExists, InvalidArgument.
        """
        from layerstore.images import commit

        return commit.fork_image(self.store, self.snapshots, name, keys, platform)

    def commit(
        self, source: str, name: str, options: commit.CommitOptions | None = None
    ) -> commit.CommitReport:
        """Make an image from an active snapshot or a writable mount: its changes become one more layer.

        Raises: NotFound, FailedPrecondition, InvalidArgument, StoreFull.
        """
        from layerstore.images import commit

        return commit.commit_image(
            self.store, self.snapshots, source, name, options or commit.CommitOptions()
        )

    def run(self, name: str, options: RunOptions | None = None) -> run.RunReport:
        """Run a command in a writable root filesystem of an image, through runc or crun, and wait for it.

        Raises: NotFound, InvalidArgument, Unsupported: no OCI runtime is installed.
        """
        from layerstore.images import run
        from layerstore.images.bundle import RunOptions

        return run.run_image(self.store, self.snapshots, name, options or RunOptions())

    def optimize(
        self, *, again: bool = False, progress: Progress = SILENT
    ) -> optimize.OptimizeReport:
        """Turn compressed layers that are kept into recipes, from which their exact bytes are made again.

        Safe beside all other work, and after a crash. With `again` also those that an earlier run could not convert.

        Raises: Unsupported: no native kernels. CorruptStore, StoreFull: what was converted before stays so.
        """
        from layerstore.images import optimize

        return optimize.optimize_blobs(self.store, again=again, progress=progress)

    def verify(
        self,
        *,
        depth: str = "everything",
        rate: int | None = None,
        jobs: int | None = None,
        resume: bool = False,
        blobs: bool = False,
        progress: Progress = SILENT,
    ) -> checking.StoreReport:
        """Check tables (depth "structure"), needed chunks ("chunks"), or all there is; damage is in the report, not raised.

        At most `rate` bytes of chunks are read in a second; `resume` goes on where the last run of the depth was stopped.
        With `blobs`, compressed layers are made again too.

        Raises: InvalidArgument. Unsupported: `blobs` without native kernels.
        """
        from layerstore.images import checking

        return checking.verify_images(self.store, depth, rate, jobs, resume, blobs, progress)

    def iter_layer(self, diff_id: str) -> Iterator[bytes]:
        """The exact tar of a layer, block by block; hashed on its way. Raises: NotFound, CorruptStore."""
        from layerstore import emit

        return emit.iter_layer(self.store, DiffID(parse_digest(diff_id)))

    def iter_blob(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The exact bytes of a blob that was kept or can be made again (documents always are), from `start` to before `end`.

        Raises: NotFound; InvalidArgument: no such range; CorruptStore.
        """
        return self.hot_blobs.iter_blob(parse_digest(digest), start, end)

    def size_on_disk(self) -> int:
        """Bytes that the store takes, all files counted, as `du` counts."""
        return self.store.size_on_disk()

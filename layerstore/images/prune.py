"""Prune: images that nobody needs go, and with them all that only they needed, so that the disk has it back.

    choose images > forget their names and records > collect garbage > sweep what mounts and snapshots left

As Docker's `image prune`: images without a name go; with `everything` also those with names that nothing uses. A
snapshot, a mount, a lease or a session on its layers uses an image. Filters narrow the choice; what no image needs goes
in any case, as it does with `system prune`.

Source: Docker's `docker image prune`, `docker system prune`.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import blake3

from layerstore import emit
from layerstore.errors import InvalidArgument, NotFound
from layerstore.formats import oci
from layerstore.images.lookup import manifests_of, names_by_target
from layerstore.images.naming import remove_image
from layerstore.mount.leftovers import sweep_leftovers
from layerstore.store.gc import GcReport, GcStep, collect_garbage, estimate_garbage
from layerstore.store.mountstate import MountTable
from layerstore.store.roots import read_roots
from layerstore.store.snapstate import SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerstore.digest import Digest
    from layerstore.snapshots import Snapshots
    from layerstore.store.catalog import ImageRecord
    from layerstore.store.store import Store

__all__ = ["PruneOptions", "PruneReport", "prune_images"]

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (86400, 3600, 60, 1)


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """What goes.

    Attributes:
        everything: also images that have names, if nothing uses them.
        filters: `until=24h`, `until=2026-01-31T00:00:00Z`, `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`; all must hold. As
            in Docker, `until` looks at when an image was built.
        dry_run: only say what would go.
    """

    everything: bool = False
    filters: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What went, or would go.

    Attributes:
        untagged: names that were forgotten.
        deleted: manifest digests of the images.
        garbage: layers, chunks and bytes of the chunk file.
        cache_bytes: what mounts had left; not counted in a dry run.
        dry_run: whether nothing was changed.
    """

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    garbage: GcReport
    cache_bytes: int
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes of disk that came back."""
        return self.garbage.bytes + self.cache_bytes


@dataclass(frozen=True, slots=True)
class _Choice:
    """Targets whose names go, those names, and images without a name."""

    targets: tuple[Digest, ...]
    names: tuple[str, ...]
    images: tuple[Digest, ...]
    refs: tuple[tuple[str, Digest], ...]  # all there were


def prune_images(
    store: Store, snapshots: Snapshots, options: PruneOptions = PruneOptions()
) -> PruneReport:
    """Remove images and free what nothing needs, beside all other work on the store; a crash leaves a part to the next.

    Raises:
        Busy: another prune is under way.
        InvalidArgument: a filter.
        CorruptStore: damage, so that nobody can say what is needed; nothing is freed.
        FailedPrecondition: the store is open for reading only.
    """
    passes = _filters(options.filters)
    if options.dry_run:
        choice = _choose(store, options, passes)
        garbage = estimate_garbage(store, refs=choice.names, images=choice.images)
        return PruneReport(choice.names, choice.images, garbage, 0, True)
    store.need_write()
    untagged: list[str] = []
    deleted: list[Digest] = []
    while not _remove(store, choice := _choose(store, options, passes), untagged, deleted):
        pass  # names changed between the look and the change
    swept = [0]

    def at(step: GcStep) -> None:
        if step is GcStep.SWEEP:
            swept[0] += sweep_leftovers(store, idle=options.everything)
            swept[0] += _sweep_lowers(store)
            snapshots.cleanup()

    garbage = collect_garbage(store, at=at)
    return PruneReport(tuple(untagged), tuple(deleted), garbage, swept[0], False)


def _choose(
    store: Store, options: PruneOptions, passes: Callable[[Store, ImageRecord], bool]
) -> _Choice:
    with store.read() as txn:
        refs = tuple(store.catalog.refs(txn))
        images = dict(store.catalog.images(txn))
        used = read_roots(store, txn).used
        stacks: set[tuple[str, ...]]
        stacks = {record.stack for record in SnapshotTable(store.database).records(txn)}
        stacks |= {record.diff_ids for _, record in MountTable(store.database).items(txn)}

    def may_go(digest: Digest) -> bool:
        record = images[digest]
        length = len(record.diff_ids)
        is_used = digest in used or any(stack[:length] == record.diff_ids for stack in stacks)
        return not is_used and passes(store, record)

    named: set[Digest] = set()
    going: list[Digest] = []
    targets: list[Digest] = []
    for target in names_by_target(store):
        reached = [digest for digest in manifests_of(store, target) if digest in images]
        named.update(reached)
        if options.everything and reached and target not in used and all(map(may_go, reached)):
            targets.append(target)
            going += reached
    stay = {
        digest
        for _, target in refs
        if target not in targets
        for digest in manifests_of(store, target)
    }
    dangling = [digest for digest in images if digest not in named and may_go(digest)]
    return _Choice(
        tuple(targets),
        tuple(name for name, target in refs if target in targets),
        tuple(dict.fromkeys([d for d in going if d not in stay] + dangling)),
        refs,
    )


def _remove(store: Store, choice: _Choice, untagged: list[str], deleted: list[Digest]) -> bool:
    """Forget what was chosen; False if names have changed since, and it has to be chosen again."""
    dangling = set(choice.images)
    for target in choice.targets:
        try:
            report = remove_image(store, target, force=True)
        except NotFound:
            return False
        untagged += report.untagged
        deleted += report.deleted
        dangling.difference_update(report.deleted)
    if not dangling:
        return True
    left = [(name, target) for name, target in choice.refs if target not in choice.targets]
    with store.write() as txn:
        if list(store.catalog.refs(txn)) != left:
            return False
        deleted += [one for one in sorted(dangling) if store.catalog.delete_image(txn, one)]
    return True


def _sweep_lowers(store: Store) -> int:
    """Delete plain lower directories of stacks that no snapshot or image has."""
    with store.read() as txn:
        stacks = {record.stack for record in SnapshotTable(store.database).records(txn)}
        stacks |= {record.diff_ids for _, record in store.catalog.images(txn)}
    kept = {blake3.blake3("\n".join(stack).encode()).hexdigest() for stack in stacks}
    freed = 0
    for path in (store.layout.root / "lowers").glob("*/*"):
        if path.name not in kept and not path.name.startswith("new-"):
            freed += sum(one.lstat().st_blocks * 512 for one in path.rglob("*"))
            shutil.rmtree(path, ignore_errors=True)
    return freed


def _filters(filters: Sequence[str]) -> Callable[[Store, ImageRecord], bool]:
    """One test for all filters. Raises: InvalidArgument."""
    until: float | None = None
    labels: list[tuple[str, str | None, bool]] = []
    for text in filters:
        field, equals, value = text.partition("=")
        if not equals or not value or field not in ("until", "label", "label!"):
            raise InvalidArgument(f"filter {text!r}: give until=…, label=… or label!=…")
        if field == "until":
            until = _moment(value)
        else:
            key, has_value, wanted = value.partition("=")
            labels.append((key, wanted if has_value else None, field == "label"))

    def passes(store: Store, record: ImageRecord) -> bool:
        if until is None and not labels:
            return True
        config = oci.parse_config(emit.read_document(store, record.config), record.config)
        if until is not None and not _is_older(config.created, until):
            return False
        own = config.runtime.get("Labels") or {}
        return all(
            (key in own and (value is None or own[key] == value)) == wanted
            for key, value, wanted in labels
        )

    return passes


def _moment(text: str) -> float:
    """A duration before now, a Unix time, or an RFC 3339 time, in seconds since 1970."""
    match = _DURATION.fullmatch(text)
    if match and any(match.groups()):
        counts = (int(count or 0) for count in match.groups())
        return time.time() - sum(c * s for c, s in zip(counts, _SECONDS, strict=True))
    if text.isdigit():
        return float(text)
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"until={text}: give 24h, a Unix time, or 2026-01-31T00:00:00Z"
        ) from None


def _is_older(created: str, until: float) -> bool:
    """Whether an image says that it was built before; one that says nothing was, as for Docker it has no time."""
    try:
        return not created or datetime.fromisoformat(created).astimezone().timestamp() < until
    except (ValueError, OverflowError):
        return False

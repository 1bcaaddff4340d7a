"""The operations whose crashes are explored, and what a store must show after one.

An operation is one or more chains of steps, a process each. A step is acknowledged when its call has returned. After a
crash each chain must stand where its last acknowledged step has left it, or behind the next one, and nowhere else; what
is visible is whole by digest, verify finds nothing, no space is lost, and the rest of the chain can be done again. After
a last prune the chunk file has no block that no chunk needs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.errors import AlreadyExists, NotFound
from layerstore.images.commit import CommitOptions, commit_image
from layerstore.kernels import blake3
from layerstore.mount.images import ready_images
from layerstore.mount.places import Places
from layerstore.snapshots import SnapshotKind, Snapshots
from layerstore.snapshots.plainfiles import PlainLowers
from layerstore.store import gc
from layerstore.store import session as session_module
from layerstore.store.mountstate import ContentTable
from tests.faults.injection import GONE
from tests.support.stores import (
    assert_clean,
    assert_tight,
    payload,
    put_file,
    sample_images,
    write_archive,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layerstore.api import LayerStore
    from layerstore.digest import DiffID
    from tests.support.archive_builders import Image

__all__ = ["OPERATIONS", "Operation", "check", "run_chain", "small_groups"]

_LAYER = 24_000  # bytes: a handful of chunks
_CREATED = "2024-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Step:
    """One call, and how it changes what is visible.

    Attributes:
        do: makes the call; doing it again after it was done is no error.
        gives: names of images that are there from then on; None for an image that no other program has made.
        takes: names that are not.
        snapshots: kinds of snapshots by key; None for one that is gone.
    """

    do: Callable[[LayerStore, Path], object]
    gives: Mapping[str, Image | None] = field(default_factory=dict)
    takes: frozenset[str] = frozenset()
    snapshots: Mapping[str, SnapshotKind | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that users do, from a store in which `before` was done.

    Attributes:
        chains: what each process does.
        before: steps that were done, and are durable, when the recording begins; without any there is no store.
        prepare: does more to the store before the recording.
        look: what must hold besides, of an open store.
    """

    name: str
    chains: tuple[tuple[Step, ...], ...]
    before: tuple[Step, ...] = ()
    prepare: Callable[[Path, Path], object] = lambda root, archives: None
    look: Callable[[LayerStore], object] = lambda store: None


def small_groups() -> None:
    """Many flushes and background syncs in a small load, many batches in a small collection."""
    session_module.GROUP_BYTES = 16 << 10
    session_module._SYNC_EVERY = 8 << 10
    session_module._FIRST_ROWS = session_module._FEWEST_ROWS = 12
    gc._FIRST_ROWS = gc._MAX_ROWS = 8


def run_chain(
    steps: Sequence[Step], root: Path, archives: Path, told: Callable[[int], object]
) -> None:
    """Do steps in a store; `told` is called with the number of each that is acknowledged."""
    small_groups()
    with open_store(root) as store:
        for number, step in enumerate(steps):
            step.do(store, archives)
            told(number)


def check(operation: Operation, root: Path, archives: Path, acknowledged: Sequence[str]) -> None:
    """Open the store that a crash has left, and see that all invariants hold.

    `acknowledged` has "CHAIN:NUMBER" of each acknowledged step. Raises AssertionError, or whatever the store raises.
    """
    done = [
        sum(told.startswith(f"{chain}:") for told in acknowledged)
        for chain in range(len(operation.chains))
    ]
    is_new = not operation.before and not any(done)
    with open_store(root, create=is_new) as store:
        ways = [
            range(count, min(count + 1, len(steps)) + 1)
            for count, steps in zip(done, operation.chains, strict=True)
        ]
        worlds = [_world(operation, counts) for counts in itertools.product(*ways)]
        _assert_shows(store, worlds)
        assert_clean(store)
        operation.look(store)
        for count, steps in zip(done, operation.chains, strict=True):
            for step in steps[count:]:
                step.do(store, archives)
        store.prune()
        _assert_shows(store, [_world(operation, [len(steps) for steps in operation.chains])])
        operation.look(store)
        assert_tight(store)


def _assert_whole(store: LayerStore, images: Mapping[str, Image]) -> None:
    """Every byte of these images comes out; what `inspect` knows besides would only take time."""
    ids = {name: summary.id for summary in store.images() for name in summary.names}
    for name, image in images.items():
        assert ids[name] == digest_of(image.config)
        assert b"".join(store.iter_blob(ids[name])) == image.config
    for layer in {layer for image in images.values() for layer in image.layers}:
        assert b"".join(store.iter_layer(digest_of(layer))) == layer


@dataclass(frozen=True, slots=True)
class _World:
    """What a store shows."""

    images: Mapping[str, Image | None]
    snapshots: Mapping[str, SnapshotKind]


def _world(operation: Operation, counts: Sequence[int]) -> _World:
    images: dict[str, Image | None] = {}
    snapshots: dict[str, SnapshotKind] = {}
    chains = [steps[:count] for steps, count in zip(operation.chains, counts, strict=True)]
    for step in itertools.chain(operation.before, *chains):
        images.update(step.gives)
        for name in step.takes:
            images.pop(name, None)
        for key, kind in step.snapshots.items():
            if kind is None:
                snapshots.pop(key, None)
            else:
                snapshots[key] = kind
    return _World({f"docker.io/{name}": image for name, image in images.items()}, snapshots)


def _assert_shows(store: LayerStore, worlds: Sequence[_World]) -> None:
    """The store shows one of these worlds, every byte of it."""
    names = {name for summary in store.images() for name in summary.names}
    snapshots = {info.name: info.kind for info in store.snapshots.walk()}
    shown = [w for w in worlds if w.images.keys() == names and w.snapshots == snapshots]
    assert shown, f"shows {sorted(names)} and {snapshots}"
    _assert_whole(store, {n: i for w in shown for n, i in w.images.items() if i is not None})
    for key, kind in snapshots.items():
        if kind is SnapshotKind.ACTIVE:
            record_of = store.snapshots._table
            with store.store.read() as txn:
                record = record_of.get(txn, key)
            assert record is not None
            assert store.snapshots._directories.upper(record.id).is_dir(), f"{key} has no directory"


def _load(image: Image) -> Step:
    tag = image.tags[0]
    return Step(lambda store, archives: store.load(_archive(archives, image)), {tag: image})


def _archive(folder: Path, image: Image) -> Path:
    path = folder / (image.tags[0].replace("/", "_").replace(":", "_") + ".tar")
    if not path.exists():
        # Two processes may want it at once: neither sees half of it.
        own = folder / str(os.getpid())
        own.mkdir(exist_ok=True)
        write_archive(own, image).replace(path)
    return path


def _tag(image: Image, name: str) -> Step:
    return Step(lambda store, _: store.tag(image.tags[0], name), {name: image})


def _remove(name: str) -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        with suppress(NotFound):
            store.remove(name)

    return Step(do, takes=frozenset([name]))


def _snapshots(store: LayerStore) -> Snapshots:
    """Without mounts, which a crash takes away in ways that this does not show."""
    return Snapshots(store.store, PlainLowers(store.store))


def _prepare(key: str, note: bytes = b"") -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        snapshots = _snapshots(store)
        with suppress(AlreadyExists):
            snapshots.prepare(key)
        if note:
            (Path(snapshots.mounts(key)[0].source) / "note").write_bytes(note)

    return Step(do, snapshots={key: SnapshotKind.ACTIVE})


def _fork(image: Image, key: str) -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        with suppress(AlreadyExists):
            _snapshots(store).fork(_stack(store, image), [key])

    return Step(do, snapshots={key: SnapshotKind.ACTIVE})


def _adopt(image: Image, name: str) -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        with suppress(AlreadyExists):
            _snapshots(store).adopt(name, _stack(store, image))

    return Step(do, snapshots={name: SnapshotKind.COMMITTED})


def _stack(store: LayerStore, image: Image) -> tuple[DiffID, ...]:
    return tuple(layer.diff_id for layer in store.inspect(image.tags[0]).layers)


def _child(key: str, parent: str) -> Step:
    """A snapshot on another, with the directory that its mount needs."""

    def do(store: LayerStore, archives: Path) -> None:
        del archives
        snapshots = _snapshots(store)
        with suppress(AlreadyExists):
            snapshots.prepare(key, parent)
        snapshots.mounts(key)

    return Step(do, snapshots={key: SnapshotKind.ACTIVE})


def _commit(name: str, key: str) -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        with suppress(AlreadyExists, NotFound):
            _snapshots(store).commit(name, key)

    return Step(do, snapshots={key: None, name: SnapshotKind.COMMITTED})


def _remove_snapshot(key: str) -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        with suppress(NotFound):
            _snapshots(store).remove(key)
        _snapshots(store).cleanup()

    return Step(do, snapshots={key: None})


def _commit_image(key: str, name: str) -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        options = CommitOptions(created=_CREATED)
        commit_image(store.store, _snapshots(store), key, name, options)

    return Step(do, {name: None})


def _prune() -> Step:
    return Step(lambda store, archives: store.prune())


def _prune_beside_a_session() -> Step:
    """A session that goes on has looked chunks up: they are condemned and wait for the next run."""

    def do(store: LayerStore, archives: Path) -> None:
        del archives
        with store.store.begin() as session:
            put_file(session, payload(3, 5_000))
            session.settle()
            report = store.prune().garbage
            session.flush()
        assert report.waiting or not report.layers

    return Step(do)


def _make_images(image: Image) -> Step:
    def do(store: LayerStore, archives: Path) -> None:
        del archives
        places = Places.of(store.store.layout.root)
        places.make()
        ready_images(store.store, places, _stack(store, image))

    return Step(do)


def _look_at_images(store: LayerStore) -> None:
    """A row of a data image never precedes its file."""
    places = Places.of(store.store.layout.root)
    with store.store.read() as txn:
        rows = dict(store.store.database.items(txn, "contents"))
        table = ContentTable(store.store.database)
        for number in {int.from_bytes(key, "big") for key in rows if len(key) == 4}:
            data = places.data_image(number).read_bytes()
            assert blake3(data) == table.image_hash(txn, number), f"data image {number}"


def _die_loading(root: Path, archives: Path) -> None:
    """Leave a session that nobody has closed, some of it committed and some not."""
    del archives
    child = multiprocessing.get_context("spawn").Process(target=_dies, args=(root,))
    child.start()
    child.join()
    assert child.exitcode == GONE


def _dies(root: Path) -> None:
    with open_store(root) as store, store.store.begin() as session:
        put_file(session, payload(1, 40_000))
        session.flush()
        put_file(session, payload(2, 40_000))
        session.settle()
        os._exit(GONE)


_FIRST, _SECOND, _THIRD = sample_images(71, count=3, layer_size=_LAYER)
_SAME_AS_SECOND = replace(_SECOND, tags=("test/same:1",))

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("load", ((_load(_FIRST), _load(_SECOND)),)),
        Operation(
            "tag, rmi",
            (
                (
                    _tag(_FIRST, "test/tagged:1"),
                    _remove(_SECOND.tags[0]),
                    _remove(_FIRST.tags[0]),
                    _remove("test/tagged:1"),
                    _load(_FIRST),
                ),
            ),
            (_load(_FIRST), _load(_SECOND)),
        ),
        Operation(
            "snapshot life",
            (
                (
                    _prepare("work", b"what a container has written" * 200),
                    _commit("done", "work"),
                    _adopt(_FIRST, "base"),
                    _prepare("other"),
                    _remove_snapshot("other"),
                    _remove_snapshot("done"),
                ),
            ),
            (_load(_FIRST),),
        ),
        Operation(
            "commit",
            ((_fork(_FIRST, "work"), _commit_image("work", "test/made:1")),),
            (_load(_FIRST),),
        ),
        Operation(
            "two loads at once",
            ((_load(_FIRST), _load(_SECOND)), (_load(_THIRD), _load(_SECOND))),
            (Step(lambda store, archives: None),),
        ),
        Operation(
            "open after a crash",
            ((Step(lambda store, archives: None), _load(_THIRD)),),
            (_load(_FIRST),),
            prepare=_die_loading,
        ),
        Operation(
            "mount images, prune",
            (
                (
                    _make_images(_FIRST),
                    _make_images(_SECOND),
                    _remove(_SECOND.tags[0]),
                    _prune(),
                ),
            ),
            (_load(_FIRST), _load(_SECOND)),
            look=_look_at_images,
        ),
        Operation(
            "rmi, prune",
            (
                (
                    _remove(_SECOND.tags[0]),
                    _prune(),
                    _load(_SECOND),
                    _remove(_FIRST.tags[0]),
                    _prune_beside_a_session(),
                    _prune(),
                ),
            ),
            (_load(_FIRST), _load(_SECOND)),
        ),
        Operation(
            "snapshot remove, prune",
            (
                (
                    _adopt(_FIRST, "base"),
                    _child("top", "base"),
                    _remove(_FIRST.tags[0]),
                    _prune(),
                    _remove_snapshot("top"),
                    _remove_snapshot("base"),
                    _prune(),
                ),
            ),
            (_load(_FIRST), _load(_SECOND)),
        ),
        Operation(
            "prune beside a load",
            ((_remove(_SECOND.tags[0]), _prune()), (_load(_SAME_AS_SECOND),)),
            (_load(_FIRST), _load(_SECOND)),
        ),
        Operation("prune after a crash", ((_prune(),),), (_load(_FIRST),), prepare=_die_loading),
    )
}

"""Whatever was done to a store, the shares of its images and the overhead are what `du` says, and removals as foreseen."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layerstore.api import open_store
from layerstore.images.commit import commit_image, fork_image
from layerstore.images.load import BlobPolicy
from layerstore.images.prune import PruneOptions, prune_images
from layerstore.snapshots import Snapshots
from layerstore.snapshots.plainfiles import PlainLowers
from layerstore.store.snapstate import SnapshotDirectories, SnapshotTable
from tests.support.archive_builders import Image, layer_tar, oci_layout_of, tar_of
from tests.support.stores import payload
from tests.unit.images.test_accounting import assert_adds_up

if TYPE_CHECKING:
    from layerstore.api import LayerStore

_contents = st.builds(payload, st.integers(0, 4), st.sampled_from([0, 3, 900, 20_000, 60_000]))
_names = st.sampled_from(["srv/a", "srv/b", "etc/c.pyc"])
_layers = st.dictionaries(_names, _contents, max_size=3).map(layer_tar)
_tags = st.sampled_from(["a:1", "b:1", "c:1", "d:1"])


class Accounted(RuleBasedStateMachine):
    """Loads, names, snapshots, commits and prunes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="layerstore-accounted-"))
        self.store: LayerStore = open_store(self.root / "store")
        self.snapshots = Snapshots(self.store.store, PlainLowers(self.store.store))
        self.tags: set[str] = set()
        self.forks: list[str] = []
        self.made = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    @rule(
        stack=st.lists(_layers, min_size=1, max_size=3),
        tag=_tags,
        codec=st.sampled_from(["none", "gzip"]),
        blobs=st.sampled_from(list(BlobPolicy)),
    )
    def load(self, stack: list[bytes], tag: str, codec: str, blobs: BlobPolicy) -> None:
        note = {"org.opencontainers.image.ref.name": f"docker.io/library/{tag}"}
        files = oci_layout_of([(Image.of(stack), note)], codec)  # type: ignore[arg-type]  # a Literal
        self.store.load(io.BytesIO(tar_of(files)), blobs=blobs)
        self.tags.add(tag)

    @precondition(lambda self: self.tags)
    @rule(data=st.data(), name=_tags)
    def tag(self, data: st.DataObject, name: str) -> None:
        self.store.tag(data.draw(st.sampled_from(sorted(self.tags))), name)
        self.tags.add(name)

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.made += 1
        source = data.draw(st.sampled_from(sorted(self.tags)))
        [info] = fork_image(self.store.store, self.snapshots, source, [f"s{self.made}"])
        self.forks.append(info.name)

    @precondition(lambda self: self.forks)
    @rule(tag=_tags, content=_contents)
    def commit(self, tag: str, content: bytes) -> None:
        key = self.forks.pop()
        with self.store.store.read() as txn:
            number = next(
                r.id for r in SnapshotTable(self.store.store.database).records(txn) if r.key == key
            )
        (SnapshotDirectories(self.store.store.layout).upper(number) / "new").write_bytes(content)
        commit_image(self.store.store, self.snapshots, key, tag)
        self.snapshots.remove(key)
        self.tags.add(tag)

    @precondition(lambda self: self.tags)
    @rule(data=st.data(), everything=st.booleans())
    def remove_as_foreseen(self, data: st.DataObject, everything: bool) -> None:
        tags = sorted(self.tags)
        some = tags if everything else data.draw(st.sets(st.sampled_from(tags), min_size=1))
        forecast = self.store.removal(*some)
        for tag in some:
            self.store.remove(tag)
        self.tags -= set(some)
        before = self.store.store.chunkfile.allocated_bytes()
        report = prune_images(self.store.store, self.snapshots)
        freed = before - self.store.store.chunkfile.allocated_bytes()
        # An image that lost its name to another goes with this prune too.
        if not report.deleted:
            assert report.garbage.bytes == freed == forecast.freed + forecast.garbage

    @rule(everything=st.booleans())
    def prune(self, everything: bool) -> None:
        foreseen = self.store.usage().reclaimable
        report = prune_images(self.store.store, self.snapshots, PruneOptions(everything=everything))
        if not report.deleted:
            assert report.garbage.bytes == foreseen
        self.tags -= {name.removeprefix("docker.io/library/") for name in report.untagged}

    @invariant()
    def it_adds_up(self) -> None:
        assert_adds_up(self.store)


TestAccounted = Accounted.TestCase
TestAccounted.settings = settings(max_examples=10, stateful_step_count=10, deadline=None)

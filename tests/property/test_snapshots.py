"""Snapshots do what a dict of them would: any sequence of calls gives the same infos and the same kinds of errors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from layerstore.api import open_store
from layerstore.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from layerstore.snapshots import Info, SnapshotKind, Snapshots
from layerstore.snapshots.plainfiles import PlainLowers

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = st.sampled_from(["a", "b", "c/" + "x" * 500, "d e"])
LABELS = st.dictionaries(st.sampled_from(["l", "m.n", '"'], ), st.text(max_size=3), max_size=2)  # fmt: skip
ACTIVE, COMMITTED = SnapshotKind.ACTIVE, SnapshotKind.COMMITTED


class _Model:
    """key -> (kind, parent, labels), and containerd's rules."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[SnapshotKind, str, dict[str, str]]] = {}

    def make(self, key: str, kind: SnapshotKind, parent: str, labels: dict[str, str]) -> None:
        if parent:
            if parent not in self.known:
                raise NotFound
            if self.known[parent][0] is not COMMITTED:
                raise InvalidArgument
        if key in self.known:
            raise AlreadyExists
        self.known[key] = (kind, parent, labels)

    def commit(self, name: str, key: str, labels: dict[str, str]) -> None:
        if name in self.known:
            raise AlreadyExists
        kind, parent, _ = self.get(key)
        if kind is not ACTIVE:
            raise FailedPrecondition
        del self.known[key]
        self.known[name] = (COMMITTED, parent, labels)

    def remove(self, key: str) -> None:
        self.get(key)
        if any(parent == key for _, parent, _ in self.known.values()):
            raise FailedPrecondition
        del self.known[key]

    def update(self, key: str, labels: dict[str, str], name: str) -> None:
        kind, parent, old = self.get(key)
        changed = {k: v for k, v in old.items() if k != name}
        if labels.get(name):
            changed[name] = labels[name]
        self.known[key] = (kind, parent, changed)

    def get(self, key: str) -> tuple[SnapshotKind, str, dict[str, str]]:
        if key not in self.known:
            raise NotFound
        return self.known[key]


class SnapshotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_store(self.folder.name)
        self.snapshots = Snapshots(self.store.store, PlainLowers(self.store.store))
        self.model = _Model()

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def _both(self, real: Callable[[], object], model: Callable[[], object]) -> None:
        outcomes: list[type] = []
        for call in (real, model):
            try:
                call()
            except (AlreadyExists, FailedPrecondition, InvalidArgument, NotFound) as error:
                outcomes.append(type(error))
            else:
                outcomes.append(type(None))
        assert outcomes[0] is outcomes[1]

    @rule(key=KEYS, parent=st.one_of(st.just(""), KEYS), labels=LABELS, is_view=st.booleans())
    def make(self, key: str, parent: str, labels: dict[str, str], is_view: bool) -> None:
        real = self.snapshots.view if is_view else self.snapshots.prepare
        kind = SnapshotKind.VIEW if is_view else ACTIVE
        self._both(
            lambda: real(key, parent, labels), lambda: self.model.make(key, kind, parent, labels)
        )

    @rule(name=KEYS, key=KEYS, labels=LABELS)
    def commit(self, name: str, key: str, labels: dict[str, str]) -> None:
        self._both(
            lambda: self.snapshots.commit(name, key, labels),
            lambda: self.model.commit(name, key, labels),
        )

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        self._both(lambda: self.snapshots.remove(key), lambda: self.model.remove(key))

    @rule(key=KEYS, labels=LABELS, name=st.sampled_from(["l", "m.n", '"']))
    def update(self, key: str, labels: dict[str, str], name: str) -> None:
        wish = Info(key, "", ACTIVE, labels, 0, 0)
        self._both(
            lambda: self.snapshots.update(wish, [f"labels.{name}"]),
            lambda: self.model.update(key, labels, name),
        )

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        infos = {info.name: (info.kind, info.parent, info.labels) for info in self.snapshots.walk()}
        assert infos == self.model.known
        for key, (kind, _, _) in infos.items():
            assert self.snapshots.stat(key).kind is kind
            if kind is not COMMITTED:
                assert self.snapshots.mounts(key)
        folders = list(Path(self.folder.name, "snapshots").glob("*"))
        with_folder = [key for key, (kind, _, _) in infos.items() if kind is ACTIVE]
        views = sum(kind is SnapshotKind.VIEW for kind, _, _ in infos.values())
        assert len(with_folder) <= len(folders) <= len(with_folder) + views


TestSnapshots = SnapshotMachine.TestCase
TestSnapshots.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)

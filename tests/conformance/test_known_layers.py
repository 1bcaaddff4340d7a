"""Layers that the store has are offered to a client that is about to unpack them: containerd's remote snapshots."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from layerstore.api import open_store
from layerstore.digest import ChainID, DiffID, chain_id, digest_of
from layerstore.images.prune import PruneOptions
from layerstore.serve.daemon import ServeOptions, snapshotter_daemon
from tests.clients.servers import unmount_below
from tests.support.archive_builders import Image, docker_archive_of, layer_tar
from tests.support.snapshots_client import SnapshotsClient, snapshots_client
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.api import LayerStore

_REF = "containerd.io/snapshot.ref"
_BLOB = "containerd.io/snapshot/cri.layer-digest"

LAYERS = [
    layer_tar({f"layer-{number}": payload(number, 20_000), "top": b"%d" % number})
    for number in range(3)
]
DIFF_IDS = [DiffID(digest_of(layer)) for layer in LAYERS]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        yield opened
    unmount_below(tmp_path)


@pytest.fixture
def client(store: LayerStore, tmp_path: Path) -> Iterator[SnapshotsClient]:
    with (
        snapshotter_daemon(store, ServeOptions(f"unix://{tmp_path}/s.sock")) as path,
        snapshots_client(path) as connected,
    ):
        yield connected


def _load(store: LayerStore, *layers: bytes, tag: str = "test/known:1") -> None:
    store.load(io.BytesIO(docker_archive_of([Image.of(layers, tag)])))


def _is_offered(
    client: SnapshotsClient, key: str, parent: str, ref: ChainID, **labels: str
) -> bool:
    try:
        client.prepare(key, parent, {_REF: ref, **labels})
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
        return True
    return False


def _found(client: SnapshotsClient, parent: str, ref: ChainID) -> str:
    """What containerd looks for after such an answer, and what it takes."""
    filters = f'labels."{_REF}"=={ref},parent=="{parent}"'
    (info,) = client.list(filters)
    assert info == client.stat(info.name)
    assert (info.parent, info.labels[_REF]) == (parent, ref)
    return info.name


def _pull(client: SnapshotsClient, stack: list[DiffID], namespace: str = "default") -> list[str]:
    """Prepare the layers of an image, bottom first, as containerd would; the names of their snapshots."""
    names = [""]
    for number in range(1, len(stack) + 1):
        ref = chain_id(stack[:number])
        assert _is_offered(client, f"{namespace}/{number}/extract-1-a {ref}", names[-1], ref)
        names.append(_found(client, names[-1], ref))
    return names[1:]


@pytest.mark.root
def test_a_loaded_image_needs_no_unpacking(store: LayerStore, client: SnapshotsClient) -> None:
    _load(store, *LAYERS)
    names = _pull(client, DIFF_IDS)
    assert names == [f"default/{n}/{chain_id(DIFF_IDS[:n])}" for n in (1, 2, 3)]
    assert {info.name for info in client.list()} == set(names), "nothing active stays behind"
    (mount,) = client.prepare("default/9/container", names[-1])
    lower = next(option for option in mount.options if option.startswith("lowerdir="))
    assert Path(lower.removeprefix("lowerdir=").partition("::")[0], "top").lstat().st_size == 1
    with store.view("test/known:1").open("top") as file:
        assert file.read() == b"2"


def test_a_layer_is_known_on_another_base(store: LayerStore, client: SnapshotsClient) -> None:
    """A rebased image: its upper layers were never on that base, but they are here."""
    _load(store, LAYERS[0], LAYERS[2], tag="test/old:1")
    _load(store, LAYERS[1], tag="test/new-base:1")
    assert len(_pull(client, [DIFF_IDS[1], DIFF_IDS[2]])) == 2


def test_a_blobs_digest_does_not_stand_in_for_the_chain(
    store: LayerStore, client: SnapshotsClient
) -> None:
    """Whatever the client says of the blob, the layer has to be the one that completes the stack."""
    _load(store, LAYERS[0])
    wanted = chain_id([DIFF_IDS[1]])
    assert not _is_offered(client, "key", "", wanted, **{_BLOB: DIFF_IDS[0]})
    assert _is_offered(client, "key-2", "", chain_id([DIFF_IDS[0]]), **{_BLOB: DIFF_IDS[0]})


def test_what_one_namespace_has_unpacked_another_need_not(client: SnapshotsClient) -> None:
    ref = chain_id([DIFF_IDS[0]])
    above = chain_id(DIFF_IDS[:2])
    (mount,) = client.prepare(f"one/1/extract-1-a {ref}")
    Path(mount.source, "file").write_bytes(b"unpacked")
    client.commit(f"one/2/{ref}", f"one/1/extract-1-a {ref}")  # as `ctr import`: no label
    client.prepare(f"one/3/extract-1-b {above}", f"one/2/{ref}", {_REF: above})
    client.commit(f"one/4/{above}", f"one/3/extract-1-b {above}", {_REF: above})
    names = _pull(client, DIFF_IDS[:2], "two")
    assert names == [f"two/1/{ref}", f"two/2/{above}"]
    assert _pull(client, DIFF_IDS[:2], "three") == names, "which have the labels to be found by"
    client.remove(f"one/4/{above}")
    client.remove(f"one/2/{ref}")
    assert {info.name for info in client.list()} == set(names)


def test_what_is_not_here_is_unpacked(store: LayerStore, client: SnapshotsClient) -> None:
    _load(store, *LAYERS[:2])
    (base,) = _pull(client, DIFF_IDS[:1])
    assert not _is_offered(client, "a", base, chain_id([DIFF_IDS[0], DIFF_IDS[2]]))
    assert not _is_offered(client, "b", "", chain_id([DIFF_IDS[2]]))
    assert not _is_offered(client, "c", "", chain_id(DIFF_IDS[:2])), "it is on another parent"
    client.prepare("d", base, {_REF: "no digest"})
    with pytest.raises(grpc.RpcError) as caught:
        client.prepare("e", "no such parent", {_REF: chain_id(DIFF_IDS)})
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_offered_layer_stays_and_one_that_is_gone_is_not_offered(
    store: LayerStore, client: SnapshotsClient
) -> None:
    _load(store, *LAYERS)
    names = _pull(client, DIFF_IDS[:2])
    store.remove("test/known:1")
    store.prune(PruneOptions(everything=True))
    assert not _is_offered(client, "x", names[1], chain_id(DIFF_IDS)), "nothing held it"
    assert _is_offered(client, "y", names[0], chain_id(DIFF_IDS[:2])), "a snapshot holds it"
    assert not store.verify().damages

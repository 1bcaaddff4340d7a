"""The snapshots service over its socket: what containerd's own suite never asks."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from layerstore.api import open_store
from layerstore.errors import Busy, FailedPrecondition, InvalidArgument
from layerstore.serve.daemon import ServeOptions, snapshotter_daemon
from layerstore.serve.listening import parse_listen
from tests.clients.servers import snapshotter
from tests.support.snapshots_client import SnapshotsClient, snapshots_client

if TYPE_CHECKING:
    from collections.abc import Callable


def _code(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details() or ""


def test_errors_are_those_of_containerds_own_snapshotter(client: SnapshotsClient) -> None:
    client.prepare("a")
    client.view("v")
    client.prepare("tmp")
    client.commit("c", "tmp")
    client.prepare("child", "c")
    calls: list[Callable[[], object]] = [
        lambda: client.stat("no"),
        lambda: client.mounts("no"),
        lambda: client.usage("no"),
        lambda: client.remove("no"),
        lambda: client.commit("new", "no"),
        lambda: client.update("no", {}),
        lambda: client.prepare("new", "no"),
        lambda: client.view("new", "no"),
    ]
    for call in calls:
        code, details = _code(call)
        assert (code, details[-11:]) == ("NOT_FOUND", ": not found")
    calls = [
        lambda: client.prepare("a"),
        lambda: client.view("c"),
        lambda: client.commit("c", "a"),
        lambda: client.commit("a", "a"),
    ]
    for call in calls:
        code, details = _code(call)
        assert (code, details[-16:]) == ("ALREADY_EXISTS", ": already exists")
    calls = [
        lambda: client.commit("new", "c"),
        lambda: client.commit("new", "v"),
        lambda: client.mounts("c"),
        lambda: client.remove("c"),
        lambda: client.commit("new", "child", parent="other"),
    ]
    for call in calls:
        code, details = _code(call)
        assert (code, details[-21:]) == ("FAILED_PRECONDITION", ": failed precondition")
    calls = [
        lambda: client.prepare("new", "a"),
        lambda: client.view("new", "v"),
        lambda: client.prepare(""),
        lambda: client.prepare("x" * 5000),
        lambda: client.prepare("new", labels={"l": "v" * 4096}),
        lambda: client.update("a", {}, ["parent"]),
        lambda: client.update("a", {}, ["kind"]),
        lambda: client.list("name=="),
    ]
    for call in calls:
        code, details = _code(call)
        assert (code, details[-18:]) == ("INVALID_ARGUMENT", ": invalid argument")
    assert {info.name for info in client.list()} == {"a", "v", "c", "child"}


def test_a_commit_may_name_its_parent(client: SnapshotsClient) -> None:
    """Field 5 of the request, which containerd 2 has added."""
    client.prepare("tmp")
    client.commit("c", "tmp", parent="")
    client.prepare("tmp", "c")
    client.commit("d", "tmp", parent="c")
    assert client.stat("d").parent == "c"


def test_more_snapshots_than_one_message_holds_are_listed(client: SnapshotsClient) -> None:
    keys = [f"default/{number}/key" for number in range(230)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client.prepare, keys))
    infos = client.list()
    assert sorted(info.name for info in infos) == sorted(keys)
    assert all(client.stat(info.name) == info for info in infos[:5])
    assert client.list('name=="default/7/key"', "name==nothing") == [client.stat("default/7/key")]


def test_two_clients_on_one_key_get_one_snapshot(client: SnapshotsClient) -> None:
    start = threading.Barrier(8)

    def prepare(number: int) -> str:
        start.wait()
        try:
            client.prepare("key", labels={"who": str(number)})
        except grpc.RpcError as error:
            return str(error.code().name)
        return f"made {number}"

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(prepare, range(8)))
    assert outcomes[:7] == ["ALREADY_EXISTS"] * 7
    assert outcomes[7] == f"made {client.stat('key').labels['who']}"


def test_two_commits_of_one_key_make_one_snapshot(client: SnapshotsClient) -> None:
    (mount,) = client.prepare("key")
    Path(mount.source, "file").write_bytes(os.urandom(3_000_000))
    start = threading.Barrier(4)

    def commit(number: int) -> str:
        start.wait()
        try:
            client.commit(f"name-{number}", "key")
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(commit, range(4)))
    assert outcomes.count("OK") == 1
    assert set(outcomes) <= {"OK", "NOT_FOUND", "FAILED_PRECONDITION"}
    assert len(client.list()) == 1


def test_usage_of_an_active_snapshot_may_be_asked_while_it_is_written(
    client: SnapshotsClient,
) -> None:
    (mount,) = client.prepare("key")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            path = Path(mount.source, f"{number % 50}")
            path.mkdir(exist_ok=True)
            (path / "file").write_bytes(b"x" * 5000)
            (path / "file").unlink()
            path.rmdir()
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(client.usage("key").inodes >= 1 for _ in range(200))
    finally:
        stop.set()
        writer.join()
    assert client.usage("key").inodes == 1


def test_the_socket_is_roots_alone_and_goes_with_the_service(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    old = os.umask(0)
    try:
        with (
            open_store(tmp_path / "store") as store,
            snapshotter_daemon(store, ServeOptions(f"unix://{path}")),
        ):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with (
                pytest.raises(Busy),
                snapshotter_daemon(store, ServeOptions(f"unix://{path}")),
            ):
                pass
            assert path.exists(), "the second one took nothing away"
    finally:
        os.umask(old)
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    options = ServeOptions(f"unix://{path}")
    with open_store(tmp_path / "store") as store:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            with pytest.raises(Busy, match="answers"), snapshotter_daemon(store, options):
                pass
        with snapshotter_daemon(store, options), snapshots_client(path) as client:
            assert client.list() == []
        path.write_text("precious")
        with (
            pytest.raises(FailedPrecondition, match="no socket"),
            snapshotter_daemon(store, options),
        ):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("address", ["", "127.0.0.1:80", "unix://relative", "tcp:///a", "/a"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_listen(address)


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="107"):
        parse_listen("unix:///" + "a" * 107)


def test_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with snapshotter(tmp_path / "store", path) as service, snapshots_client(path) as client:
        (mount,) = client.prepare("key")
        Path(mount.source, "file").write_bytes(os.urandom(60_000_000))
        with ThreadPoolExecutor(1) as pool:
            committing = pool.submit(client.commit, "name", "key")
            while not list((tmp_path / "store/tmp").glob("session-*.lock")):
                assert not committing.done()  # its layer is being written
            service.send_signal(signal.SIGTERM)
            committing.result()
        assert service.wait(60) == 0
    with snapshotter(tmp_path / "store", path), snapshots_client(path) as client:
        assert [info.name for info in client.list()] == ["name"]


def test_a_killed_service_finds_everything_again(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with snapshotter(tmp_path / "store", path) as service, snapshots_client(path) as client:
        client.prepare("tmp")
        client.commit("c", "tmp", {"l": "1"})
        (mount,) = client.prepare("active", "", {"l": "2"})
        Path(mount.source, "file").write_text("kept")
        before = client.list()
        service.kill()
        service.wait()
    with snapshotter(tmp_path / "store", path), snapshots_client(path) as client:
        assert client.list() == before
        assert Path(client.mounts("active")[0].source, "file").read_text() == "kept"


def test_metrics_count_calls_by_method_and_code(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ServeOptions(f"unix://{tmp_path}/s.sock", metrics=address)
    with (
        open_store(tmp_path / "store") as store,
        snapshotter_daemon(store, options) as path,
        snapshots_client(path) as client,
    ):
        client.prepare("key")
        _code(lambda: client.stat("no"))
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            text = answer.read().decode()
    assert 'layerstore_snapshotter_calls_total{code="OK",method="Prepare"} 1.0' in text
    assert 'layerstore_snapshotter_calls_total{code="NOT_FOUND",method="Stat"} 1.0' in text
    assert 'layerstore_snapshots{kind="active"} 1.0' in text


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        words = [sys.executable, "-m", "layerstore", "--root", str(tmp_path / "store"), "serve"]
        words += ["snapshotter", "--listen", f"unix://{tmp_path}/s.sock", "--log-format", "json"]
        with subprocess.Popen(
            words,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.PIPE,
            text=True,
        ) as service:
            try:
                # It is stopped the moment it is ready: a signal that came then was once not told.
                assert manager.recv(100).decode() == f"READY=1\nMAINPID={service.pid}"
                service.terminate()
                assert manager.recv(100) == b"STOPPING=1"
                _, log = service.communicate(timeout=60)
            finally:
                service.kill()
    assert service.returncode == 0
    assert [line.partition('"msg": ')[2].partition(",")[0] for line in log.splitlines()] == [
        '"serving"',
        '"stopping"}',
    ]


def test_what_a_commit_leaves_is_deleted_later_or_by_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "store/snapshots"
    for name in ("one", "two"):
        with snapshotter(tmp_path / "store", tmp_path / "s.sock") as service:
            with snapshots_client(tmp_path / "s.sock") as client:
                (mount,) = client.prepare("key")
                for number in range(3000):
                    Path(mount.source, f"{number}").write_bytes(b"x")
                client.commit(name, "key")
                assert not Path(mount.source).exists()
            service.kill()
            service.wait()
    with snapshotter(tmp_path / "store", tmp_path / "s.sock"):
        for _ in range(600):
            if not list(folder.iterdir()):
                break
            time.sleep(0.1)
        assert not list(folder.iterdir())

"""Servers to talk to: a private containerd and a private dockerd, in folders of their own, gone at the end.

Nothing of the machine's own containerd or Docker is touched: other sockets, other roots, no network, no iptables.
"""

from __future__ import annotations

import os
import socket as socket_module
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "containerd",
    "dockerd",
    "registry",
    "run",
    "snapshotter",
    "unmount_below",
    "works",
]

_READY_S = 60
_PROXY = """
[proxy_plugins.layerstore]
type = "snapshot"
address = "{socket}"
"""
_STOP_S = 20


def run(*words: str | Path, timeout_s: float = 120) -> str:
    """Run a program; its output, or an error that shows what it said."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def containerd(folder: Path, snapshotter: Path | None = None) -> Iterator[list[str]]:
    """A containerd, maybe with a proxy snapshotter `layerstore`; gives the words that a `ctr` command starts with."""
    socket = folder / "c.sock"
    config = folder / "config.toml"
    config.write_text(
        f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{socket}"
"""
        + (_PROXY.format(socket=snapshotter) if snapshotter else "")
    )
    ctr = ["ctr", "-a", str(socket)]
    with _server(["containerd", "-c", str(config)], folder, lambda: works([*ctr, "version"])):
        yield ctr


@contextmanager
def snapshotter(root: Path, socket: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`layerstore serve snapshotter` on the store at `root`, ready; its log is beside the socket."""
    words = [sys.executable, "-m", "layerstore", "--root", str(root), "serve", "snapshotter"]
    words += ["--listen", f"unix://{socket}", *options]
    read, write = os.pipe()
    with socket.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [*words, "--ready-fd", str(write)],
            stderr=log,
            stdin=subprocess.DEVNULL,
            pass_fds=[write],
        )
    os.close(write)
    try:
        with os.fdopen(read, "rb") as ready:
            said = ready.read()
        assert said == b"\n", socket.with_suffix(".log").read_text("utf-8", "replace")[-2000:]
        yield process
    finally:
        process.terminate()
        process.wait(_READY_S)


@contextmanager
def dockerd(folder: Path, containerd_socket: Path) -> Iterator[list[str]]:
    """A dockerd on a running containerd; gives the words that a `docker` command starts with."""
    socket = folder / "d.sock"
    (folder / "daemon.json").write_text("{}")
    words = [
        *("dockerd", "--data-root", f"{folder}/root", "--exec-root", f"{folder}/exec"),
        *("-H", f"unix://{socket}", "--pidfile", f"{folder}/d.pid", "--storage-driver", "vfs"),
        *("--containerd", str(containerd_socket), "--config-file", f"{folder}/daemon.json"),
        *("--iptables=false", "--ip6tables=false", "--bridge=none"),
    ]
    docker = ["docker", "-H", f"unix://{socket}"]
    with _server(words, folder, lambda: works([*docker, "version"])):
        yield docker


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A registry on a loopback port; gives its `host:port`. What it is asked is in the file `log` of the folder."""
    with socket_module.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "config.yml").write_text(
        f"""version: 0.1
storage:
  filesystem:
    rootdirectory: {folder}/data
http:
  addr: {address}
"""
    )

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
                return True
        except OSError:
            return False

    with _server(["docker-registry", "serve", f"{folder}/config.yml"], folder, is_ready):
        yield address


def unmount_below(folder: Path) -> None:
    """Unmount whatever a server has left mounted in its folder, the last first."""
    mounted = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    for path in reversed([path for path in mounted if path.startswith(f"{folder}/")]):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


@contextmanager
def _server(words: Sequence[str], folder: Path, is_ready: Callable[[], bool]) -> Iterator[None]:
    log = folder / "log"
    environment = {**os.environ, "TMPDIR": str(folder), "DOCKER_CONFIG": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(words), stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            deadline = time.monotonic() + _READY_S
            while not is_ready():
                said = log.read_text("utf-8", "replace")[-2000:]
                assert process.poll() is None, f"{words[0]} ended:\n{said}"
                assert time.monotonic() < deadline, f"{words[0]} is not ready:\n{said}"
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            unmount_below(folder)


def works(words: Sequence[str]) -> bool:
    """Whether a program ends well."""
    return subprocess.run(list(words), capture_output=True, check=False, timeout=30).returncode == 0

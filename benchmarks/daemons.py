"""Servers that peers need: containerd, dockerd, docker-registry, each in a folder of its own and gone at the end.

    with daemon("dockerd", folder) as pids: ...       sockets: FOLDER/c.sock (containerd), FOLDER/d.sock (dockerd)

Nothing of the machine's own containerd or Docker is touched: other sockets, other roots, no network, no iptables. What
they have left mounted is unmounted. A store is in FOLDER/store, whatever else they write is beside it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["containerd", "daemon", "registry", "unmount_below"]

_READY_S = 30.0
_STOP_S = 30.0
_PROXY = '[proxy_plugins.layerstore]\ntype = "snapshot"\naddress = "{}"\n'


@contextmanager
def daemon(name: str | None, folder: Path) -> Iterator[tuple[int, ...]]:
    """Run `containerd`, `dockerd` (with a containerd), `registry` or nothing (None); gives the process IDs."""
    with ExitStack() as stack:
        match name:
            case None:
                yield ()
            case "containerd":
                yield (stack.enter_context(containerd(folder, folder / "store")),)
            case "dockerd":
                below = stack.enter_context(containerd(folder, folder / "below"))
                yield (stack.enter_context(_dockerd(folder)), below)
            case "registry":
                pid, address = stack.enter_context(registry(folder, folder / "store"))
                (folder / "address").write_text(address)
                yield (pid,)
            case _:
                raise ValueError(f"no such daemon: {name}")


@contextmanager
def registry(folder: Path, store: Path) -> Iterator[tuple[int, str]]:
    """A docker-registry over plain HTTP on the loopback; gives its process ID and `host:port`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "registry.json"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(store)}},
                "http": {"addr": address},
            }
        )
    )

    def answers() -> bool:
        try:
            with urlopen(f"http://{address}/v2/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with _server(["docker-registry", "serve", str(config)], folder, answers) as pid:
        yield pid, address


def unmount_below(folder: Path) -> None:
    """Unmount whatever a program has left mounted in its folder, the last first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounted = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    for path in reversed([path for path in mounted if path.startswith(f"{folder}/")]):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


@contextmanager
def containerd(folder: Path, root: Path, snapshotter: Path | None = None) -> Iterator[int]:
    """A containerd, maybe with a proxy snapshotter `layerstore` at a socket; gives its process ID."""
    address = folder / "c.sock"
    config = folder / "config.toml"
    config.write_text(
        "version = 2\n"
        f'root = "{root}"\nstate = "{folder}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{address}"\n' + (_PROXY.format(snapshotter) if snapshotter else "")
    )
    command = ["containerd", "--config", str(config)]
    with _server(command, folder, lambda: _works(["ctr", "-a", str(address), "version"])) as pid:
        yield pid


@contextmanager
def _dockerd(folder: Path) -> Iterator[int]:
    (folder / "daemon.json").write_text("{}")
    address = f"unix://{folder}/d.sock"
    command = [
        *("dockerd", "--data-root", f"{folder}/store", "--exec-root", f"{folder}/exec"),
        *("--host", address, "--pidfile", f"{folder}/d.pid", "--storage-driver", "overlay2"),
        *("--containerd", f"{folder}/c.sock", "--config-file", f"{folder}/daemon.json"),
        *("--iptables=false", "--ip6tables=false", "--bridge=none"),
    ]
    with _server(command, folder, lambda: _works(["docker", "-H", address, "version"])) as pid:
        yield pid


@contextmanager
def _server(command: Sequence[str], folder: Path, is_ready: Callable[[], bool]) -> Iterator[int]:
    """One server; an error has the end of its log."""
    log = folder / f"{command[0]}.log"
    environment = {**os.environ, "TMPDIR": str(folder), "DOCKER_CONFIG": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    try:
        deadline = time.monotonic() + _READY_S
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} is not ready:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        unmount_below(folder)


def _works(command: Sequence[str]) -> bool:
    return not subprocess.run(command, capture_output=True, check=False, timeout=30).returncode

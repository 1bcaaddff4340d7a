"""A machine of containerd and the service that it has as its snapshotter, in a folder of its own, gone at the end."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.clients.servers import containerd, run, snapshotter, unmount_below, works
from tests.support.archive_builders import docker_archive_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.support.archive_builders import Image

__all__ = ["Machine", "has", "machine_in", "wait"]

_WITH = ("--snapshotter", "layerstore")
_WAIT_S = 60


@dataclass
class Machine:
    """A containerd, and the service that it calls; the service can be killed, and started again.

    Attributes:
        ctr: the start of a `ctr` command.
    """

    folder: Path
    stack: ExitStack
    ctr: list[str] = field(init=False)
    service: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()
        words = self.stack.enter_context(containerd(self.folder, self.folder / "s.sock"))
        # All containerds of a machine share what runc knows, by namespace.
        self.ctr = [*words, "--namespace", f"test-{os.getpid()}-{time.monotonic_ns()}"]
        self.stack.callback(self._end_containers)

    def start(self) -> None:
        self.service = self.stack.enter_context(snapshotter(self.store, self.folder / "s.sock"))

    def start_again(self) -> None:
        """Start the service, and wait until containerd has found it: it looks every few seconds."""
        self.start()
        ask = [*self.ctr, "snapshots", *_WITH]
        wait(lambda: works([*ask, "prepare", "probe"]))
        run(*ask, "rm", "probe")

    def kill(self) -> None:
        self.service.kill()
        self.service.wait()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def archive(self, image: Image) -> Path:
        path = self.folder / (re.sub(r"\W", "_", image.tags[0]) + ".tar")
        path.write_bytes(docker_archive_of([image]))
        return path

    def load(self, image: Image, snapshotter: str = "layerstore") -> str:
        """Import and unpack an image; returns what containerd calls it."""
        words = (*self.ctr, "images", "import", "--snapshotter", snapshotter)
        run(*words, self.archive(image))
        return f"docker.io/{image.tags[0]}"

    def run(self, image: str, name: str, *command: str) -> None:
        """Run a container to its end, which has to be a good one (`ctr` of 1.6 may lose output)."""
        run(*self.ctr, "run", "--rm", "--net-host", *_WITH, image, name, *command)

    def start_container(self, image: str, name: str, *command: str) -> None:
        run(*self.ctr, "run", "--detach", "--net-host", *_WITH, image, name, *command)

    def exec(self, name: str, *command: str) -> None:
        """Run a program in a running container, as `run`."""
        run(*self.exec_words(name, *command))

    def exec_words(self, name: str, *command: str) -> list[str]:
        return [*self.ctr, "task", "exec", "--exec-id", os.urandom(4).hex(), name, *command]

    def remove_container(self, name: str) -> None:
        if name in run(*self.ctr, "task", "ls", "-q").split():
            run(*self.ctr, "task", "rm", "--force", name)
        run(*self.ctr, "container", "rm", name)

    def _end_containers(self) -> None:
        for name in run(*self.ctr, "container", "ls", "-q").split():
            self.remove_container(name)

    def snapshots(self) -> list[str]:
        lines = run(*self.ctr, "snapshots", *_WITH, "ls").splitlines()[1:]
        return [line.split()[0] for line in lines]

    def remove_images(self) -> None:
        run(*self.ctr, "images", "rm", "--sync", *run(*self.ctr, "images", "ls", "-q").split())

    def mounted(self) -> list[str]:
        """What is mounted in the store."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [path for line in lines if (path := line.split()[4]).startswith(f"{self.store}/")]


@contextmanager
def machine_in(folder: Path) -> Iterator[Machine]:
    """A machine for a block; its containers end with it."""
    try:
        with ExitStack() as stack:
            yield Machine(folder, stack)
    finally:
        unmount_below(folder)


def has(path: str, text: str) -> tuple[str, ...]:
    """A command that succeeds if a file in the container has this text, and maybe a newline behind it."""
    return "/bin/sh", "-c", 'test "$(cat "$0")" = "$1"', path, text


def wait(is_so: Callable[[], object]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + _WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)

"""The driver `fuse`: a process that answers the kernel's questions from a view. It needs no privileges.

    mount    /dev/fuse opened > mounted (fsmount as root, else fusermount3) > server started > it says "ready"
    umount   the kernel ends the connection, and the server with it

The server is a process of its own (`mount.fuseserver`), so the mount survives the one that asked for it. If it is
killed, reads fail until the mount is unmounted. The tree never changes, so the kernel may keep all that it was told.

Source: Linux `Documentation/filesystems/fuse.rst`; fusermount3(1), which passes the descriptor over a socket.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.errors import Busy, FailedPrecondition, Unsupported
from layerstore.mount.driver import Needs, Support
from layerstore.mount.linux import MountFlag, create_mount, unmount
from layerstore.mount.sysfs import read_far_ahead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.digest import DiffID
    from layerstore.mount.linux import Option
    from layerstore.mount.places import Places
    from layerstore.store.mountstate import MountRecord
    from layerstore.store.store import Store

__all__ = ["FuseDriver"]

_DEVICE = Path("/dev/fuse")
_FUSERMOUNT = "fusermount3"
_READY = b"ready\n"
# Forks before anything is imported, so that the server is nobody's child to wait for.
_LAUNCH = (
    "import os; os.fork() and os._exit(0); from layerstore.mount import fuseserver as s; s.main()"
)


class FuseDriver:
    """See the module. Thread safety: stateless."""

    name = "fuse"

    def finished_mark(self, places: Places, record: MountRecord) -> Path | None:
        """None: the kernel shows it."""
        del places, record
        return None

    def probe(self, store: Store, places: Places, *, rw: bool) -> Support:
        """Open the device, which fusermount3 does as the user too; see that somebody may mount."""
        del store, places
        if rw:
            return Support(False, "fuse mounts are read-only")
        try:
            os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return Support(False, f"{_DEVICE}: {error.strerror}")
        if os.geteuid() != 0 and shutil.which(_FUSERMOUNT) is None:
            return Support(False, f"{_FUSERMOUNT} is not installed")
        return Support(True)

    def prepare(self, store: Store, places: Places, diff_ids: Sequence[DiffID]) -> Needs:
        """Nothing is needed."""
        del store, places, diff_ids
        return Needs()

    def mount(self, store: Store, places: Places, record: MountRecord) -> None:
        """Mount, and start the server. Raises: Unsupported, FailedPrecondition: what the kernel or the server said."""
        del places
        target = Path(record.target)
        if os.geteuid() == 0:
            connection = _mount_as_root(target, record.token)
        else:
            connection = _mount_as_user(target, record.token)
        try:
            _start_server(store.layout.root, record, connection)
        except BaseException:
            os.close(connection)  # the kernel ends the connection: unmounting cannot hang
            self._unmount(target)
            raise
        os.close(connection)
        if os.geteuid() == 0:
            read_far_ahead(target)

    def umount(self, store: Store, places: Places, target: Path) -> None:
        """Unmount; the server ends."""
        del store, places
        self._unmount(target)

    def discard(self, places: Places, record: MountRecord) -> None:
        """Nothing is kept for one mount."""

    def _unmount(self, target: Path) -> None:
        if os.geteuid() == 0:
            unmount(target)
            return
        done = subprocess.run(
            [_FUSERMOUNT, "-u", "--", target], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Busy(f"unmount {target}: {done.stderr.strip()}")


def _mount_as_root(target: Path, token: str) -> int:
    """Mount at `target`; returns the descriptor that the server reads."""
    connection = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options: list[Option] = [
            ("source", token),
            ("subtype", "layerstore"),
            ("fd", str(connection)),
            ("rootmode", "40000"),
            ("user_id", "0"),
            ("group_id", "0"),
            "default_permissions",
            "allow_other",
            "ro",
        ]
        with create_mount("fuse", options, MountFlag.READ_ONLY) as mount:
            mount.attach(target)
    except BaseException:
        os.close(connection)
        raise
    return connection


def _mount_as_user(target: Path, token: str) -> int:
    """As `_mount_as_root`, by the program that may."""
    options = f"fsname={token},subtype=layerstore,default_permissions,ro,nosuid,nodev"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [_FUSERMOUNT, "-o", options, "--", target],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unsupported(f"{_FUSERMOUNT}: {done.stderr.strip()}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise Unsupported(f"{_FUSERMOUNT} gave no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _start_server(root: Path, record: MountRecord, connection: int) -> None:
    """Start the server, and wait until it has the tree. Raises: FailedPrecondition: what it said instead."""
    argv = [sys.executable, "-c", _LAUNCH, os.fspath(root), str(connection)]
    heard, said = os.pipe()
    with os.fdopen(heard, "rb") as answer:
        try:
            server = subprocess.Popen(
                [*argv, *record.diff_ids],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                pass_fds=[connection],
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        finally:
            os.close(said)
        server.wait()
        line = answer.readline()
        if line == _READY:
            return
        text = (line + answer.read()).decode("utf-8", "replace").strip()
    raise FailedPrecondition(
        f"the FUSE server did not start: {text.splitlines()[-1] if text else '?'}"
    )

"""How to run an image: its config, and what the caller wants otherwise, as an OCI runtime's `config.json`.

The container has its own processes, mounts, host name and IPC; its network is the host's. Capabilities and masked paths
are those that Docker gives by default. Users and groups are looked up in the image's own files, which are opened inside
the root filesystem whatever symbolic links say (openat2, RESOLVE_IN_ROOT).

Source: OCI runtime-spec `config.md`, `config-linux.md`; image-spec `conversion.md`; openat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerstore.errors import InvalidArgument
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["RunOptions", "open_inside", "runtime_config"]

_OPENAT2 = 437  # the same on all architectures but Alpha
_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_RESOLVE_IN_ROOT = 0x10
_MAX_FILE = 1 << 20  # bytes of /etc/passwd that are looked at

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
        *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
]
_MOUNTS = [
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
]
_FROM_HOST = ("/etc/resolv.conf", "/etc/hosts")  # as the network is the host's
_MASKED = [
    *("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
]
_READ_ONLY = [
    *("/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
]

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the caller wants otherwise than the image.

    Attributes:
        command: in place of the image's Cmd; its Entrypoint stays in front.
        env: `KEY=value`, added or replaced.
        workdir: in place of the image's WorkingDir.
        user: in place of the image's User: `name`, `uid`, with `:group` or `:gid`.
        volumes: `/host:/inside` or `/host:/inside:ro`.
        terminal: whether standard input and output are a terminal that the container gets.
        interactive: whether it gets standard input.
        keep: whether the snapshot stays, under its key.
        entrypoint: in place of the image's Entrypoint; None keeps it.
    """

    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    terminal: bool = False
    interactive: bool = False
    keep: bool = False
    entrypoint: tuple[str, ...] | None = None


def runtime_config(
    runtime: Mapping[str, Any], root: Path, options: RunOptions, name: str
) -> dict[str, Any]:
    """The `config.json` for a container whose root filesystem is mounted at `root`.

    Raises: InvalidArgument: there is nothing to run, no such user, a volume or variable that is none.
    """
    arguments = _arguments(runtime, options)
    uid, gid, groups = _user(root, options.user or str(runtime.get("User") or ""))
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.terminal,
            "user": {"uid": uid, "gid": gid, "additionalGids": groups},
            "args": arguments,
            "env": _env(runtime, options),
            "cwd": options.workdir or str(runtime.get("WorkingDir") or "") or "/",
            "capabilities": {
                kind: _CAPABILITIES if uid == 0 or kind == "bounding" else []
                for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": False,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": name[:63],
        "mounts": [
            *(
                {"destination": place, "type": kind, "source": source, "options": list(flags)}
                for place, kind, source, flags in _MOUNTS
            ),
            *_from_host(),
            *map(_volume, options.volumes),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }


def open_inside(root: Path, path: str) -> int | None:
    """Open a regular file below `root`, as a process would find it whose root it is; None if there is none."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        fd: int = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_long(top),
            os.fsencode(path),
            how,
            ctypes.c_long(len(how)),
        )
        code = ctypes.get_errno()
    finally:
        os.close(top)
    if fd >= 0:
        try:
            return files.reopen_regular(fd, path)
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os.close(fd)
    if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return None
    raise OSError(code, os.strerror(code), path)


def _arguments(runtime: Mapping[str, Any], options: RunOptions) -> list[str]:
    entrypoint = options.entrypoint
    own = list(runtime.get("Entrypoint") or []) if entrypoint is None else list(entrypoint)
    # As Docker: with another entrypoint, the image's Cmd, which was meant for its own, does not count.
    default = list(runtime.get("Cmd") or []) if entrypoint is None else []
    arguments = [*own, *(options.command or default)]
    if not arguments:
        raise InvalidArgument("the image does not say what to run; give a command")
    return [str(word) for word in arguments]


def _env(runtime: Mapping[str, Any], options: RunOptions) -> list[str]:
    found: dict[str, str] = {}
    for text in (_PATH, *(runtime.get("Env") or []), *options.env):
        key, equals, _ = str(text).partition("=")
        if not key or not equals:
            raise InvalidArgument(f"{text!r} is not KEY=value")
        found[key] = str(text)
    if options.terminal:
        found.setdefault("TERM", "TERM=xterm")
    return list(found.values())


def _volume(text: str) -> dict[str, Any]:
    source, _, rest = text.partition(":")
    place, _, mode = rest.partition(":")
    if not source.startswith("/") or not place.startswith("/") or mode not in ("", "ro", "rw"):
        raise InvalidArgument(f"volume {text!r} is not /host:/inside or /host:/inside:ro")
    return {
        "destination": place,
        "type": "bind",
        "source": source,
        "options": ["rbind", mode or "rw"],
    }


def _from_host() -> list[dict[str, Any]]:
    return [
        {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
        for path in _FROM_HOST
        if os.path.exists(path)  # noqa: PTH110 - a name in two places
    ]


def _user(root: Path, text: str) -> tuple[int, int, list[int]]:
    """Owner, group and further groups of a `user[:group]`; nobody named is root."""
    user, _, group = text.partition(":")
    accounts = _rows(root, "/etc/passwd", 4)
    known = next((row for row in accounts if user in (row[0], row[2])), None) if user else None
    uid = gid = 0
    if known is not None:
        uid, gid = _number(known[2]), _number(known[3])
    elif user.isdigit():
        uid = _number(user)
    elif user:
        raise InvalidArgument(f"no user {user!r} in the image's /etc/passwd")
    groups = _rows(root, "/etc/group", 3)
    if group:
        row = next((row for row in groups if group in (row[0], row[2])), None)
        if row is None and not group.isdigit():
            raise InvalidArgument(f"no group {group!r} in the image's /etc/group")
        return uid, _number(row[2] if row else group), []
    member = known[0] if known else ""
    more = {
        _number(row[2]) for row in groups if member and member in "".join(row[3:4]).split(",")
    } - {gid}
    return uid, gid, sorted(more)


def _number(text: str) -> int:
    if not text.isdigit() or int(text) >= 1 << 31:
        raise InvalidArgument(f"{text[:40]!r} is no user or group number")
    return int(text)


def _rows(root: Path, path: str, columns: int) -> list[list[str]]:
    """The lines of passwd(5) or group(5) that have enough columns."""
    fd = None
    with suppress(OSError):
        fd = open_inside(root, path)
    if fd is None:
        return []
    with os.fdopen(fd, "rb") as file:
        text = file.read(_MAX_FILE).decode("utf-8", "surrogateescape")
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= columns]

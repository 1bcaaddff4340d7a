"""A gRPC service on a Unix socket: taken safely, owned by root alone, drained at the end.

    lock SOCKET.lock > remove a stale socket > bind, 0600 > serve > stop taking calls > finish those under way > unlink

The lock says that a service lives, so that a socket without one is stale. A socket that somebody answers on is never
taken. The API can do whatever root can, and knows no passwords: hence a Unix socket and nothing else.

Source: unix(7); gRPC naming (`unix:path`); sd_notify(3).
"""

from __future__ import annotations

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from layerstore.errors import Busy, FailedPrecondition, InvalidArgument
from layerstore.store import files

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["notify_systemd", "parse_listen", "serving"]

_SCHEME = "unix://"
_MAX_PATH = 107  # bytes of sun_path, without the NUL
_MAX_MESSAGE = 16 << 20  # bytes, as containerd's own limit
_WORKERS = 32  # calls at once; most wait for the disk, or for one another


def parse_listen(text: str) -> Path:
    """The socket's path in `unix:///PATH`.

    Raises: InvalidArgument: another kind of address, or a path that no socket can have.
    """
    path = text.removeprefix(_SCHEME)
    if path == text or not path.startswith("/"):
        raise InvalidArgument(
            f"cannot listen on {text!r}; it is unix:///PATH, with an absolute path"
        )
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidArgument(f"{path}: the path of a socket has at most {_MAX_PATH} bytes")
    return Path(path)


@contextmanager
def serving(path: Path, handler: grpc.GenericRpcHandler, *, grace_s: float) -> Iterator[None]:
    """Answer calls during the block; at its end no new ones, and those under way get `grace_s` seconds.

    Raises: Busy: another service listens there. FailedPrecondition: the path is no socket's.
    """
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    lock = files.lock_file(path.with_name(f"{path.name}.lock"), create=True)
    if lock is None:
        raise Busy(f"another service listens on {path}")
    try:
        _remove_stale(path)
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="layerstore-call")
        server = grpc.server(pool, options=_options())
        server.add_generic_rpc_handlers((handler,))
        _bind(server, path)
        server.start()
        try:
            yield
        finally:
            server.stop(grace_s).wait()
            pool.shutdown()
            with suppress(FileNotFoundError):
                path.unlink()
    finally:
        os.close(lock)


def notify_systemd(address: str, state: str) -> None:
    """Tell the service manager at `address` (its NOTIFY_SOCKET) a state, as sd_notify(3)."""
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(name)
        sender.sendall(state.encode())


def _options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ("grpc.max_send_message_length", _MAX_MESSAGE),
    ]


def _remove_stale(path: Path) -> None:
    """Remove the socket of a service that has died; whoever answers on it lives, lock or not."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"{path} is there and no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise Busy(f"something else answers on {path}")


def _bind(server: grpc.Server, path: Path) -> None:
    """Bind; nobody but the owner can connect at any moment."""
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise FailedPrecondition(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(before)
    files.change_mode(path, 0o600)  # a directory's default ACL counts for more than the umask

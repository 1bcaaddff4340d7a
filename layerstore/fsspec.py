"""Images as an fsspec filesystem, for pandas, dask, fsspec's caches and whatever else speaks it: extra `fsspec`.

    fsspec.open("layerstore://python:3.12/etc/os-release", store="/var/lib/layerstore")
    pandas.read_csv("layerstore://python:3.12/etc/passwd", sep=":", storage_options={"store": …})

A path is an image's name, as `layerstore images` shows it or shorter, and a path in its root filesystem. The name ends
at the first slash up to which it names an image. Read only.

Source: fsspec.spec.AbstractFileSystem. This is the only module that imports fsspec.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec.spec import AbstractFileSystem

from layerstore.api import open_store
from layerstore.errors import InvalidArgument, NotFound
from layerstore.images.lookup import find_image
from layerstore.view import NoSuchPath, View, open_view

if TYPE_CHECKING:
    import io

    from layerstore.digest import Digest

__all__ = ["LayerstoreFileSystem"]

_MAX_NAME_PARTS = 8  # components that an image's name may have
_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


class LayerstoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The images of one store.

    The store is opened for reading when it is first used, and stays open as long as fsspec keeps this instance.
    Thread safety: all methods, from any thread.
    """

    protocol = "layerstore"
    root_marker = ""

    def __init__(self, store: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Use the store in the folder `store`; `options` are fsspec's own.

        fsspec takes arguments from its configuration, too: FSSPEC_LAYERSTORE_STORE in the environment is this one.

        Raises: InvalidArgument: nobody says which store. NotFound: no store is there.
        """
        if store is None:
            raise InvalidArgument(
                "which store? Give store=FOLDER, or FSSPEC_LAYERSTORE_STORE=FOLDER in the environment"
            )
        super().__init__(store=store, **options)
        self._store = open_store(store, create=False, read_only=True)
        self._views: dict[Digest, View] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the store; the instance is of no more use."""
        self._store.close()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a directory; of the top, the images. Raises as `View.listdir`."""
        path = self._strip_protocol(path)
        if not path:
            infos = [_image(name) for image in self._store.images() for name in image.names]
        else:
            view, inside, prefix = self._locate(path)
            if view.is_dir(inside):
                infos = [_info(view, each.path, prefix) for each in view.scandir(inside or "/")]
            else:
                infos = [_info(view, inside, prefix)]
        return infos if detail else [info["name"] for info in infos]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What a path is, with fsspec's names and those of its local filesystem. Raises as `View.stat`."""
        path = self._strip_protocol(path)
        if not path:
            return _image("")
        view, inside, prefix = self._locate(path)
        return _info(view, inside, prefix)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes of a file, or of a range of it; negative numbers count from its end."""
        view, inside, _prefix = self._locate(self._strip_protocol(path))
        size = view.stat(inside).st_size
        first = _position(0 if start is None else start, size)
        last = _position(size if end is None else end, size)
        return view.read_at(inside, first, max(last - first, 0))

    def modified(self, path: str) -> datetime:
        """When a file was last changed."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def sign(self, path: str, expiration: int = 100, **_: Any) -> NoReturn:
        """There are no URLs: fsspec wants this error of filesystems without."""
        raise NotImplementedError("files in images have no URLs to sign")

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> NoReturn:
        """Images are never written."""
        raise _read_only(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> NoReturn:
        """Images are never written."""
        raise _read_only(path)

    def rmdir(self, path: str) -> NoReturn:
        """Images are never written."""
        raise _read_only(path)

    def _rm(self, path: str) -> NoReturn:
        raise _read_only(path)

    def cp_file(self, path1: str, path2: str, **_: Any) -> NoReturn:
        """Images are never written."""
        raise _read_only(path2)

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        if mode != "rb":
            raise _read_only(path)
        view, inside, _prefix = self._locate(path)
        return view.open(inside)

    def _locate(self, path: str) -> tuple[View, str, str]:
        """The image of a path, the path in it, and the part that names the image."""
        parts = path.split("/")
        for count in range(1, min(len(parts), _MAX_NAME_PARTS) + 1):
            name = "/".join(parts[:count])
            try:
                digest = find_image(self._store.store, name)
            except (NotFound, InvalidArgument):
                continue
            return self._view(digest), "/" + "/".join(parts[count:]), name
        raise NoSuchPath(errno.ENOENT, "no image of this name", path)

    def _view(self, digest: Digest) -> View:
        with self._lock:
            view = self._views.get(digest)
            if view is None:
                store = self._store.store
                with store.read() as txn:
                    record = store.catalog.image(txn, digest)
                if record is None:
                    raise NotFound(f"{digest} has no image in this store")
                view = self._views[digest] = open_view(store, record.diff_ids)
            return view


def _info(view: View, inside: str, prefix: str) -> dict[str, Any]:
    """As fsspec's local filesystem says it: a symbolic link has the type and size of what it leads to, if it leads."""
    status = view.lstat(inside)
    info: dict[str, Any] = {
        "name": (prefix + inside).rstrip("/"),
        "islink": stat.S_ISLNK(status.st_mode),
        "ino": status.st_ino,
    }
    if info["islink"]:
        info["destination"] = view.readlink(inside)
        if view.exists(inside):
            status = view.stat(inside)
    kind = _TYPES.get(stat.S_IFMT(status.st_mode), "other")
    return info | {
        "type": kind,
        "size": status.st_size if kind == "file" else 0,
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime,
        "nlink": status.st_nlink,
    }


def _image(name: str) -> dict[str, Any]:
    return {"name": name, "type": "directory", "size": 0}


def _position(number: int, size: int) -> int:
    return max(number + size, 0) if number < 0 else min(number, size)


def _read_only(path: str) -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS), path)

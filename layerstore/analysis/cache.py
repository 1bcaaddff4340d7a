"""Chunk lists of layers on disk, by diff ID: the second analysis reads no layer.

    DIR/<two digits>/<diff ID>.npz      BLAKE3 of the rest (32 bytes), then an .npz archive of numpy

A file that is damaged, or of another version, is as good as none. Files are replaced as wholes; several processes may
share a folder. How chunks are cut and compressed is in the version.
"""

from __future__ import annotations

import io
import json
import secrets
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from layerstore import kernels
from layerstore.analysis.layer import CutLayer

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.digest import DiffID

__all__ = ["LayerCache"]

_VERSION = "layers-1"
_ARRAYS = ("chunks", "lengths", "encoded", "files", "sizes")


class LayerCache:
    """The lists in one folder, made when there is something to put; without a folder nothing is kept.

    Thread safety: all methods, from any thread.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / _VERSION if folder is not None else None

    def get(self, diff_id: DiffID) -> CutLayer | None:
        """A layer's list, or None."""
        if self._folder is None:
            return None
        try:
            data = self._path(self._folder, diff_id).read_bytes()
        except OSError:
            return None
        if kernels.blake3(data[32:]) != data[:32]:
            return None
        try:
            with np.load(io.BytesIO(data[32:]), allow_pickle=False) as found:
                facts = json.loads(found["facts"].tobytes())
                arrays = {name: found[name] for name in _ARRAYS}
        except (KeyError, ValueError, zipfile.BadZipFile):
            return None
        facts["named"] = tuple((position, path) for position, path in facts["named"])
        return CutLayer(**facts, **arrays)

    def put(self, diff_id: DiffID, layer: CutLayer) -> None:
        """Keep a layer's list. A folder that cannot be written to keeps nothing, and that is no error."""
        if self._folder is None:
            return
        fields = layer._asdict()
        arrays = {name: fields.pop(name) for name in _ARRAYS}
        facts = np.frombuffer(json.dumps(fields).encode(), "u1")
        stream = io.BytesIO()
        np.savez(stream, facts=facts, **arrays)
        data = stream.getvalue()
        path = self._path(self._folder, diff_id)
        new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(kernels.blake3(data) + data)
            new.replace(path)
        except OSError:
            with suppress(OSError):
                new.unlink()

    @staticmethod
    def _path(folder: Path, diff_id: DiffID) -> Path:
        digits = diff_id.removeprefix("sha256:")
        return folder / digits[:2] / f"{digits}.npz"

"""A temporary copy on disk of an archive that cannot be read at random: a pipe, or a compressed file.

The copy has no name, so that nothing is left behind whatever happens to the process.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from layerstore.archives.member import SharedFile
from layerstore.store.files import no_room

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.formats.codecs import Decoder
    from layerstore.limits import Limits

__all__ = ["spool"]

_PIECE = 1 << 20


def spool(source: Decoder, folder: Path, limits: Limits, name: str) -> SharedFile:
    """Copy a stream to an unnamed file in `folder`; its space is free again when the result is closed.

    Raises:
        StoreFull: no room in `folder`.
        LimitExceeded: more than `spool_bytes`, or beyond `ratio`.
        MalformedInput: what the source raises.
    """
    with no_room(f"write {folder}"):
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # outlives this call
    try:
        total = 0
        while data := source.read(_PIECE):
            total += len(data)
            limits.check("spool_bytes", total, source=name)
            limits.check_growth(source.consumed, total, source=name)
            rest = memoryview(data)
            with no_room(f"write {folder}"):
                while rest:
                    rest = rest[file.write(rest) :]
        return SharedFile(file, 0, name)
    except BaseException:
        file.close()
        raise

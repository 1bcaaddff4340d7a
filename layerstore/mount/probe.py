"""Can this kernel read a chunk file in place? Asked by doing it once, small.

A version says little: EROFS with zstd, with files as devices and with encoded extents are three settings of a kernel
beside its version (6.15), and a container may forbid mounting. So an image with one file is mounted, at no place, and
the file is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from layerstore.errors import LayerstoreError
from layerstore.formats.erofs import SPAN, DataFiles, content_path, write_data_image
from layerstore.formats.frame import FrameEncoder
from layerstore.mount.linux import MountFlag, create_mount

__all__ = ["probe_erofs"]

_FEATURE = Path("/sys/fs/erofs/features/48bit")  # asking it first saves a line in the kernel's log
_BLOCK = 4096
_TEXT = b"layerstore reads this through the kernel\n" * 100
_NAME = b"00probe"


def probe_erofs(folder: Path) -> str:
    """Why this kernel cannot read a chunk file in `folder` in place, for people; empty if it can.

    Files of 4 KiB come and go in `folder`, which must be on the filesystem of the store, as that matters too: images
    on tmpfs and overlayfs cannot be mounted.
    """
    if not _FEATURE.exists():
        return "Linux 6.15 or later with EROFS is needed"
    frame = bytes(FrameEncoder().encode([_TEXT])[0])
    spans = np.array([(0, len(frame), len(_TEXT))], SPAN)
    files = DataFiles([_NAME], np.array([1]), spans)
    with TemporaryDirectory(prefix="probe-", dir=folder) as scratch:
        chunks, image = Path(scratch, "chunks"), Path(scratch, "image")
        chunks.write_bytes(frame.ljust(_BLOCK, b"\0"))
        image.write_bytes(write_data_image(files, _BLOCK, bytes(16)))
        options = [("source", image), ("device", chunks)]
        try:
            with create_mount("erofs", [*options, "ro"], MountFlag.READ_ONLY) as mount:
                read = _read(mount.fd, content_path(_NAME)[1:])
        except (LayerstoreError, OSError) as error:
            return str(error)
    return "" if read == _TEXT else "the kernel reads other bytes than were stored"


def _read(folder: int, path: bytes) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()

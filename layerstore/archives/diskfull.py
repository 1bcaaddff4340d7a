"""A full disk or quota under a file that this package writes becomes `StoreFull`; every other OSError stays itself."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from layerstore.errors import StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["naming_full_disk"]


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raise StoreFull, naming `path`, where the body fails for lack of space."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StoreFull(
                f"{path}: {error.strerror}; free some space or choose another place"
            ) from error
        raise

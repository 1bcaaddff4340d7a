"""What the process says when it ends: an exit code and a message for every error.

    0 done    1 other    2-10 the error tree    70 a bug    74 the disk    128+n stopped by signal n

Source: `layerstore.errors` (2 to 10), BSD sysexits.h (70 EX_SOFTWARE, 74 EX_IOERR), POSIX shells (128+n).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from layerstore import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BUG", "DAMAGED", "EXIT_CODES", "USAGE", "exit_code", "message_of"]

USAGE: Final = 2
DAMAGED: Final = 7
BUG: Final = 70
_IO_ERROR: Final = 74

EXIT_CODES: Final[Mapping[type[errors.LayerstoreError], int]] = {
    errors.LayerstoreError: 1,
    errors.InvalidArgument: USAGE,
    errors.NotFound: 3,
    errors.AlreadyExists: 4,
    errors.FailedPrecondition: 5,
    errors.MalformedInput: 6,
    errors.DigestMismatch: 6,
    errors.LimitExceeded: 6,
    errors.CorruptStore: DAMAGED,
    errors.Unsupported: 8,
    errors.Busy: 9,
    errors.StoreFull: 10,
}
"""A row for every class of the error tree; a test looks for missing ones."""

# What the user can put right by naming another path or changing its permissions.
_PATH_ERRORS = frozenset(
    (
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
        *(errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.ETXTBSY, errno.ENXIO, errno.EBADF),
    )
)
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def exit_code(error: BaseException) -> int:
    """The exit code of an error; `BUG` for what nobody raised on purpose."""
    if isinstance(error, errors.LayerstoreError):
        return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
    if isinstance(error, OSError):
        if error.errno in _PATH_ERRORS:
            return USAGE
        return EXIT_CODES[errors.StoreFull] if error.errno in _NO_ROOM else _IO_ERROR
    return BUG


def message_of(error: BaseException) -> str:
    """One line for people."""
    if isinstance(error, errors.LayerstoreError):
        return str(error) or type(error).__name__
    if isinstance(error, OSError):
        problem = error.strerror or str(error) or type(error).__name__
        return f"{os.fsdecode(error.filename)}: {problem}" if error.filename else problem
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{what}; this is a bug, run with --debug to see where"

"""The error table of gRPC: every error as a status code, with the words that containerd's client looks for.

containerd's client turns a code into one of its own errors and cuts the class's words off the end of the message, so
messages end with them.

Source: gRPC `statuscodes.md`; containerd `errdefs/grpc.go`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from grpc import StatusCode

from layerstore import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STATUS_CODES", "message_of", "status_code"]

STATUS_CODES: Final[Mapping[type[errors.LayerstoreError], StatusCode]] = {
    errors.LayerstoreError: StatusCode.UNKNOWN,
    errors.InvalidArgument: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    errors.MalformedInput: StatusCode.INVALID_ARGUMENT,
    errors.DigestMismatch: StatusCode.INVALID_ARGUMENT,
    errors.LimitExceeded: StatusCode.INVALID_ARGUMENT,
    errors.CorruptStore: StatusCode.DATA_LOSS,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.Busy: StatusCode.UNAVAILABLE,
    errors.StoreFull: StatusCode.RESOURCE_EXHAUSTED,
}
"""A row for every class of the error tree; a test looks for missing ones."""

_WORDS = {
    StatusCode.INVALID_ARGUMENT: "invalid argument",
    StatusCode.NOT_FOUND: "not found",
    StatusCode.ALREADY_EXISTS: "already exists",
    StatusCode.FAILED_PRECONDITION: "failed precondition",
    StatusCode.UNIMPLEMENTED: "not implemented",
    StatusCode.UNAVAILABLE: "unavailable",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def status_code(error: BaseException) -> StatusCode:
    """The code of an error; INTERNAL for the disk's errors, and for what nobody raised on purpose."""
    if isinstance(error, errors.LayerstoreError):
        return next(STATUS_CODES[kind] for kind in type(error).__mro__ if kind in STATUS_CODES)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return StatusCode.RESOURCE_EXHAUSTED
    return StatusCode.INTERNAL


def message_of(error: BaseException) -> str:
    """The message, ending with the words of its class where containerd has any."""
    said = str(error) or type(error).__name__
    if not isinstance(error, errors.LayerstoreError | OSError):
        said = f"{type(error).__name__}: {said}; this is a bug, the service's log shows where"
    words = _WORDS.get(status_code(error), "")
    return said if said.endswith(words) else f"{said}: {words}"

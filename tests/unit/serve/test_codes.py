from __future__ import annotations

import errno
import inspect

import grpc
import pytest

from layerstore import errors
from layerstore.serve.codes import STATUS_CODES, message_of, status_code


def test_every_error_of_the_tree_has_a_row() -> None:
    classes = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.LayerstoreError)
    }
    assert set(STATUS_CODES) == classes


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.NotFound("no such"), "NOT_FOUND", "no such: not found"),
        (errors.NotFound("no such: not found"), "NOT_FOUND", "no such: not found"),
        (errors.AlreadyExists("k"), "ALREADY_EXISTS", "k: already exists"),
        (errors.FailedPrecondition("k"), "FAILED_PRECONDITION", "k: failed precondition"),
        (errors.DigestMismatch("a", "b", 3), "INVALID_ARGUMENT", None),
        (errors.LimitExceeded("entries", 3, 2), "INVALID_ARGUMENT", None),
        (errors.CorruptStore("chunk 7"), "DATA_LOSS", "chunk 7"),
        (errors.StoreFull("no room"), "RESOURCE_EXHAUSTED", "no room"),
        (OSError(errno.ENOSPC, "full"), "RESOURCE_EXHAUSTED", "[Errno 28] full"),
        (OSError(errno.EIO, "disk"), "INTERNAL", "[Errno 5] disk"),
        (KeyError("x"), "INTERNAL", "KeyError: 'x'; this is a bug, the service's log shows where"),
    ],
)
def test_codes_and_messages_are_what_containerd_reads(
    error: Exception, code: str, message: str | None
) -> None:
    assert status_code(error) is grpc.StatusCode[code]
    if message is not None:
        assert message_of(error) == message


def test_a_subclass_has_the_row_of_its_nearest_base() -> None:
    class Narrower(errors.StoreFull):
        pass

    assert status_code(Narrower("x")) is grpc.StatusCode.RESOURCE_EXHAUSTED

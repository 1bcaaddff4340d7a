"""Fuzz target: a layer tar that comes in blocks.

Whatever the bytes: only `MalformedInput` may leave, what was split joins to the input, and the sizes of the blocks
make no difference. The first input byte chooses the blocks, the others are the tar; headers get a right checksum, as
a fuzzer would not find one by itself.
"""

from __future__ import annotations

from layerstore.errors import MalformedInput
from layerstore.formats.layertar import entries_of
from layerstore.tree import Kind
from tests.support.layers import Pieces, split
from tests.support.tars import DIALECTS, with_checksums

__all__ = ["check", "seeds"]

_MAX_NAME, _MAX_PATH = 255, 4096


def check(data: bytes) -> None:
    """Raises AssertionError, or what should not have left."""
    if not data:
        return
    size, tar = 1 + data[0] * 7, with_checksums(data[1:])
    whole, pieces = _split([tar]), _split([tar[at : at + size] for at in range(0, len(tar), size)])
    assert whole == pieces, "block sizes make a difference"
    if isinstance(whole, str):
        return
    assert whole.join() == tar
    stored = sum(len(payload) for _, payload in whole.payloads)
    try:
        entries = entries_of(whole.members)
    except MalformedInput as error:
        _check_place(error)
        return
    assert sum(entry.stored for entry in entries) <= stored
    for entry in entries:
        names = entry.path.split(b"/") if entry.path else []
        assert len(entry.path) <= _MAX_PATH
        assert all(0 < len(name) <= _MAX_NAME for name in names)
        assert not {b".", b".."} & set(names)
        assert b"\0" not in entry.path + entry.link
        assert entry.kind is not Kind.FILE or names


def seeds() -> dict[str, bytes]:
    """Inputs to start from."""
    return {name: b"\x49" + tar[:20_000] for name, tar in DIALECTS.items()}


def _split(blocks: list[bytes]) -> Pieces | str:
    try:
        return split(blocks, give_back=100)
    except MalformedInput as error:
        _check_place(error)
        return error.problem


def _check_place(error: MalformedInput) -> None:
    assert error.offset is not None, "no offset"

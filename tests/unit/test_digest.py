from __future__ import annotations

import hashlib
import io

import pytest

from layerstore.digest import (
    DiffID,
    Digest,
    VerifyingReader,
    chain_id,
    digest_of,
    from_raw,
    parse_digest,
    raw,
)
from layerstore.errors import DigestMismatch, InvalidArgument
from tests.support.layers import Trickle

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
DATA = b"some bytes " * 1000


def test_a_digest_is_sha256_in_lower_case_hex() -> None:
    assert digest_of(b"") == EMPTY == parse_digest(EMPTY)
    assert from_raw(raw(Digest(EMPTY))) == EMPTY
    assert raw(Digest(EMPTY)) == hashlib.sha256().digest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        EMPTY[7:],
        EMPTY.upper(),
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY + "\n",
        " " + EMPTY,
        EMPTY.replace("e3", "g3"),
        EMPTY.replace("sha256", "sha512"),
        EMPTY.replace("e3b", "é3b"),
        None,
        7,
        EMPTY.encode(),
    ],
)
def test_other_texts_are_no_digests(text: object) -> None:
    with pytest.raises(InvalidArgument):
        parse_digest(text)


def test_a_chain_id_names_a_stack() -> None:
    one, two, three = (DiffID(digest_of(bytes([n]))) for n in range(3))
    assert str(chain_id([one])) == one
    pair = "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest()
    assert chain_id([one, two]) == pair
    assert chain_id([one, two, three]) == digest_of(f"{pair} {three}".encode())
    assert chain_id([two, one]) != chain_id([one, two])
    with pytest.raises(InvalidArgument):
        chain_id([])


@pytest.mark.parametrize("steps", [(1 << 20,), (1,), (7, 100)])
def test_the_promised_bytes_pass(steps: tuple[int, ...]) -> None:
    for size in (None, len(DATA)):
        for want in (None, digest_of(DATA)):
            reader = VerifyingReader(Trickle(DATA, *steps), want, size)
            parts = []
            while part := reader.read(4096):
                parts.append(part)
            assert b"".join(parts) == DATA
            assert reader.finish() == digest_of(DATA)
            assert reader.count == len(DATA)


def test_finish_reads_what_nobody_has_read() -> None:
    reader = VerifyingReader(io.BytesIO(DATA), digest_of(DATA), len(DATA))
    reader.read(10)
    assert reader.finish() == digest_of(DATA)


def test_too_many_bytes_are_noticed_and_not_swallowed() -> None:
    source = io.BytesIO(DATA + b"more")
    with pytest.raises(DigestMismatch) as caught:
        VerifyingReader(source, None, len(DATA), "blob").finish()
    assert (caught.value.want, caught.value.got) == (f"{len(DATA)} bytes", "more")
    assert caught.value.source == "blob"
    assert source.tell() == len(DATA) + 1


def test_too_few_bytes_are_noticed() -> None:
    with pytest.raises(DigestMismatch) as caught:
        VerifyingReader(io.BytesIO(DATA), None, len(DATA) + 1, "blob").finish()
    assert caught.value.got == f"{len(DATA)} bytes"


def test_other_bytes_are_noticed() -> None:
    with pytest.raises(DigestMismatch) as caught:
        VerifyingReader(io.BytesIO(DATA), Digest(EMPTY), None).finish()
    assert (caught.value.want, caught.value.got, caught.value.size) == (
        EMPTY,
        digest_of(DATA),
        len(DATA),
    )

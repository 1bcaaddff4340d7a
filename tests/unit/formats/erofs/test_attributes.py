"""Which attributes are shared, which stand behind their inode, and what does not fit."""

from __future__ import annotations

import pytest

from layerstore.formats.erofs.attributes import encode_attribute, is_showable, pack_attributes


def test_a_set_of_one_inode_stands_behind_it() -> None:
    packed = pack_attributes([{b"user.a": b"1"}], [1])
    assert packed.shared == b""
    assert packed.bodies == [bytes(12) + b"\x01\x01\x01\x00a1\0\0"]


def test_what_two_inodes_have_is_shared() -> None:
    packed = pack_attributes([{b"user.a": b"1"}, {b"user.b": b"2", b"user.a": b"1"}], [1, 1])
    own = encode_attribute(b"user.b", b"2")
    assert packed.shared == encode_attribute(b"user.a", b"1")
    head = bytes(4) + b"\x01" + bytes(7) + bytes(4)
    assert packed.bodies == [head, head + own]


def test_a_long_one_is_shared_even_if_one_inode_has_it() -> None:
    packed = pack_attributes([{b"user.a": bytes(2000)}], [1])
    assert len(packed.shared) == 2008
    assert len(packed.bodies[0]) == 16


def test_a_set_with_nothing_to_show_has_no_header() -> None:
    assert pack_attributes([{b"system.other": b"1"}, {}], [3, 1]) == ([b"", b""], b"")


def test_no_more_than_255_are_shared_and_the_rest_stands_behind() -> None:
    found = {b"user.%04d" % number: b"" for number in range(300)}
    packed = pack_attributes([found], [2])
    assert packed.bodies[0][4] == 255
    assert len(packed.bodies[0]) == 12 + 255 * 4 + 45 * 8


def test_what_no_inode_can_carry_is_left_out_from_the_end() -> None:
    found = {b"user.%05d" % number: bytes(1000) for number in range(400)}
    packed = pack_attributes([found], [1])
    assert len(packed.bodies[0]) <= 65_534 * 4 + 12
    kept = len(packed.bodies[0]) // 1012
    assert 200 < kept < 300
    assert packed.bodies[0].endswith(encode_attribute(b"user.%05d" % (kept - 1), bytes(1000)))


@pytest.mark.parametrize(
    ("name", "length", "shown"),
    [
        (b"user.a", 65_535, True),
        (b"user.a", 65_536, False),
        (b"trusted.a", 0, True),
        (b"security.a.b", 0, True),
        (b"system.posix_acl_access", 4, True),
        (b"system.posix_acl_default", 4, True),
        (b"system.posix_acl_other", 4, False),
        (b"user.", 0, False),
        (b"user", 0, False),
        (b"lustre.a", 0, False),
        (b"", 0, False),
    ],
)
def test_what_linux_can_show(name: bytes, length: int, shown: bool) -> None:
    assert is_showable(name, bytes(length)) == shown

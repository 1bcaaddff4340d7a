"""The reader believes nothing, and the dump shows what it found."""

from __future__ import annotations

import random

import pytest

from layerstore.errors import CorruptStore
from layerstore.formats.erofs import dump, read_image, write_image
from layerstore.formats.erofs.ondisk import BLOCK, CHECKSUM_SEED, crc32c
from tests.support.erofs_images import DEVICE_BYTES, UUID, spans_of, tree_of
from tests.support.trees import device, directory, file, symlink

TREE = tree_of(
    directory(b"d", xattrs={b"user.x": b"1"}),
    file(b"d/f", (7, 5000), (0, 70), (8, 70), mtime=(12, 34), xattrs={b"user.x": b"1"}),
    file(b"zeros", (0, 9)),
    symlink(b"l", b"d/f"),
    device(b"tty", 5, 1),
)
IMAGE = write_image(TREE, spans_of(TREE), DEVICE_BYTES, UUID)


def sealed(data: bytearray) -> bytes:
    """With a checksum that holds, as somebody who means harm would write it."""
    data[1028:1032] = crc32c(bytes(data[1032:BLOCK]), CHECKSUM_SEED).to_bytes(4, "little")
    return bytes(data)


def patched(at: int, value: bytes) -> bytes:
    data = bytearray(IMAGE)
    data[at : at + len(value)] = value
    return sealed(data)


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789", 0xFFFFFFFF) ^ 0xFFFFFFFF == 0xE3069283  # RFC 3720, B.4


@pytest.mark.parametrize("length", [0, 1024, BLOCK, len(IMAGE) - 1, len(IMAGE) + BLOCK])
def test_an_image_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(CorruptStore):
        read_image(IMAGE.ljust(length, b"\0")[:length])


@pytest.mark.parametrize("at", [1024, 1028, 1040, 1100, 2048 + 64])
def test_a_flipped_bit_in_the_head_is_noticed(at: int) -> None:
    data = bytearray(IMAGE)
    data[at] ^= 1
    with pytest.raises(CorruptStore, match="superblock"):
        read_image(bytes(data))


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (1036, b"\x09", "other features"),
        (1104, b"\xff\xff", "other features"),
        (1110, b"\x02", "other features"),
        (1060, b"\x01\0\0\0", "cut off"),
        (1040, b"\x63", "where the superblock says 99"),
        (1024 + 112, b"\xff" * 8, "out of the image"),
        (2048 + 68, b"\x01", "elsewhere"),
    ],
)
def test_a_head_that_lies_is_refused(at: int, value: bytes, problem: str) -> None:
    with pytest.raises(CorruptStore, match=problem):
        read_image(patched(at, value))


def test_no_damage_gives_another_error() -> None:
    rng = random.Random(4)
    refused = 0
    for _ in range(1500):
        data = bytearray(IMAGE)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(BLOCK, len(data))] = rng.choice(
                [0, 1, 0x7F, 0xFF, rng.randrange(256)]
            )
        try:
            dump(read_image(sealed(data)))
        except CorruptStore:
            refused += 1
    assert refused > 50


def test_directories_in_a_circle_are_refused() -> None:
    image = read_image(IMAGE)
    nodes = dict(image.walk())
    nid = nodes[b"l"].nid.to_bytes(8, "little")
    assert IMAGE.count(nid) == 1
    at = IMAGE.index(nid)  # the dirent of l: make it a second name of d
    entry = nodes[b"d"].nid.to_bytes(8, "little") + IMAGE[at + 8 : at + 10] + b"\x02"
    with pytest.raises(CorruptStore, match="two names"):
        read_image(patched(at, entry))


def test_overlapping_directories_do_not_multiply() -> None:
    tree = tree_of(*(directory(b"d%04d" % number) for number in range(400)), *(
        file(b"d0000/" + b"%0250d" % number) for number in range(300)
    ))  # fmt: skip
    data = bytearray(write_image(tree, spans_of(tree), DEVICE_BYTES, UUID))
    nodes = dict(read_image(bytes(data)).walk())
    large = nodes[b"d0000"].nid * 32
    for number in range(1, 400):
        at = nodes[b"d%04d" % number].nid * 32
        data[at : at + 24] = data[large : large + 24]
    with pytest.raises(CorruptStore):
        read_image(sealed(data))


def test_the_dump_says_what_is_there() -> None:
    lines = dump(read_image(IMAGE)).splitlines()
    assert lines[0].startswith(f"uuid {UUID.hex()}")
    at = next(
        number
        for number, line in enumerate(lines)
        if line.startswith("/d/f  file 0644 0:0 size 5140")
    )
    assert "mtime 12.000000034" in lines[at]
    assert lines[at + 1 : at + 5] == [
        "    user.x = b'1'",
        f"    +0 5000: 2501 bytes at {7 << 21}",
        "    +5000 70: zeros",
        f"    +5070 70: 83 bytes at {8 << 21} partial",
    ]
    assert "    -> b'd/f'" in lines
    assert "    device 5:1" in lines

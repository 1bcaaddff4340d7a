"""Splitting gzip into plain bytes and a recipe, and joining it again, exactly."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import random
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from layerstore import kernels
from layerstore.errors import CorruptStore, Unsupported
from layerstore.formats.gzipsplit import (
    Family,
    GzipRecipe,
    Joiner,
    Model,
    NotSplit,
    decode_recipe,
    describe,
    encode_recipe,
    split_gzip,
)
from tests.support.gzips import encoders, join_all, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[2] / "data"
GO = Path(__file__).parents[2] / "data" / "gzip_go.go"

pytestmark = pytest.mark.skipif(
    kernels.NAME != "native", reason="splitting needs the native kernels"
)

EDGES = [
    0,
    1,
    2,
    3,
    4,
    5,
    12,
    13,
    14,
    17,
    18,
    257,
    258,
    259,
    263,
    4096,
    32506,
    32507,
    32767,
    32768,
    32769,
]
EDGES += [65534, 65535, 65536, 65274, 65275, 65276, 98304, 131071, 131072, 131073, 262144]
BIG_EDGES = [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_001]


def split(blob: bytes) -> GzipRecipe:
    recipe = split_gzip(io.BytesIO(blob))
    return decode_recipe(encode_recipe(recipe))


def check(blob: bytes, plain: bytes) -> GzipRecipe:
    recipe = split(blob)
    assert recipe.plain_size == len(plain)
    assert recipe.blob_size == len(blob)
    assert join_all(recipe, plain) == blob
    return recipe


@pytest.mark.parametrize("name", sorted(encoders()))
def test_edge_sizes_come_back_exactly(name: str) -> None:
    encode, text = encoders()[name], text_of(3_000_001)
    for size in EDGES:
        check(encode(text[:size]), text[:size])
    for size in BIG_EDGES[1:3]:
        recipe = check(encode(text[:size]), text[:size])
        if "gzip" in name or "pigz" in name or "-6" in name or "-9" in name:
            assert len(encode_recipe(recipe)) < 3500


@pytest.mark.client("go")
def test_gos_own_encoder_is_foreseen(tmp_path: Path) -> None:
    program = tmp_path / "encode"
    environment = {
        "HOME": str(tmp_path),
        "GOCACHE": str(tmp_path / "cache"),
        "PATH": "/usr/bin:/bin",
    }
    subprocess.run(["go", "build", "-o", program, GO], check=True, env=environment)
    text = text_of(1_300_000)
    for level in (1, 2, 3, 6, 9):
        for size in (0, 4, 17, 65535, 65536, 131073, len(text)):
            blob = subprocess.run(
                [program, str(level)], input=text[:size], capture_output=True, check=True
            ).stdout
            recipe = check(blob, text[:size])
        assert recipe.model.family in (Family.GO, Family.GO_FAST)
        assert len(encode_recipe(recipe)) < len(blob) // 200


def test_members_in_a_row_are_one_blob() -> None:
    """As estargz makes layers: a member for every file."""
    rng, text = random.Random(3), text_of(600_000)
    parts, at = [], 0
    while at < len(text):
        size = rng.choice([0, 1, 40, 700, 9000, 70_000])
        parts.append(text[at : at + size])
        at += size
    blob = b"".join(gzip.compress(part, 9, mtime=0) for part in parts)
    recipe = check(blob, text)
    assert len(encode_recipe(recipe)) < len(blob) // 50


def test_headers_with_names_extras_and_checksums_come_back() -> None:
    text = text_of(20_000)
    body = zlib.compressobj(6, wbits=-15)
    deflated = body.compress(text) + body.flush()
    header = (
        b"\x1f\x8b\x08\x1e\x00\x00\x00\x00\x02\x03" + b"\x05\x00abcde" + b"name\0" + b"comment\0"
    )
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    trailer = zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    blob = header + deflated + trailer
    check(blob + blob, text + text)


def test_flushes_stored_and_fixed_blocks_come_back() -> None:
    text = text_of(400_000)
    encoder = zlib.compressobj(6, wbits=31)
    parts = []
    for at in range(0, len(text), 30_000):
        parts.append(encoder.compress(text[at : at + 30_000]))
        parts.append(encoder.flush(zlib.Z_FULL_FLUSH if at % 60_000 else zlib.Z_SYNC_FLUSH))
    check(b"".join(parts) + encoder.flush(), text)
    for strategy in (zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FILTERED):
        encoder = zlib.compressobj(6, zlib.DEFLATED, 31, 8, strategy)
        blob = encoder.compress(text) + encoder.flush()
        try:
            check(blob, text)
        except NotSplit as error:
            assert "encoder" in str(error)  # noqa: PT017 - either is right, but nothing else


@pytest.mark.parametrize(
    "spoil",
    [
        lambda blob: blob + bytes(100),
        lambda blob: blob + b"behind",
        lambda blob: blob[:-1],
        lambda blob: blob[: len(blob) // 2],
        lambda blob: b"",
        lambda blob: b"\x1f\x8b\x08",
        lambda blob: b"no gzip at all",
        lambda blob: blob[:3] + b"\xff" + blob[4:],
    ],
    ids=["zeros", "bytes", "cut", "half", "empty", "magic", "text", "flags"],
)
def test_what_is_not_gzip_to_its_last_byte_is_not_split(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(NotSplit):
        split(spoil(gzip.compress(text_of(50_000))))


def test_any_flipped_bit_is_split_exactly_or_not_at_all() -> None:
    """A stream may stay well formed; then its recipe is of those very bytes, wrong checksum and all."""
    rng, text = random.Random(5), text_of(9000)
    blob = gzip.compress(text)
    for _ in range(300):
        spoiled = bytearray(blob)
        spoiled[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        try:
            recipe = split(bytes(spoiled))
        except NotSplit:
            continue
        plain = zlib.decompressobj(-15).decompress(bytes(spoiled[10:]))
        if len(plain) == recipe.plain_size:
            assert join_all(recipe, plain) == bytes(spoiled)


def test_a_bomb_and_a_trap_for_searchers_take_bounded_time() -> None:
    """20 MB of zeros in 20 kB; and hash chains that are long and lead nowhere."""
    zeros = bytes(20_000_000)
    check(gzip.compress(zeros, 9), zeros)
    trap = b"".join(b"abc" + bytes([i % 251, i % 241]) for i in range(120_000))
    check(gzip.compress(trap, 9), trap)


def test_another_text_or_another_recipe_is_refused_or_shows_in_the_digest() -> None:
    text = text_of(300_000)
    blob = gzip.compress(text)
    recipe, rng = split(blob), random.Random(9)
    for _ in range(100):
        spoiled = bytearray(recipe.bodies)
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        other = GzipRecipe(recipe.model, recipe.header, recipe.segments, bytes(spoiled))
        with contextlib.suppress(CorruptStore):
            assert len(join_all(other, text)) == len(blob)
    with pytest.raises(CorruptStore):
        join_all(recipe, text_of(300_000, seed=2))


@pytest.mark.parametrize("damage", [b"", b"LSG1", b"XXXX" + bytes(40), b"LSG1" + bytes(40)])
def test_damaged_recipes_are_our_damage(damage: bytes) -> None:
    with pytest.raises(CorruptStore):
        decode_recipe(damage)
    assert describe(damage[:10]) == "?"


def test_the_model_is_named() -> None:
    recipe = split(gzip.compress(text_of(200_000), 6, mtime=0))
    assert str(recipe.model) == "zlib 6" == describe(encode_recipe(recipe))
    assert str(Model(Family.KLAUSPOST, 5, 1 << 20)) == "klauspost 5, blocks of 1024 KiB"


def test_recipes_of_every_model_join_for_ever() -> None:
    """Goldens: made once by this code (tests/data/make_gzip_recipes.py). A model that behaves otherwise cannot join them."""
    golden = json.loads((DATA / "gzip_recipes.json").read_text())
    text, blob = text_of(golden["size"]), base64.b64decode(golden["blob"])
    assert zlib.decompress(blob, 31) == text
    for name, data in golden["recipes"].items():
        recipe = decode_recipe(base64.b64decode(data))
        assert str(recipe.model) == name
        assert join_all(recipe, text) == blob, name


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        (Family.ZLIB, "35e1ff7054c1d748438cfd4ed5adf8cb150a83cfb3f82e54794eabe5983e99a0"),
        (Family.GO, "d59d1f30c97205e03db2f2c4856bb752bf00404d572200b0a5b21e5268a6a74a"),
    ],
)
def test_where_searching_is_dear_the_recipe_is_as_ever(family: Family, recipe: str) -> None:
    """Each byte is a literal and begins a long match, as no encoder with such a search writes it: what searches cost comes
    near to what they may, and is counted. The digests are of the version that counted always."""
    source = random.Random(3)
    base = bytes(source.choices(range(97, 123), k=100))
    parts = (
        base[: 60 + source.randrange(40)] + bytes([source.randrange(256)]) for _ in range(1500)
    )
    encoder = zlib.compressobj(6, zlib.DEFLATED, 31, 8, zlib.Z_HUFFMAN_ONLY)
    text = b"".join(parts)
    blob = encoder.compress(text) + encoder.flush()
    _, end, _, _, plain, _, body = kernels.gzip_split(
        blob, 0, True, 1, b"", 0, 1 << 20, family, 6, 0, blob[:10]
    )
    assert plain == text
    assert hashlib.sha256(body).hexdigest() == recipe
    assert kernels.gzip_join(body, text, 0, len(text), 0, family, 6, 0, blob[:10], 0, end) == blob


def test_the_pure_kernels_say_what_to_install() -> None:
    pure = kernels._load("pure")[1]
    with pytest.raises(Unsupported, match="native kernels"):
        pure.gzip_split(b"", 0, True, 1, b"", 0, 1, 1, 6, 0, b"")
    with pytest.raises(Unsupported, match="native kernels"):
        pure.gzip_join(b"", b"", 0, 0, 0, 1, 6, 0, b"", 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"bit": -1},
        {"bit": 9},
        {"state": 4},
        {"position": -1},
        {"wanted": (8 << 20) + 1},
        {"family": 0},
        {"family": 9},
        {"level": 0},
        {"block": -1},
    ],
)
def test_bad_arguments_are_refused(change: dict[str, int]) -> None:
    good = {
        "bit": 0,
        "state": 1,
        "position": 0,
        "wanted": 1,
        "family": 1,
        "level": 6,
        "block": 0,
    } | change
    with pytest.raises(ValueError, match=r"must be between|no model"):
        kernels.gzip_split(
            b"x", good["bit"], True, good["state"], b"", good["position"], good["wanted"],
            good["family"], good["level"], good["block"], b"",
        )  # fmt: skip


def test_a_segment_table_that_lies_is_refused() -> None:
    text = text_of(10_000)
    recipe = split(gzip.compress(text))
    for field, value in (("bits", 1), ("plain", 5), ("ahead", 400), ("position", 77)):
        segments = np.array(recipe.segments)
        segments[field] = value
        other = GzipRecipe(recipe.model, recipe.header, segments, recipe.bodies)
        joiner = Joiner(other)
        span = joiner.spans[0]
        try:
            joiner.join(0, text[: span.size])
        except CorruptStore:
            continue
        assert field in ("position", "ahead")  # may make no difference, if nothing hangs on it

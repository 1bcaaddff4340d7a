"""Tars of every dialect, built from raw headers; independent of the code under test.

    entry(b"a", b"data")                          header, payload, padding
    pax([(b"path", b"…")]) + entry(b"a")          an extended header in front
    gnu_long(b"…") + entry(b"a")
    old_sparse / pax_sparse                       GNU's four ways to write a sparse file

`DIALECTS` has a tar for each way of writing that layers were seen with, and some that nobody should write. What is
in them according to Python's `tarfile` is what `as_tarfile_says` gives.
"""

from __future__ import annotations

import io
import random
import tarfile
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "BLOCK",
    "DIALECTS",
    "END",
    "Seen",
    "as_tarfile_says",
    "checksummed",
    "entry",
    "gnu_long",
    "header",
    "noise",
    "old_sparse",
    "padded",
    "pax",
    "pax_sparse",
    "with_checksums",
]

BLOCK = 512
END = bytes(2 * BLOCK)

_MAGIC = {"v7": b"", "ustar": b"ustar\x0000", "gnu": b"ustar  \0"}


class Seen(NamedTuple):
    """An entry as somebody else sees it; `type` is '-dlhcbp', h for a hard link."""

    type: str
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    size: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress; equal seeds give equal bytes."""
    return random.Random(seed).randbytes(size)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def header(
    name: bytes = b"file",
    size: int = 0,
    typeflag: bytes = b"0",
    *,
    form: str = "ustar",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_700_000_000,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    patch: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    """One header block. Numbers that octal cannot hold are base 256; `patch` overwrites bytes at offsets."""
    block = bytearray(BLOCK)
    columns = (
        (0, name[:100]),
        (100, _number(mode, 8)),
        (108, _number(uid, 8)),
        (116, _number(gid, 8)),
        (124, _number(size, 12)),
        (136, _number(mtime, 12)),
        (156, typeflag),
        (157, link[:100]),
        (257, _MAGIC[form]),
        (329, _number(device[0], 8) if form != "v7" else b""),
        (337, _number(device[1], 8) if form != "v7" else b""),
        (345, prefix),
        *patch,
    )
    for offset, value in columns:
        block[offset : offset + len(value)] = value
    return checksummed(bytes(block))


def checksummed(block: bytes) -> bytes:
    """The header with its checksum set right."""
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def with_checksums(tar: bytes) -> bytes:
    """The tar with a right checksum in every block that has the magic of a header."""
    blocks = [tar[at : at + BLOCK] for at in range(0, len(tar), BLOCK)]
    return b"".join(
        checksummed(block) if len(block) == BLOCK and block[257:262] == b"ustar" else block
        for block in blocks
    )


def entry(name: bytes, data: bytes = b"", typeflag: bytes = b"0", **columns: Any) -> bytes:
    """A header and its payload; `columns` as in `header`."""
    return header(name, len(data), typeflag, **columns) + padded(data)


def pax(records: Iterable[tuple[bytes, bytes]], typeflag: bytes = b"x") -> bytes:
    """An extended header with these records."""
    return entry(b"PaxHeaders.0/x", b"".join(_record(*pair) for pair in records), typeflag)


def gnu_long(text: bytes, typeflag: bytes = b"L") -> bytes:
    """GNU's extra entry for a name ('L') or link target ('K') over 100 bytes."""
    return entry(b"././@LongLink", text + b"\0", typeflag, form="gnu")


def old_sparse(name: bytes, stretches: Sequence[tuple[int, bytes]], size: int) -> bytes:
    """GNU's 'S' entry: four stretches in the header, more in extension blocks of 21."""
    pairs = [
        _number(offset, 12, gnu=True) + _number(len(data), 12, gnu=True)
        for offset, data in stretches
    ]
    stored = b"".join(data for _, data in stretches)
    more = [pairs[at : at + 21] for at in range(4, len(pairs), 21)]
    patch = [
        (386, b"".join(pairs[:4])),
        (482, bytes([bool(more)])),
        (483, _number(size, 12, gnu=True)),
    ]
    blocks = [header(name, len(stored), b"S", form="gnu", patch=patch)]
    for number, group in enumerate(more, 1):
        block = b"".join(group).ljust(504, b"\0") + bytes([number < len(more)])
        blocks.append(block.ljust(BLOCK, b"\0"))
    return b"".join(blocks) + padded(stored)


def pax_sparse(
    version: str, name: bytes, stretches: Sequence[tuple[int, bytes]], size: int
) -> bytes:
    """A sparse file in GNU's PAX format 0.0, 0.1 or 1.0."""
    stored = b"".join(data for _, data in stretches)
    numbers = [str(n).encode() for offset, data in stretches for n in (offset, len(data))]
    count = str(len(stretches)).encode()
    written = b"GNUSparseFile.1/" + name[:80]
    match version:
        case "0.0":
            keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            pairs = [(keys[at % 2], number) for at, number in enumerate(numbers)]
            records = [
                (b"GNU.sparse.size", b"%d" % size),
                (b"GNU.sparse.numblocks", count),
                *pairs,
            ]
            return pax(records) + entry(name, stored)
        case "0.1":
            records = [
                (b"GNU.sparse.size", b"%d" % size),
                (b"GNU.sparse.numblocks", count),
                (b"GNU.sparse.name", name),
                (b"GNU.sparse.map", b",".join(numbers)),
            ]
            return pax(records) + entry(written, stored)
        case _:
            records = [
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", name),
                (b"GNU.sparse.realsize", b"%d" % size),
            ]
            table = padded(b"".join(number + b"\n" for number in [count, *numbers]))
            return pax(records) + entry(written, table + stored)


def as_tarfile_says(tar: bytes) -> list[tuple[Seen, bytes | None]]:
    """What Python's reader finds: entries, and the contents of regular files.

    Holes of sparse files are zeros in the contents.
    """
    found = []
    with tarfile.open(
        fileobj=io.BytesIO(tar), mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info in archive:
            if info.type not in _LETTERS:
                continue
            reader = archive.extractfile(info) if info.isreg() else None
            found.append((_seen(info), reader.read() if reader else None))
    return found


_LETTERS = {
    tarfile.REGTYPE: "-", tarfile.AREGTYPE: "-", tarfile.CONTTYPE: "-", tarfile.GNUTYPE_SPARSE: "-",
    tarfile.DIRTYPE: "d", tarfile.SYMTYPE: "l", tarfile.LNKTYPE: "h",
    tarfile.CHRTYPE: "c", tarfile.BLKTYPE: "b", tarfile.FIFOTYPE: "p",
}  # fmt: skip


def _seen(info: tarfile.TarInfo) -> Seen:
    letter = _LETTERS[info.type]
    seconds, nsec = int(info.mtime), 0
    if "mtime" in info.pax_headers:
        # As text: a float has no nanoseconds left.
        whole, _, fraction = info.pax_headers["mtime"].partition(".")
        total = int(whole) * 10**9
        part = int(fraction[:9].ljust(9, "0"))
        seconds, nsec = divmod(total - part if whole.startswith("-") else total + part, 10**9)
    prefix = "SCHILY.xattr."
    return Seen(
        letter,
        _bytes(info.name),
        info.mode & 0o7777,
        info.uid,
        info.gid,
        seconds,
        nsec,
        info.size if letter == "-" else 0,
        _bytes(info.linkname) if letter in "lh" else b"",
        (info.devmajor, info.devminor) if letter in "cb" else (0, 0),
        {
            _bytes(key[len(prefix) :]): _bytes(value)
            for key, value in info.pax_headers.items()
            if key.startswith(prefix)
        },
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _number(value: int, width: int, gnu: bool = False) -> bytes:
    digits = width - 1
    if 0 <= value < 8**digits:
        return b"%0*o" % (digits, value) + (b" " if gnu else b"\0")
    raw = (value % (1 << (8 * width))).to_bytes(width, "big")
    return bytes([raw[0] | 0x80]) + raw[1:]


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if length - rest != len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _dialects() -> dict[str, bytes]:
    small, large = noise(3000, 1), noise(300_000, 2)
    holes = [(4096, small[:1000]), (20_000, small[1000:1003]), (65_536, small[2000:])]
    many = [(1000 * at, small[at : at + 10]) for at in range(60)]
    deep = b"/".join([b"d" * 99] * 12) + b"/file"
    half = noise(200, 3)
    members = {
        "ustar": entry(b"a", small) + entry(b"d/", typeflag=b"5", mode=0o1777) + entry(b"d/b", large),
        "ustar prefix": entry(b"n" * 100, small, prefix=b"p" * 155) + entry(b"x", prefix=b"y"),
        "v7": entry(b"a", small, b"\0", form="v7") + entry(b"d/", b"", b"\0", form="v7"),
        "gnu long name": gnu_long(deep) + entry(deep[:100], small, form="gnu"),
        "gnu long link": gnu_long(deep) + gnu_long(b"t" * 300, b"K")
        + entry(deep[:100], b"", b"2", form="gnu", link=b"t" * 100),
        "gnu link before name": gnu_long(b"t" * 300, b"K") + gnu_long(deep)
        + entry(deep[:100], b"", b"2", form="gnu", link=b"t" * 100),
        "gnu sparse": old_sparse(b"s", holes, 70_000) + entry(b"b", small),
        "gnu sparse, extension blocks": old_sparse(b"s", many, 1 << 20) + entry(b"b", small),
        "gnu sparse, nothing stored": old_sparse(b"s", [(1 << 20, b"")], 1 << 20) + entry(b"b", small),
        "pax path": pax([(b"path", deep)]) + entry(b"short", small),
        "pax linkpath": pax([(b"linkpath", deep)]) + entry(b"l", b"", b"2", link=b"x"),
        "pax xattrs": pax(
            [
                (b"SCHILY.xattr.security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12)),
                (b"SCHILY.xattr.user.note", b"=a\nb="),
            ]
        ) + entry(b"ping", small),
        "pax sub-second time": pax([(b"mtime", b"1700000000.123456789")]) + entry(b"a", small),
        "pax negative times": pax([(b"mtime", b"-1.25")]) + entry(b"a")
        + pax([(b"mtime", b"-12345678901")]) + entry(b"b")
        + pax([(b"mtime", b"-0.5")]) + entry(b"c"),
        "pax ids": pax([(b"uid", b"4294967294"), (b"gid", b"2097152")]) + entry(b"a", small),
        "pax size": pax([(b"size", b"3000")]) + header(b"a", 0) + padded(small) + entry(b"b", small),
        "pax unknown records": pax([(b"comment", b"c"), (b"LIBARCHIVE.creationtime", b"1.5")]) + entry(b"a"),
        "pax for many": b"".join(
            pax([(b"mtime", b"%d.5" % at)]) + entry(b"f%d" % at, small[: 7 * at]) for at in range(40)
        ),
        "pax sparse 0.0": pax_sparse("0.0", b"s", holes, 70_000) + entry(b"b", small),
        "pax sparse 0.1": pax_sparse("0.1", b"s", holes, 70_000) + entry(b"b", small),
        "pax sparse 1.0": pax_sparse("1.0", b"s", holes, 70_000) + entry(b"b", small),
        "pax sparse 1.0, long map": pax_sparse("1.0", b"s", many, 1 << 20) + entry(b"b", small),
        "pax global": pax([(b"comment", b"0123456789abcdef")], b"g") + entry(b"a", small) + entry(b"b"),
        "hard links": entry(b"a", small) + entry(b"b", b"", b"1", link=b"a")
        + entry(b"c", b"", b"1", link=b"./a"),
        "devices": entry(b"null", b"", b"3", device=(1, 3), mode=0o666)
        + entry(b"sda", b"", b"4", device=(259, 70_000), uid=0, gid=6) + entry(b"fifo", b"", b"6"),
        "contiguous": entry(b"a", small, b"7") + entry(b"b", small),
        "base 256": entry(b"a", small, form="gnu", uid=1 << 31, gid=3_000_000, mtime=-86_400)
        + header(b"b", 0, patch=[(124, b"\x80" + (3000).to_bytes(11, "big"))]) + padded(small),
        "signed checksum": _signed(header(b"caf\xe9\xff\xfe", 3000)) + padded(small),
        "odd number fields": header(
            b"a", 3000, patch=[(100, b"   644 \0"), (108, b"1750\0\0\0\0"), (124, b"       5670 ")]
        ) + padded(small),
        "not UTF-8": entry(b"caf\xe9/\xff\xfe", small)
        + pax([(b"path", b"\xe9" * 120)]) + entry(b"x", small),
        "names of 255 bytes": pax([(b"path", b"d" * 255 + b"/" + b"e" * 255)]) + entry(b"x", small),
        "duplicates": entry(b"a", small) + entry(b"a", large) + entry(b"a", b"", b"5"),
        "pyc": entry(b"a.pyc", small) + entry(b"short.pyc", small[:9]) + entry(b"head.pyc", small[:12]),
        "odd sizes": b"".join(entry(b"f%d" % size, large[:size]) for size in (0, 1, 511, 512, 513, 1023, 8192, 8193)),
        "random padding": header(b"a", len(half)) + half + noise(BLOCK - 200, 4) + entry(b"b", small),
        "empty": b"",
        "large": entry(b"zeros", bytes(400_000)) + entry(b"a", large) + entry(b"b", b"ab" * 200_000),
    }  # fmt: skip
    tars = {name: data + END for name, data in members.items()}
    plain = members["ustar"]
    return tars | {
        "no end marker": plain,
        "one zero block": plain + bytes(BLOCK),
        "record of 10 KiB": plain + bytes(-len(plain) % 10_240 + 10_240),
        "garbage after the end": plain + END + noise(5000, 5),
        "an entry after the end": plain + END + entry(b"ghost", small),
        "last padding missing": entry(b"a", small[:700]).rstrip(b"\0"),
        "short zeros at the end": plain + bytes(100),
    }


def _signed(block: bytes) -> bytes:
    """The checksum as old writers made it: the sum of signed characters."""
    octets = block[:148] + b" " * 8 + block[156:]
    total = sum(octet - 256 if octet > 127 else octet for octet in octets)
    return block[:148] + b"%06o\0 " % total + block[156:]


DIALECTS = _dialects()

"""A layer tar as literals (headers, padding, oddities) and payloads (file contents), whatever wrote it.

    tar:      header  payload  padding  header  header  payload …  zero blocks, anything
    split:    literal [payload] literal ----------------> [payload] … literal [payload without a member]

Literals and payloads in order are the tar, byte for byte: what is not understood is still kept. Members are what the
headers say: names from PAX, GNU or ustar fields, numbers in octal, base 256 or decimal, sparse maps as stretches, each
stretch a payload of its own so that chunks end where stretches end. All behind the first zero block is one payload
with no member, so that padding costs nothing and a trailing gigabyte is never a literal.

Source: `tarheader`; types without payload as in Go's archive/tar, which the container tools share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from layerstore import kernels
from layerstore.chunking import volatile_head
from layerstore.errors import MalformedInput
from layerstore.formats.tarheader import (
    BLOCK,
    Header,
    SparseMap,
    apply_pax,
    parse_gnu_sparse,
    parse_header,
    parse_pax,
    parse_sparse_1_0,
    parse_sparse_pairs,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Member", "Split", "TarSplitter"]

MAX_EXTENSION = (
    1 << 20
)  # bytes of one PAX or GNU long-name body; Go's and GNU's readers stop at 1 MiB too
_FOREVER = 1 << 62

# The kernel's reasons to stop; NEED_DATA and MORE need no name.
_END, _BAD_CHECKSUM, _BAD_SIZE, _SPECIAL = 1, 2, 3, 4

_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _GNU_SPARSE = b"LKxgS"
_EXTENSIONS = frozenset((_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL))
_HEADER_ONLY = frozenset(b"123456")
_XATTR = b"SCHILY.xattr."
_NO_RECORDS: dict[bytes, bytes] = {}


class Member(NamedTuple):
    """One entry of the tar: its fixed columns, and what extended headers add.

    Attributes:
        header: `size` is the bytes of payload; `offset` is absolute in the tar.
        name: as written, also of hostile shape.
        link: link target as written.
        size: size of the file: more than `header.size` when it is sparse.
        nsec: nanoseconds of the mtime.
        xattrs: extended attributes, or None.
        sparse: stored stretches of a sparse file, or None.
    """

    header: Header
    name: bytes
    link: bytes
    size: int
    nsec: int
    xattrs: dict[bytes, bytes] | None
    sparse: SparseMap | None


class Split(NamedTuple):
    """What one buffer holds.

    Attributes:
        literals: the literal bytes, joined.
        spans: (offset in the buffer, length) of each payload stretch.
        literal_lengths: literal bytes in front of each span.
        tail_literal: literal bytes behind the last span.
        members: the entries whose headers are complete in this buffer.
        is_open: the last span's payload goes on behind the buffer.
        used: how much of the buffer was split; the rest must come again, in front of what follows.
    """

    literals: bytes
    spans: list[tuple[int, int]]
    literal_lengths: list[int]
    tail_literal: int
    members: list[Member]
    is_open: bool
    used: int


class TarSplitter:
    """Split a tar that arrives in buffers of any size.

    Thread safety: one thread at a time.
    """

    def __init__(self) -> None:
        self.offset = 0  # absolute offset of the next buffer's first byte
        self._head = 0  # announced: bytes of a volatile head, a span of its own
        self._payload = 0  # announced: bytes of payload behind the head
        self._stretches: list[int] = []  # announced: further stretches of a sparse file, last first
        self._padding = 0  # announced: literal bytes behind the payload
        self._trailing = False  # past the end marker
        self._pax: dict[bytes, bytes] | None = None
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._name = b""  # of the last member, for messages

    def split(self, data: bytes) -> Split:
        """Split as much of `data` as can be.

        Raises: MalformedInput: with the entry and the absolute offset; the splitter is of no use afterwards.
        """
        out = _Buffer(data)
        try:
            self._split(out)
        except MalformedInput as error:
            error.entry = error.entry or _text(self._name)
            error.offset = self.offset + out.at if error.offset is None else error.offset
            raise
        self.offset += out.at
        return out.split()

    def give_back(self, uncut: int) -> None:
        """Take back the last `uncut` bytes of an open payload: they come again at the front of the next buffer."""
        self._payload += uncut
        self.offset -= uncut

    def finish(self, rest: bytes) -> None:
        """Say that nothing follows `rest`, the unused bytes of the last buffer: a literal, if it is legal at all.

        Missing padding and a short block of zeros at the very end hurt nobody.

        Raises: MalformedInput: the tar ends inside a header or a payload.
        """
        if self._trailing:
            return
        missing = self._head + self._payload + sum(self._stretches)
        if missing:
            problem = f"the tar is truncated: {missing - len(rest)} bytes of this entry are missing"
        elif rest.strip(b"\0") or self._pax is not None or self._long_name or self._long_link:
            is_tar = self.offset or len(rest) >= BLOCK
            problem = "the tar is truncated inside a header" if is_tar else "not a tar archive"
        else:
            return
        raise MalformedInput(problem, entry=_text(self._name), offset=self.offset + len(rest))

    def _split(self, out: _Buffer) -> None:
        while self._take_announced(out):
            if self._trailing:
                self._payload = _FOREVER
            else:
                rows, stop = self._scan(out)
                for row in rows:
                    self._take_row(row, out)
                if stop == _END:
                    self._trailing = True
                elif stop == _BAD_CHECKSUM:
                    at_start = self.offset + out.at == 0
                    raise MalformedInput(
                        "not a tar archive" if at_start else "wrong header checksum"
                    )
                elif stop == _BAD_SIZE:
                    raise MalformedInput("the size in the header is not a number")
                elif (stop == _SPECIAL or not rows) and not self._take_slowly(out):
                    return

    def _scan(self, out: _Buffer) -> tuple[list[Header], int]:
        """The headers from here on whose columns are right, and the kernel's reason to stop behind them."""
        if self._is_size_overridden():
            # The next header's size is not in its columns: see no more than whether it is a header at all.
            _, _, stop = kernels.tar_scan(out.data[out.at : out.at + BLOCK], 0)
            return [], stop
        packed, _, stop = kernels.tar_scan(out.data, out.at)
        return rows_of(packed), stop

    def _take_announced(self, out: _Buffer) -> bool:
        """Use up payload and padding that earlier headers announced; True when a header may come next."""
        if self._head:
            if out.left < self._head:
                return False
            out.take_span(self._head)
            self._head = 0
        while self._payload or self._stretches:
            self._payload = self._payload or self._stretches.pop()
            taken = out.take_span(min(self._payload, out.left))
            self._payload -= taken
            if self._payload:
                out.is_open |= taken > 0
                return False
        skipped = min(self._padding, out.left)
        out.at += skipped
        self._padding -= skipped
        return not self._padding and out.left > 0

    def _take_row(self, row: Header, out: _Buffer) -> None:
        """One header that the kernel has read; the body of an extension is inside the buffer."""
        if row.typeflag in _EXTENSIONS:
            self._take_extension(row, out)
        else:
            self._add_member(row, out)
            self._take_announced(out)

    def _take_slowly(self, out: _Buffer) -> bool:
        """One header of any kind, with all that may change its meaning; False when more data is needed."""
        if out.left < BLOCK:
            return False
        block = out.data[out.at : out.at + BLOCK]
        row = parse_header(block, block[156])
        if row is None:
            raise MalformedInput("the size in the header is not a number")
        row = row._replace(offset=out.at)
        if row.typeflag not in _EXTENSIONS:
            return self._add_member(row, out)
        return self._take_extension(row, out)

    def _take_extension(self, row: Header, out: _Buffer) -> bool:
        """One extended header, which means something for the next member; False when more data is needed."""
        if row.size > MAX_EXTENSION:
            raise MalformedInput(
                f"extended header of {row.size} bytes; the limit is {MAX_EXTENSION}"
            )
        if out.left < BLOCK + _padded(row.size):
            return False
        body = out.data[out.at + BLOCK : out.at + BLOCK + row.size]
        if row.typeflag == _LONG_NAME:
            self._long_name = body.partition(b"\0")[0]
        elif row.typeflag == _LONG_LINK:
            self._long_link = body.partition(b"\0")[0]
        elif row.typeflag == _PAX:
            self._pax = parse_pax(body)
        # A global header names nothing and changes nothing: Go's reader, which the container tools share, ignores it.
        out.at += BLOCK + _padded(row.size)
        return True

    def _is_size_overridden(self) -> bool:
        return any(key == b"size" or key.startswith(b"GNU.sparse.") for key in self._pax or ())

    def _add_member(self, row: Header, out: _Buffer) -> bool:
        """Make the member that `row` and the pending extensions describe, and announce its payload.

        False when more data is needed: nothing was changed.
        """
        at, data = row.offset, out.data
        name = data[at : at + row.name_length]
        if row.prefix_length:
            name = data[at + 345 : at + 345 + row.prefix_length] + b"/" + name
        link = data[at + 157 : at + 157 + row.link_length]
        name = name if self._long_name is None else self._long_name
        link = link if self._long_link is None else self._long_link
        nsec, xattrs, pax = 0, None, self._pax or _NO_RECORDS
        if pax:
            row, nsec = apply_pax(row, pax)
            name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
            link = pax.get(b"linkpath") or link
            xattrs = {key[len(_XATTR) :]: pax[key] for key in pax if key.startswith(_XATTR)} or None
        if row.typeflag in _HEADER_ONLY:
            row = row._replace(size=0)
        self._name = name
        found = _find_sparse_map(row, pax, out)
        if found is None:
            return False
        sparse, size, map_length = found
        stored = row.size
        if sparse is not None and row.typeflag != _GNU_SPARSE:
            stored -= map_length
        out.at = at + BLOCK + map_length
        self._announce(name, stored, sparse, size)
        self._padding = -row.size % BLOCK
        self._pax = self._long_name = self._long_link = None
        row = row._replace(offset=self.offset + at, size=stored)
        out.members.append(Member(row, name, link, size, nsec, xattrs, sparse))
        return True

    def _announce(self, name: bytes, stored: int, sparse: SparseMap | None, size: int) -> None:
        if sparse is None:
            head = volatile_head(name)
            self._head = head if head < stored else 0
            self._payload = stored - self._head
            return
        if sum(length for _, length in sparse) != stored:
            raise MalformedInput("the sparse map does not add up to the payload")
        if sparse and sum(sparse[-1]) > size:
            raise MalformedInput("the sparse map reaches past the end of the file")
        self._stretches = [length for _, length in reversed(sparse) if length]


class _Buffer:
    """A buffer being split: where we stand, and what was found. What is in no span is literal."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.members: list[Member] = []
        self.is_open = False
        self._spans: list[tuple[int, int]] = []

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take_span(self, length: int) -> int:
        if length:
            self._spans.append((self.at, length))
            self.at += length
        return length

    def split(self) -> Split:
        data, end = self.data, 0
        literals, lengths = [], []
        for offset, length in self._spans:
            literals.append(data[end:offset])
            lengths.append(offset - end)
            end = offset + length
        literals.append(data[end : self.at])
        return Split(
            b"".join(literals),
            self._spans,
            lengths,
            self.at - end,
            self.members,
            self.is_open,
            self.at,
        )


def _find_sparse_map(
    row: Header, pax: Mapping[bytes, bytes], out: _Buffer
) -> tuple[SparseMap | None, int, int] | None:
    """(map, real size, bytes that the map takes behind the header); None when more data is needed."""
    at, data = row.offset, out.data
    if row.typeflag in _HEADER_ONLY:
        return None, 0, 0
    if row.typeflag == _GNU_SPARSE:
        return parse_gnu_sparse(data, at)
    version = pax.get(b"GNU.sparse.major", b"0"), pax.get(b"GNU.sparse.minor", b"0")
    if version in {(b"0", b"0"), (b"0", b"1")} and b"GNU.sparse.map" in pax:
        return parse_sparse_pairs(pax[b"GNU.sparse.map"]), _real_size(pax), 0
    if version != (
        b"1",
        b"0",
    ):  # not sparse, or in a way that nobody knows: its payload is what it is
        return None, row.size, 0
    body = data[at + BLOCK : at + BLOCK + row.size]
    found = parse_sparse_1_0(body)
    if found is None and len(body) == row.size:
        raise MalformedInput("the sparse map ends inside the payload")
    return found and (found[0], _real_size(pax), found[1])


def _real_size(pax: Mapping[bytes, bytes]) -> int:
    text = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size") or b""
    if not text.isdigit() or len(text) > 18:
        raise MalformedInput("a sparse file without its size")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")

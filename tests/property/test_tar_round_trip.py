"""Whatever tar is made of entries of all dialects: it comes out exactly, and its tree is what was written."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.formats.layertar import entries_of
from layerstore.store.store import Store
from tests.support.layers import contents, expected, put, shown, split, tar_of
from tests.support.tars import (
    BLOCK,
    END,
    as_tarfile_says,
    entry,
    gnu_long,
    noise,
    old_sparse,
    pax,
    pax_sparse,
)

SETTINGS = settings(max_examples=80, deadline=None)


@dataclass(frozen=True)
class Written:
    """What one entry's writer meant."""

    blocks: bytes
    path: bytes
    data: bytes


NAME = st.binary(min_size=1, max_size=12).filter(
    lambda name: not set(name) & {0, 0x2F} and not name.startswith((b".", b"\xff"))
)
PATH = st.lists(NAME, min_size=1, max_size=12).map(b"/".join)
DATA = st.one_of(
    st.binary(max_size=2000),
    st.integers(0, 200_000).map(bytes),
    st.builds(noise, st.integers(0, 200_000), st.integers(0, 3)),
)
COLUMNS = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 2**32 - 2),
        "gid": st.integers(0, 2**21),
        "mtime": st.integers(-(2**40), 2**40),
        "form": st.sampled_from(["v7", "ustar", "gnu"]),
    }
)


@st.composite
def plain(draw: st.DrawFn) -> Written:
    path, data, columns = draw(PATH), draw(DATA), draw(COLUMNS)
    way = draw(st.sampled_from(["header", "gnu", "pax"]))
    before = b""
    if way == "pax":
        before = pax(
            [
                (b"path", path),
                (b"mtime", b"%d.%d" % draw(st.tuples(st.integers(0, 9), st.integers(0, 99)))),
            ]
        )
    elif way == "gnu" or len(path) > 100:
        before = gnu_long(path)
    return Written(before + entry(path[:100], data, b"0", **columns), path, data)


@st.composite
def sparse(draw: st.DrawFn) -> Written:
    path = draw(NAME)
    offset, stretches, data = 0, [], b""
    for gap, size in draw(
        st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 700)), max_size=40)
    ):
        stretches.append((offset + gap, noise(size, size)))
        data += bytes(gap) + noise(size, size)
        offset += gap + size
    tail = draw(st.integers(0, 5000))
    form = draw(st.sampled_from(["old", "0.0", "0.1", "1.0"]))
    # Neither 0.0 nor old headers can say "all hole" without a stretch of nothing at the end, as GNU tar writes.
    stretches.append((offset + tail, b""))
    data += bytes(tail)
    if form == "old":
        return Written(old_sparse(path, stretches, len(data)), path, data)
    return Written(pax_sparse(form, path, stretches, len(data)), path, data)


TARS = st.lists(st.one_of(plain(), sparse()), max_size=12)
ENDS = st.sampled_from([b"", bytes(512), END, END + noise(3000), bytes(10_240), bytes(77)])


@SETTINGS
@given(
    entries=TARS,
    end=ENDS,
    sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=5),
    back=st.integers(0, 500),
)
def test_split_and_join_are_inverse_whatever_the_blocks(
    entries: list[Written], end: bytes, sizes: list[int], back: int
) -> None:
    tar = b"".join(written.blocks for written in entries) + end
    blocks: list[bytes] = []
    at = 0
    while at < len(tar):
        blocks.append(tar[at : at + sizes[len(blocks) % len(sizes)]])
        at += len(blocks[-1])
    pieces = split([tar])
    assert pieces.join() == tar
    assert split(blocks, back) == pieces
    rows = list(entries_of(pieces.members))
    assert [(row.path, row.size) for row in rows] == [(w.path, len(w.data)) for w in entries]


@SETTINGS
@given(entries=TARS, end=ENDS.filter(lambda end: len(end) >= BLOCK))  # less is no tar to Python
def test_rows_are_what_tarfile_says(entries: list[Written], end: bytes) -> None:
    tar = b"".join(written.blocks for written in entries) + end
    rows = [shown(row) for row in entries_of(split([tar]).members)]
    assert rows == [expected(seen) for seen, _ in as_tarfile_says(tar)]


@settings(SETTINGS, max_examples=40)
@given(tars=st.lists(st.tuples(TARS, ENDS), min_size=1, max_size=3))
def test_a_store_gives_back_tars_and_files(tars: list[tuple[list[Written], bytes]]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "store", create=True) as store,
    ):
        for entries, end in tars:
            tar = b"".join(written.blocks for written in entries) + end
            report = put(store, tar)
            assert tar_of(store, report.diff_id) == tar
            found = [(row.path, data or b"") for row, data in contents(store, report.diff_id)]
            assert found == [(written.path, written.data) for written in entries]

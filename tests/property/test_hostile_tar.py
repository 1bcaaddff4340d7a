"""Bytes from anybody: the fuzz targets, on their seeds, on what fuzzing has found, and on mutations."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import fuzz_archive, fuzz_tar
from layerstore.errors import MalformedInput
from layerstore.formats.codecs import Compression
from layerstore.store.store import Store
from tests.support.layers import catalog_rows, put, tar_of
from tests.support.tars import BLOCK, DIALECTS, with_checksums

SETTINGS = settings(max_examples=100, deadline=None)
FINDINGS = Path(__file__).parents[2] / "fuzz" / "findings"
TAR_SEEDS, ARCHIVE_SEEDS = fuzz_tar.seeds(), fuzz_archive.seeds()


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes changed, blocks moved, and pieces of other seeds put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        block = at // BLOCK * BLOCK
        match draw(st.sampled_from(["byte", "text", "cut", "copy", "splice"])):
            case "byte" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "text":
                words = [
                    b"7777777",
                    b"\x80\xff\xff\xff",
                    b"GNU.sparse.",
                    b"size=",
                    b"\0",
                    b"x",
                    b"g",
                    b"S",
                    b"9 path=..\n",
                ]
                word = draw(st.sampled_from(words))
                data[at : at + len(word)] = word
            case "cut":
                del data[block : block + BLOCK * draw(st.integers(1, 3))]
            case "copy":
                data[block:block] = data[block : block + BLOCK * draw(st.integers(1, 3))]
            case _:
                other = draw(st.sampled_from(seeds))
                data[block:block] = other[: BLOCK * draw(st.integers(1, 4))]
    return bytes(data)


@pytest.mark.parametrize("name", TAR_SEEDS)
def test_seeds_of_the_tar_target(name: str) -> None:
    for size in (0, 1, 73, 255):
        fuzz_tar.check(bytes([size]) + TAR_SEEDS[name][1:])


@pytest.mark.parametrize("name", ARCHIVE_SEEDS)
def test_seeds_of_the_archive_target(name: str) -> None:
    fuzz_archive.check(ARCHIVE_SEEDS[name])


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*/*")), ids=lambda path: path.name)
def test_what_fuzzing_has_found(path: Path) -> None:
    target = {"tar": fuzz_tar, "archive": fuzz_archive}[path.parent.name]
    target.check(path.read_bytes())


@SETTINGS
@given(data=mutated(list(TAR_SEEDS.values())))
def test_mutated_tars_are_split_exactly_or_refused(data: bytes) -> None:
    fuzz_tar.check(data)


@SETTINGS
@given(data=mutated(list(ARCHIVE_SEEDS.values())))
def test_mutated_archives_are_read_or_refused(data: bytes) -> None:
    fuzz_archive.check(data)


@SETTINGS
@given(data=st.binary(max_size=3 * BLOCK))
def test_noise_is_read_or_refused(data: bytes) -> None:
    fuzz_tar.check(data)
    fuzz_archive.check(data)


@settings(SETTINGS, max_examples=50)
@given(tars=st.lists(mutated([tar[:20_000] for tar in DIALECTS.values()]), min_size=1, max_size=8))
def test_a_store_keeps_mutated_tars_exactly_or_not_at_all(tars: list[bytes]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "store", create=True) as store,
    ):
        for data in tars:
            tar = with_checksums(data)
            before = catalog_rows(store)
            try:
                report = put(store, tar, Compression.NONE)
            except MalformedInput:
                assert catalog_rows(store) == before
            else:
                assert tar_of(store, report.diff_id) == tar

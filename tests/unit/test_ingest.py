from __future__ import annotations

import gzip
import hashlib
import io
import os
import py_compile
import random
import subprocess
import sys
import threading
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard

from layerstore import kernels
from layerstore.digest import DiffID, Digest, digest_of
from layerstore.errors import DigestMismatch, LayerstoreError, MalformedInput, StoreFull
from layerstore.formats.codecs import Compression
from layerstore.ingest import Expected, cutting, ingest_blob, ingest_layer, verify_layer
from layerstore.limits import Limits
from layerstore.store.check import verify_store
from layerstore.store.store import Store
from layerstore.tree import HOLE
from tests.support.lacking import lacking
from tests.support.layers import (
    Trickle,
    catalog_rows,
    chunk_ids,
    contents,
    expected,
    extents,
    put,
    shown,
    tar_of,
)
from tests.support.tars import (
    BLOCK,
    DIALECTS,
    END,
    as_tarfile_says,
    entry,
    gnu_long,
    header,
    noise,
    padded,
    pax,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ZEROS = bytes(1 << 20)
SMALL = gnu_long(b"n" * 200) + entry(b"n", noise(300)) + entry(b"m", b"data") + END


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


def compressed(tar: bytes) -> dict[str, bytes]:
    """The same tar in all the ways that blobs are written."""
    half = len(tar) // 2
    zstd = zstandard.ZstdCompressor(write_checksum=True).compress
    return {
        "plain": tar,
        "gzip": gzip.compress(tar, 6),
        "gzip members": gzip.compress(tar[:half], 1) + gzip.compress(tar[half:], 9),
        "zstd": zstd(tar),
        "zstd frames": zstd(tar[:half]) + b"\x50\x2a\x4d\x18\3\0\0\0abc" + zstd(tar[half:]),
    }


def refused(store: Store, blob: bytes, promise: Expected | None = None) -> MalformedInput:
    """The one error that bad input may end in; nothing can be named afterwards that could not before."""
    before = catalog_rows(store)
    with pytest.raises(MalformedInput) as caught:
        put(store, blob, expected=promise)
    assert catalog_rows(store) == before
    assert caught.value.source == "layer"
    return caught.value


def is_loaded(store: Store, blob: bytes) -> bool:
    """Put a blob whose bytes are the tar, or see it refused; what is loaded is exact."""
    try:
        report = put(store, blob, Compression.NONE)
    except MalformedInput:
        return False
    assert tar_of(store, report.diff_id) == blob
    return True


def assert_as_tarfile_says(store: Store, tar: bytes) -> None:
    report = put(store, tar)
    assert tar_of(store, report.diff_id) == tar
    found = [(shown(row), data or b"") for row, data in contents(store, report.diff_id)]
    said = [(expected(seen), data or b"") for seen, data in as_tarfile_says(tar)]
    assert found == said


@pytest.mark.parametrize("name", [name for name in DIALECTS if name != "last padding missing"])
def test_every_dialect_comes_out_as_it_went_in(store: Store, name: str) -> None:
    assert_as_tarfile_says(store, DIALECTS[name])
    assert verify_store(store).damages == ()


def test_missing_padding_stays_missing(store: Store) -> None:
    tar = DIALECTS["last padding missing"]
    assert tar_of(store, put(store, tar).diff_id) == tar


@pytest.mark.parametrize("block", [1, 511, 700, 9000])
def test_the_blocks_that_a_layer_comes_in_make_no_difference(
    store: Store, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    names = ["pax sparse 1.0, long map", "gnu link before name", "pyc", "large"]
    tars = [DIALECTS[name] for name in names if block > 1 or len(DIALECTS[name]) < 10_000]
    known = [extents(store, put(store, tar).diff_id) for tar in tars]
    with store.read() as txn:
        places = store.index.places(txn, np.unique([n for file in known for n, _ in file if n]))
    data = {bytes(chunk_id) for chunk_id in places["id"]}
    monkeypatch.setattr(cutting, "_BLOCK", block)
    with Store(store.layout.root.with_name("other"), create=True) as other:
        for tar, wanted in zip(tars, known, strict=True):
            report = put(other, tar)
            assert tar_of(other, report.diff_id) == tar
            lengths = [length for _, length in extents(other, report.diff_id)]
            assert lengths == [length for _, length in wanted]
        assert chunk_ids(other) >= data


def test_the_report_counts(store: Store) -> None:
    tar = DIALECTS["ustar"]
    report = put(store, gzip.compress(tar))
    assert (report.size, report.entries) == (len(tar), 3)
    assert report.diff_id == digest_of(tar)
    assert report.chunks == sum(number != HOLE for number, _ in extents(store, report.diff_id))
    assert report.new_chunks > report.chunks  # the recipe's own are among them
    assert 300_000 < report.new_bytes < len(tar) + 5000
    again = put(store, tar)
    assert (again.chunks, again.new_chunks, again.new_bytes) == (report.chunks, 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds that need no privileges."""
    root = tmp_path_factory.mktemp("root") / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "large").write_bytes(noise(200_000))
    (root / "empty").write_bytes(b"")
    (root / "hard").hardlink_to(root / "d" / "large")
    (root / "soft").symlink_to("../d/large")
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"latin")
    with (root / "sparse").open("wb") as file:
        for at in range(0, 30 << 16, 1 << 16):
            file.seek(at)
            file.write(noise(4096, at))
        file.truncate(3 << 20)
    os.utime(root / "empty", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "d", ns=(0, -1_500_000_000))
    os.mkfifo(root / "fifo", 0o600)
    return root


LONG = ("l" * 120 + "/") * 3


@pytest.mark.parametrize(
    "options",
    [
        *([f"--format={form}"] for form in ("v7", "oldgnu", "gnu", "ustar", "posix")),
        ["--format=gnu", "--sparse"],
        *(
            [f"--format=posix --sparse --sparse-version={version}"]
            for version in ("0.0", "0.1", "1.0")
        ),
        ["--format=posix", "--xattrs", "--acls"],
        ["--format=gnu", "--blocking-factor=1"],
        ["--format=posix", "--numeric-owner", "--owner=:3000000", "--group=:4294967294"],
        ["--format=gnu", "--incremental"],
    ],
    ids=" ".join,
)
def test_gnu_tar(store: Store, folder: Path, tmp_path: Path, options: list[str]) -> None:
    names = ["."]
    is_old = options[0] in {"--format=v7", "--format=ustar"}
    if is_old:
        # No negative times; and v7 has no fifos.
        options = [*options, "--mtime=@1500000000", "--exclude=fifo"]
    else:
        (tmp_path / LONG).mkdir(parents=True)
        (tmp_path / LONG / "file").write_bytes(b"deep")
        (tmp_path / LONG / "link").symlink_to("t" * 300)
        names += ["-C", str(tmp_path), LONG]
    if "--incremental" in options:
        names = ["."]
    words = " ".join(options).split()
    made = subprocess.run(
        ["tar", "-c", *words, "-C", str(folder), *names], check=True, capture_output=True
    )
    if "--incremental" in options:  # Python's reader does not know type D
        assert tar_of(store, put(store, made.stdout).diff_id) == made.stdout
    else:
        assert_as_tarfile_says(store, made.stdout)


@pytest.mark.client("bsdtar")
@pytest.mark.parametrize("form", ["ustar", "pax", "gnutar", "v7"])
def test_bsdtar(store: Store, folder: Path, form: str) -> None:
    made = subprocess.run(
        ["bsdtar", "-c", f"--format={form}", "-C", str(folder), "."],
        check=True,
        capture_output=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    assert_as_tarfile_says(store, made.stdout)


def test_the_same_layer_in_another_compression_has_no_new_chunk(store: Store) -> None:
    blobs = compressed(DIALECTS["large"] + entry(b"more", noise(3 << 20)))
    diff_id = put(store, blobs["plain"]).diff_id
    for name, blob in blobs.items():
        report = put(store, blob)
        assert (report.diff_id, report.new_chunks) == (diff_id, 0), name
        assert report.digest == digest_of(blob)


def test_the_same_file_in_two_layers_is_stored_once(store: Store) -> None:
    data = noise(1 << 20)
    first = put(store, entry(b"a", data) + END)
    second = put(store, entry(b"x") + entry(b"dir/b", data, mode=0o755, mtime=7) + END)
    assert extents(store, first.diff_id)[:-1] == extents(store, second.diff_id)[:-1]
    assert second.new_chunks <= 3  # literals and recipe


def test_an_insertion_into_a_large_file_shares_most_chunks(store: Store) -> None:
    data = noise(4 << 20)
    put(store, entry(b"a", data) + END)
    report = put(store, entry(b"a", data[: 2 << 20] + b"inserted" + data[2 << 20 :]) + END)
    assert report.new_chunks <= 7
    assert report.chunks > 80


def test_a_pyc_that_differs_in_its_head_shares_the_rest(store: Store) -> None:
    code = noise(100_000)
    put(store, entry(b"a.pyc", noise(12, 1) + code) + END)
    report = put(store, entry(b"b.pyc", noise(12, 2) + code) + END)
    assert report.new_chunks <= 3  # the head, and the recipe's own
    other = put(store, entry(b"a.bin", noise(12, 3) + code[:8000]) + END)
    again = put(store, entry(b"b.bin", noise(12, 4) + code[:8000]) + END)
    assert again.new_bytes > 8000 < other.new_bytes


def test_modules_that_are_unpacked_again_bring_one_new_head_for_all(
    store: Store, tmp_path: Path
) -> None:
    def compiled(seconds: int) -> bytes:
        tar = b""
        for number in range(20):
            source = tmp_path / f"module{number}.py"
            source.write_text(f"NAMES = {'x' * number!r}\n" * (number + 1))
            os.utime(source, (seconds, seconds))
            py_compile.compile(str(source), str(tmp_path / "module.pyc"), doraise=True)
            code = (tmp_path / "module.pyc").read_bytes()
            tar += entry(f"module{number}.pyc".encode(), code)
        return tar + END

    put(store, compiled(1_700_000_000))
    report = put(store, compiled(1_800_000_000))
    assert report.new_chunks <= 3  # the head, and the recipe's own


@pytest.mark.parametrize("name", ["plain", "gzip", "zstd"])
def test_truncated_layers_are_refused_and_leave_no_trace(store: Store, name: str) -> None:
    blob = compressed(SMALL)[name]
    kind = {"plain": Compression.NONE, "gzip": Compression.GZIP, "zstd": Compression.ZSTD}[name]
    # Only padding and the end marker may be missing.
    whole = {0, *range(3 * BLOCK + 300, 4 * BLOCK + 1), *range(5 * BLOCK + 4, len(SMALL))}
    for end in range(0, len(blob), 10):
        if name == "plain" and end in whole:
            assert is_loaded(store, blob[:end])
            continue
        before = catalog_rows(store)
        with pytest.raises(MalformedInput) as caught:
            put(store, blob[:end], kind)
        assert catalog_rows(store) == before
        assert (caught.value.source, caught.value.offset) == ("layer", end)


def test_every_flipped_byte_of_a_header_loads_exactly_or_is_refused(store: Store) -> None:
    chance, loaded = random.Random(5), 0
    for start in (0, 1024):
        for at in range(start, start + BLOCK, 2):
            tar = bytearray(SMALL)
            tar[at] ^= 1 << chance.randrange(8)
            loaded += is_loaded(store, bytes(tar))
    assert loaded <= 4  # one flipped bit always shows, but for the end of the checksum itself


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_every_flipped_byte_of_a_blob_loads_exactly_or_is_refused(store: Store, name: str) -> None:
    blob, chance = compressed(SMALL)[name], random.Random(6)
    diff_id = digest_of(SMALL)
    for at in range(0, len(blob), 3):
        damaged = bytearray(blob)
        damaged[at] ^= 1 << chance.randrange(8)
        kind = Compression.GZIP if name == "gzip" else Compression.ZSTD
        try:
            report = put(store, bytes(damaged), kind)
        except MalformedInput as error:
            assert error.source == "layer"  # noqa: PT017
        else:
            assert report.diff_id == diff_id


def test_wrong_promises_are_refused(store: Store) -> None:
    blob, other = gzip.compress(SMALL), digest_of(b"other")
    good = digest_of(blob)
    for promise in (
        Expected("layer", other, len(blob)),
        Expected("layer", good, len(blob) + 1),
        Expected("layer", good, len(blob) - 1),
        Expected("layer", good, 0),
        Expected("layer", diff_id=DiffID(other)),
        Expected("layer", other, len(blob), DiffID(digest_of(SMALL))),
    ):
        assert isinstance(refused(store, blob, promise), DigestMismatch)
    report = put(store, blob, expected=Expected("layer", good, len(blob), DiffID(digest_of(SMALL))))
    assert tar_of(store, report.diff_id) == SMALL


def test_what_is_no_tar_is_refused(store: Store) -> None:
    for data in (b"x", b"hello " * 1000, noise(5000), gzip.compress(b"not a tar at all" * 99)):
        assert "not a tar archive" in refused(store, data).problem


def test_the_entry_and_the_offset_in_the_tar_are_named(store: Store) -> None:
    bad = entry(b"first", noise(5 << 20)) + entry(b"bad/.wh.", b"")
    error = refused(store, gzip.compress(bad, 1))
    assert (error.entry, error.offset) == ("bad/.wh.", (5 << 20) + BLOCK)
    assert "layer, entry 'bad/.wh.', byte 5243392: " in str(error)


@pytest.mark.parametrize(
    "tar",
    [
        entry(b"a", b"", b"2"),
        pax([(b"path", b"n" * 256)]) + entry(b"a"),
        pax([(b"size", b"99999")]) + entry(b"a", b"short"),
        header(b"a", 10_000) + padded(b"short"),
        header(b"a", patch=[(124, b"\x80" + b"\x40" + bytes(10))]),
        entry(b"x", b"60 path=abc\n", b"x"),
        pax([(b"GNU.sparse.map", b"0,9"), (b"GNU.sparse.size", b"9")]) + entry(b"a", b"short"),
        entry(b"a")[:300],
        pax([(b"path", b"a")]),
        gnu_long(b"name"),
    ],
    ids=range(10),
)
def test_tars_that_lie_are_refused(store: Store, tar: bytes) -> None:
    assert refused(store, entry(b"good") + tar).offset is not None


def test_hard_links_to_themselves_and_in_circles_are_kept_as_written(store: Store) -> None:
    tar = b"".join(
        entry(a, b"", b"1", link=b) for a, b in ((b"a", b"a"), (b"b", b"c"), (b"c", b"b"))
    )
    found = [content.entry for content in contents(store, put(store, tar).diff_id)]
    assert [(row.path, row.link) for row in found] == [(b"a", b"a"), (b"b", b"c"), (b"c", b"b")]


def test_a_gigabyte_of_zeros_takes_no_space(store: Store) -> None:
    size = 1 << 30 if kernels.NAME == "native" else 64 << 20
    packer = zlib.compressobj(1, wbits=31)
    blob = [packer.compress(header(b"bomb", size))]
    blob += [packer.compress(ZEROS) for _ in range(size >> 20)]
    report = put(store, b"".join(blob) + packer.compress(END) + packer.flush())
    assert (report.size, report.chunks) == (size + 3 * BLOCK, 0)
    assert report.new_bytes < 50_000
    (content,) = (row for row in _rows(store, report.diff_id) if row[0] == b"bomb")
    assert content == (b"bomb", size)


def _rows(store: Store, diff_id: DiffID) -> list[tuple[bytes, int]]:
    with store.read() as txn:
        record = store.catalog.layer(txn, diff_id)
    assert record is not None
    parts = [store.reader.part(stretch) for stretch in record.stretches]
    return [(row.path, row.size) for part in parts for row in part.entries]


def test_fifty_megabytes_after_the_end_are_kept(store: Store) -> None:
    tail = noise(1 << 20, 9) * 50
    tar = entry(b"a", b"data") + END + tail
    report = put(store, tar)
    assert hashlib.sha256(tar_of(store, report.diff_id)).digest() == hashlib.sha256(tar).digest()
    assert [content.entry.path for content in contents(store, report.diff_id)] == [b"a"]
    assert report.new_bytes < 3 << 20


def test_tiny_reads_take_linear_time(store: Store) -> None:
    tar = entry(b"a", noise(3 << 20)) + END
    start = time.process_time()
    with store.begin() as session:
        source = Trickle(tar, 100)
        report = ingest_layer(source, Expected("layer"), Compression.NONE, session)
    assert time.process_time() - start < 2
    assert report.diff_id == digest_of(tar)


@pytest.mark.parametrize("problem", ["tar", "digest", "consumer"])
def test_no_thread_outlives_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    tar = entry(b"a", noise(30 << 20, 3)) + END
    if problem == "tar":
        tar = entry(b".wh.", b"") + tar
    promise = Expected("layer", digest_of(b"other") if problem == "digest" else None)

    def fail(*_: object) -> None:
        raise StoreFull("stop")

    source = Trickle(tar, 64 << 10)
    with store.begin() as session:
        if problem == "consumer":
            monkeypatch.setattr(session, "put_chunks", fail)
        with pytest.raises(LayerstoreError) as caught:
            ingest_layer(source, promise, Compression.NONE, session)
        assert caught.value.__traceback__ is not None
        alive = [thread.name for thread in threading.enumerate() if "ahead" in thread.name]
    assert alive == []


def test_a_known_tar_is_verified_without_being_stored(store: Store) -> None:
    blob = gzip.compress(SMALL)
    diff_id = DiffID(digest_of(SMALL))
    promise = Expected("layer", digest_of(blob), len(blob), diff_id)
    assert verify_layer(io.BytesIO(blob), promise, Compression.GZIP, Limits()) == diff_id
    for wrong in (
        Expected("layer", Digest(diff_id)),
        Expected("layer", size=5),
        Expected("layer", diff_id=DiffID(digest_of(blob))),
    ):
        with pytest.raises(DigestMismatch):
            verify_layer(io.BytesIO(blob), wrong, Compression.GZIP, Limits())
    with pytest.raises(MalformedInput):
        verify_layer(io.BytesIO(blob[:-1]), Expected("layer"), Compression.GZIP, Limits())
    assert chunk_ids(store) == set()


@pytest.mark.parametrize("step", [1 << 20, 3000])
def test_a_blob_is_kept_as_it_is(store: Store, step: int) -> None:
    for data in (b"", b"x", noise(9 << 20), bytes(5 << 20)):
        with store.begin() as session:
            promise = Expected("blob", digest_of(data), len(data))
            stretches = ingest_blob(Trickle(data, step), promise, session)
        assert b"".join(store.reader.iter_stream(stretches)) == data
        with store.begin() as session, pytest.raises(DigestMismatch):
            ingest_blob(io.BytesIO(data + b"x"), promise, session)


FINGERPRINT = """
import hashlib, sys
from pathlib import Path
from layerstore import kernels
from layerstore.store.store import Store
from tests.support.layers import chunk_ids, extents, put
from tests.support.tars import DIALECTS, END, entry, noise
with Store(Path(sys.argv[1]), create=True) as store:
    found = [extents(store, put(store, tar).diff_id) for tar in DIALECTS.values()]
    found.append(extents(store, put(store, entry(b"a", noise(4 << 20)) + END).diff_id))
    ids = sorted(chunk_ids(store))
    print(kernels.NAME, hashlib.sha256(repr((found, ids)).encode()).hexdigest())
"""


def test_pure_and_native_kernels_store_the_same(tmp_path: Path) -> None:
    if kernels.NAME == "pure" and os.environ.get("LAYERSTORE_KERNELS") != "pure":
        lacking("the native kernels are not built")
    names = ["pure"] if kernels.NAME == "pure" else ["pure", "native"]
    printed = [
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT, str(tmp_path / name)],
            env=os.environ | {"LAYERSTORE_KERNELS": name, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for name in names
    ]
    assert [name for name, _ in printed] == names
    assert len({fingerprint for _, fingerprint in printed}) == 1


MANY = """
import io, sys
from pathlib import Path
from layerstore.formats.codecs import Compression
from layerstore.emit import iter_layer
from layerstore.ingest import Expected, ingest_layer
from layerstore.store.store import Store
from tests.support.tars import entry

class Tar(io.RawIOBase):
    def __init__(self, count):
        self.left, self.block = count // 1000, b"".join(
            entry(b"usr/lib/python3/dist-packages/pkg%d/module%d.py" % (n % 97, n), b"x = %d" % n)
            for n in range(1000)
        )
        self.data = io.BytesIO()
    def read(self, size):
        data = self.data.read(size)
        if not data and self.left:
            self.left -= 1
            self.data = io.BytesIO(self.block)
            return self.read(size)
        return data

with Store(Path(sys.argv[1]), create=True) as store, store.begin() as session:
    report = ingest_layer(Tar(int(sys.argv[2])), Expected("layer"), Compression.NONE, session)
    size = sum(map(len, iter_layer(store, report.diff_id)))
    assert (size, report.entries) == (report.size, int(sys.argv[2]))
    # Not ru_maxrss: that one counts what the parent had at the fork.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_depend_on_the_number_of_entries(tmp_path: Path, count: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path / "store"), str(count)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(ran.stdout) < 300, "MiB at the peak"

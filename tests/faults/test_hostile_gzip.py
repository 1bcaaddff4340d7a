"""Streams that are made to cost time or memory are split, or kept, within limits, and come out as they went in.

Each is split in a process of its own, whose processor time the kernel limits and whose peak of memory it says.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest

from layerstore import kernels
from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.errors import MalformedInput
from layerstore.formats.gzipsplit import NotSplit, split_gzip
from layerstore.store.catalog import Wrapping
from tests.support.archive_builders import Image, layer_tar, oci_layout_of, tar_of
from tests.support.gzips import join_all, text_of
from tests.support.hostile_gzip import BIG, HOSTILE, SMALL

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    kernels.NAME != "native", reason="splitting needs the native kernels"
)

MEMORY_MIB = 160  # beyond what the process has when it begins, the blob included
CHILD = """
import gzip, io, json, resource, sys, time
from pathlib import Path
from layerstore.formats.gzipsplit import NotSplit
from layerstore.images.convert import split_blob
from tests.support.hostile_gzip import HOSTILE

name, size, patience_s, cpu_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

blob = HOSTILE[name](size)
Path("/proc/self/clear_refs").write_text("5")
before, started = peak(), time.process_time()
used = int(started) + 1
resource.setrlimit(resource.RLIMIT_CPU, (used + cpu_s, used + cpu_s))
try:
    model, reason = str(split_blob(io.BytesIO(blob), len(blob), patience_s).model), ""
except NotSplit as error:
    model, reason = "", str(error)
print(json.dumps({"bytes": len(blob), "model": model, "reason": reason,
                  "cpu_s": time.process_time() - started, "mib": (peak() - before) / 1024}))
"""


def split_in_child(name: str, size: int, patience_s: float, cpu_s: int) -> dict[str, object]:
    words = [name, str(size), str(patience_s), str(cpu_s)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name}: {done.returncode} {done.stderr}"
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", list(SMALL))
def test_hostile_streams_take_little_time_and_memory(name: str) -> None:
    found = split_in_child(name, SMALL[name], 30, 20)
    assert found["mib"] < MEMORY_MIB, found  # type: ignore[operator]


def test_a_million_empty_blocks_cost_seconds() -> None:
    """Each once cost 0.15 ms, as the codes of a fixed block were made anew for it: 151 s."""
    found = split_in_child("empty fixed blocks", 1_000_000, 30, 20)
    assert found["reason"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BIG))
def test_large_hostile_streams_end_when_patience_does(name: str) -> None:
    found = split_in_child(name, BIG[name], 30, 200)
    assert found["mib"] < MEMORY_MIB, found  # type: ignore[operator]


@pytest.mark.parametrize(
    "patience_s", [-1, 0.001]
)  # over before the first segment, and within the only one
def test_what_takes_too_long_is_not_split(patience_s: float) -> None:
    found = split_in_child("two letters", 200_000, patience_s, 20)
    assert found["reason"] == "takes too long to split"


@pytest.mark.parametrize("name", list(SMALL))
def test_a_hostile_layer_comes_out_of_the_store_as_it_went_in(tmp_path: Path, name: str) -> None:
    """Behind a layer's tar, whose end has come: what follows there belongs to the layer's bytes all the same."""
    tar = layer_tar({"etc/a": b"hello" * 1000})
    blob = gzip.compress(tar, 6, mtime=0) + HOSTILE[name](SMALL[name] // 4)
    try:
        plain = gzip.decompress(blob)
    except OSError as error:
        pytest.fail(f"the stream is not whole: {error}")
    named = (Image.of([plain]), {"org.opencontainers.image.ref.name": "test/hostile:1"})
    files = oci_layout_of([named], "gzip", {plain: blob})
    with open_store(tmp_path / "store") as store:
        if name == "long name":
            with pytest.raises(MalformedInput, match="header is too long"):
                store.load(io.BytesIO(tar_of(files)))
            assert store.images() == []
            return
        report = store.load(io.BytesIO(tar_of(files)))
        (layer,) = report.images[0].layers
        assert (layer.wrapping is Wrapping.KEPT) == bool(layer.reason), layer
        assert b"".join(store.iter_blob(digest_of(blob))) == blob
        assert b"".join(store.iter_layer(layer.diff_id)) == plain


@pytest.mark.parametrize("level", [1, 6, 9])
def test_a_stream_cut_anywhere_is_not_split(level: int) -> None:
    rng, blob = random.Random(level), gzip.compress(text_of(300_000), level, mtime=0)
    anywhere = [rng.randrange(len(blob)) for _ in range(20)]
    for size in [*range(30), *anywhere, *range(len(blob) - 12, len(blob))]:
        with pytest.raises(NotSplit):
            split_gzip(io.BytesIO(blob[:size]))


def test_wrong_checksums_and_sizes_are_kept_in_the_recipe_or_not_split() -> None:
    text = text_of(50_000)
    blob = gzip.compress(text, 6, mtime=0)
    for at in range(1, 9):
        wrong = bytearray(blob)
        wrong[-at] ^= 0x55
        try:
            assert join_all(split_gzip(io.BytesIO(bytes(wrong))), text) == wrong
        except NotSplit:
            continue
        with pytest.raises((OSError, EOFError, zlib.error)):
            gzip.decompress(wrong)


def test_bytes_behind_the_last_member_are_not_split() -> None:
    blob = gzip.compress(text_of(50_000), 6, mtime=0)
    for behind in (b"x", bytes(512), b"\x1f\x8b", blob[:40], struct.pack("<I", 0xFD2FB528)):
        with pytest.raises(NotSplit):
            split_gzip(io.BytesIO(blob + behind))

"""docs/format.md is normative: its dumps are what the code writes, and the code reads them."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from layerstore import kernels
from layerstore.chunking import DEFAULT_PARAMS
from layerstore.formats import frame
from layerstore.formats.recipe import OP, Part, decode_part, encode_part
from layerstore.store.index import PLACE
from layerstore.store.layout import Layout
from layerstore.tree import EXTENT, ROW, Entries, Entry, Kind

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
TEXT = b"hello, layerstore\n"


def block(kind: str, name: str) -> str:
    found = re.search(
        rf"^```{kind} {name}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"no block {kind} {name} in {DOCUMENT.name}"
    return found[1]


def dump(name: str) -> bytes:
    return bytes.fromhex(block("hexdump", name))


def as_dump(data: bytes) -> str:
    return "\n".join(textwrap.wrap(data.hex(" "), 47))


def example_part() -> Part:
    rows = np.array([(Kind.FILE, 0o644, 1000, 1000, 1700000000, 5, 18, 18, 0, 0, 2, 0, 0, 0)], ROW)
    return Part(
        np.array([(512, 1), (494 + 1024, 0)], OP),
        np.array([(7, 18)], EXTENT),
        Entries(rows, b"hi", b"", b""),
    )


def example_place() -> np.ndarray[tuple[int], np.dtype[np.void]]:
    chunk_id = np.frombuffer(kernels.blake3(TEXT), "V32")[0]
    return np.array([(0x04000000, len(dump("frame")), len(TEXT), chunk_id)], PLACE)


def test_the_frame_decodes_to_the_text() -> None:
    data = dump("frame")
    segments = np.array([[0, len(data)]], "u8")
    assert frame.decode_frames(data, segments, np.array([len(TEXT)], "u8")) == [TEXT]


def test_an_encoder_writes_frames_of_the_documented_kind() -> None:
    [encoded] = frame.FrameEncoder().encode([TEXT])
    assert bytes(encoded[:5]) == dump("frame")[:5]  # magic, and a descriptor that says checksum


def test_the_place_record_is_as_documented() -> None:
    assert as_dump(example_place().tobytes()) == as_dump(dump("place"))
    assert PLACE.itemsize == 48


def test_the_part_is_as_documented_and_reads_back() -> None:
    assert as_dump(encode_part(example_part())) == as_dump(dump("part"))
    part = decode_part(dump("part"))
    assert part.ops.tolist() == [(512, 1), (1518, 0)]
    assert part.extents.tolist() == [(7, 18)]
    assert list(part.entries) == [
        Entry(Kind.FILE, b"hi", 0o644, 1000, 1000, 1700000000, 5, 18, 18, 0, 0, b"", {}, [])
    ]
    assert (OP.itemsize, EXTENT.itemsize, ROW.itemsize) == (8, 12, 59)


def test_the_format_file_is_as_documented(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    with layout.creating():
        pass
    assert json.loads(layout.format.read_text()) == json.loads(block("json", "format"))


@pytest.mark.parametrize("number", ["8192", "32768", "131072", "b = 16", "13 from there"])
def test_the_cut_parameters_are_as_documented(number: str) -> None:
    assert number in DOCUMENT.read_text()
    params = DEFAULT_PARAMS
    assert (params.min_size, params.normal_size, params.max_size) == (8192, 32768, 131072)
    assert (params.strict_bits, params.loose_bits) == (16, 13)

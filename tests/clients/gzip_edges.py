"""Gzip of texts whose size lies at a border of a window, a block or a lookahead, by all encoders that are installed.

    python -m tests.clients.gzip_edges [ENCODER...]

Each blob is split and joined: exact, or not split for a reason. The table is in docs/benchmarks.md; the exit code is 1 if
a blob came out wrong or raised another error. `test_gzip_edges.py` runs a sample.
"""

from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from layerstore.formats.gzipsplit import NotSplit, decode_recipe, encode_recipe, split_gzip
from tests.support.gzips import join_all, text_of

__all__ = ["BORDERS", "Encoder", "Outcome", "encoders", "sizes_around", "sweep", "texts"]

Encoder = Callable[[bytes, Sequence[int]], Iterator[bytes]]
"""A text and sizes to the gzip of the text's beginning of each size."""

BORDERS = {
    "window": 32 << 10,
    "stored block of deflate": 65_535,
    "twice the window": 64 << 10,
    "pigz's block": 128 << 10,
    "umoci's block": 256 << 10,
    "pgzip's block, segment": 1 << 20,
    "two of them": 2 << 20,
    "three of them": 3 << 20,
}
NEAR = (-263, -262, -258, -2, -1, 0, 1, 2, 258, 262)  # zlib looks 262 ahead, a match has 258
NEAREST = (-1, 0, 1)  # of borders from 1 MiB on
FIRST = (*range(20), 31, 32, 64, 257, 258, 259, 262, 263, 1024, 4096, 16_383, 16_384, 16_385)

_DATA = Path(__file__).parents[1] / "data"
_GOCODE = Path("/usr/share/gocode")  # where Debian's packages of Go libraries are
_RECIPE_COUNTS = 64 << 10  # bytes of a blob from which on the size of its recipe says something


def sizes_around(*borders: int) -> list[int]:
    """Sizes to try: tiny ones, and those near the borders."""
    near = {border: NEAR if border < 1 << 20 else NEAREST for border in borders}
    return sorted({*FIRST, *(border + by for border in borders for by in near[border])})


def texts() -> dict[str, tuple[bytes, list[int]]]:
    """Texts, and the sizes of them to try."""
    most = max(BORDERS.values()) + max(NEAR)
    small = [border for border in BORDERS.values() if border <= 256 << 10]
    return {
        "mixed": (text_of(most), sizes_around(*BORDERS.values())),
        "noise": (random.Random(1).randbytes(most), sizes_around(*small, 1 << 20)),
        "zeros": (bytes(most), sizes_around(*small, 1 << 20)),
    }


def encoders(folder: Path) -> dict[str, Encoder]:
    """By name, those that are here; programs are compiled in the folder."""
    found: dict[str, Encoder] = {}
    for level in range(1, 10):
        found[f"python gzip {level}"] = partial(_python, level)
    for level in (1, 6, 9):
        found[f"zlib {level}, small memory"] = partial(_zlib, level)
    for program, level in (("gzip", 1), ("gzip", 6), ("gzip", 9), ("pigz", 6), ("pigz", 9)):
        if shutil.which(program):
            found[f"{program} {level}"] = partial(_one_by_one, [program, f"-{level}", "-c"])
    if shutil.which("go"):
        go = _go_program(folder, "gzip_many_go")
        for level in range(1, 10):
            found[f"Go {level}"] = partial(_all_at_once, [go, str(level)])
        if (_GOCODE / "src/github.com/klauspost/pgzip").exists():
            many = _go_program(folder, "gzip_many_klauspost")
            for level in (1, 5, 6, 9):
                found[f"klauspost {level}"] = partial(_all_at_once, [many, str(level), "0"])
            for kib in (1024, 256):
                command = [many, "-1", str(kib << 10)]
                found[f"pgzip, {kib} KiB"] = partial(_all_at_once, command)
    if shutil.which("javac"):
        subprocess.run(["javac", "-d", folder, _DATA / "GzipMany.java"], check=True)
        found["Java"] = partial(_all_at_once, ["java", "-cp", str(folder), "GzipMany"])
    return found


@dataclass
class Outcome:
    """What became of the blobs of one encoder.

    Attributes:
        exact: how many were split, and joined to the same bytes.
        kept: how many were not split, by reason.
        wrong: texts and sizes of those that came out wrong.
        dearest: the largest recipe, in per cent of its blob, of blobs of 64 KiB and more.
    """

    exact: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    dearest: float = 0.0

    def add(self, name: str, text: bytes, blob: bytes) -> None:
        """Split and join a blob of a text."""
        try:
            recipe = decode_recipe(encode_recipe(split_gzip(io.BytesIO(blob))))
        except NotSplit as error:
            self.kept[str(error)] += 1
            return
        if recipe.plain_size != len(text) or join_all(recipe, text) != blob:
            self.wrong.append(f"{name} {len(text)}")
            return
        self.exact += 1
        if len(blob) >= _RECIPE_COUNTS:
            self.dearest = max(self.dearest, 100 * recipe.size / len(blob))


def sweep(encode: Encoder, name: str, text: bytes, sizes: Sequence[int], into: Outcome) -> None:
    """Try all sizes of a text, and be sure that each blob is what it should be."""
    for size, blob in zip(sizes, encode(text, sizes), strict=True):
        if gzip.decompress(blob) != text[:size]:
            raise RuntimeError(f"the encoder made another text of {name} {size}")
        into.add(name, text[:size], blob)


def _python(level: int, text: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    return (gzip.compress(text[:size], level, mtime=0) for size in sizes)


def _zlib(level: int, text: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """With blocks of half as many symbols, in two writes."""
    for size in sizes:
        encoder = zlib.compressobj(level, zlib.DEFLATED, 31, 7)
        yield b"".join(
            [
                encoder.compress(text[: size // 2]),
                encoder.compress(text[size // 2 : size]),
                encoder.flush(),
            ]
        )


def _one_by_one(command: list[str], text: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    for size in sizes:
        yield subprocess.run(command, input=text[:size], capture_output=True, check=True).stdout


def _all_at_once(command: list[str], text: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    words = [*command, *map(str, sizes)]
    done = subprocess.run(words, input=text, capture_output=True, check=True).stdout
    at = 0
    while at < len(done):
        size = int.from_bytes(done[at : at + 4], "little")
        yield done[at + 4 : at + 4 + size]
        at += 4 + size


def _go_program(folder: Path, name: str) -> str:
    program = folder / name
    environment = {
        "HOME": str(folder),
        "GOCACHE": str(folder / "cache"),
        "GOPATH": str(_GOCODE),
        "GO111MODULE": "off",
        "PATH": "/usr/bin:/bin",
    }
    command = ["go", "build", "-o", str(program), str(_DATA / f"{name}.go")]
    subprocess.run(command, check=True, env=environment)
    return str(program)


def main(wanted: Sequence[str]) -> int:
    """Run all, and print the table."""
    is_wrong = False
    print("| encoder | blobs | exact | kept | largest recipe, % |\n|---|---:|---:|---|---:|")
    with tempfile.TemporaryDirectory(prefix="gzip-edges-") as folder:
        for encoder, encode in encoders(Path(folder)).items():
            if wanted and encoder not in wanted:
                continue
            outcome = Outcome()
            for name, (text, sizes) in texts().items():
                sweep(encode, name, text, sizes, outcome)
            kept = ", ".join(f"{count} {reason}" for reason, count in outcome.kept.items())
            count = outcome.exact + outcome.kept.total() + len(outcome.wrong)
            row = f"| {encoder} | {count} | {outcome.exact} | {kept} | {outcome.dearest:.3f} |"
            print(row, flush=True)
            for wrong in outcome.wrong:
                print(f"{encoder}: {wrong} came out wrong", file=sys.stderr, flush=True)
                is_wrong = True
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Texts to compress, and the encoders that this machine has."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

from layerstore.formats.gzipsplit import HISTORY, GzipRecipe, Joiner

if TYPE_CHECKING:
    from collections.abc import Callable


def text_of(size: int, seed: int = 1) -> bytes:
    """Words, runs, repeated stretches and noise, as a tar of programs has them; the same bytes everywhere."""
    rng = random.Random(seed)
    words = [bytes(rng.choices(range(97, 123), k=rng.randrange(2, 11))) for _ in range(800)]
    out = bytearray()
    while len(out) < size:
        match rng.randrange(8):
            case 0:
                out += bytes([rng.randrange(256)]) * rng.randrange(1, 900)
            case 1:
                out += rng.randbytes(rng.randrange(1, 700))
            case 2 if out:
                start = rng.randrange(len(out))
                out += out[start : start + rng.randrange(3, 4000)]
            case _:
                out += b" ".join(rng.choices(words, k=rng.randrange(1, 200)))
    return bytes(out[:size])


def join_all(recipe: GzipRecipe, plain: bytes) -> bytes:
    """The blob, from all segments in a row."""
    joiner = Joiner(recipe)
    blob = bytearray((joiner.first_bits[-1] + 7) >> 3)
    for index, span in enumerate(joiner.spans):
        assert span.start <= HISTORY
        part = joiner.join(index, plain[span.offset : span.offset + span.size])
        at = joiner.first_bits[index] >> 3
        if part:
            blob[at] |= part[0]
            blob[at + 1 : at + len(part)] = part[1:]
    return bytes(blob)


def _program(*command: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


def encoders() -> dict[str, Callable[[bytes], bytes]]:
    """Encoders by name; only those that are installed."""
    found: dict[str, Callable[[bytes], bytes]] = {
        f"python-{level}": lambda data, level=level: gzip.compress(data, level, mtime=0)  # type: ignore[misc]
        for level in (1, 3, 6, 9)
    }
    for program, level in (("gzip", 1), ("gzip", 6), ("gzip", 9), ("pigz", 6), ("pigz", 9)):
        if shutil.which(program):
            found[f"{program}-{level}"] = _program(program, f"-{level}", "-c")
    return found

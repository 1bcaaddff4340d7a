"""Writes seeds for fuzz_gzip_split into a folder: gzip of several kinds, each under every model."""

import gzip
import random
import sys
import zlib
from pathlib import Path

MODELS = 14


def seeds() -> list[bytes]:
    """Members with stored, fixed and dynamic blocks, flushed ones, several behind one another, long matches."""
    rng = random.Random(7)
    words = [rng.randbytes(rng.randrange(2, 9)) for _ in range(60)]
    text = b"".join(rng.choices(words, k=6000))
    flushed = zlib.compressobj(6, wbits=31)
    parts = [flushed.compress(text[:5000]), flushed.flush(zlib.Z_SYNC_FLUSH)]
    parts += [flushed.compress(text[5000:9000]), flushed.flush(zlib.Z_FULL_FLUSH), flushed.flush()]
    fixed = zlib.compressobj(6, wbits=31, strategy=zlib.Z_FIXED)
    return [
        *(gzip.compress(text, level) for level in (1, 6, 9)),
        gzip.compress(b"ab" * 40000, 6),
        gzip.compress(rng.randbytes(3000), 6) + gzip.compress(text[:300], 9) + gzip.compress(b""),
        fixed.compress(text[:2000]) + fixed.flush(),
        b"".join(parts),
    ]


if __name__ == "__main__":
    for number, seed in enumerate(seeds()):
        for model in range(MODELS):
            path = Path(sys.argv[1]) / f"seed-{number}-{model}"
            path.write_bytes(bytes([model, (3 + 50 * model) % 256]) + seed)

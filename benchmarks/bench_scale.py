"""How do the costs of a store grow with what is in it?

Unit: milliseconds and seconds of processor (wall time is in the JSON), look-ups a second, bytes. Input: made indexes of 10^4 to 10^7 chunks (1000 in a
layer, ten layers in an image: 10^3 images at the end), and one image of 64 MB that is new to each. Baseline: the first
row; what does not grow stays there.

    python -m benchmarks.bench_scale [--chunks 10000 100000 1000000 10000000] [--root DIR] [--json FILE]

Every figure but the look-ups is of a process of its own, so start and memory are in it; the least of three is told.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.made_index import add_layers, add_rows, made_ids
from benchmarks.measure import commit, disk_bytes, machine, run
from layerstore.store.store import Store

_IN_A_LAYER = 1000
_LOOKUPS = (
    50_000  # a few calls as `load` makes them, of chunks that are there and of as many that are not
)
_IMAGE_BYTES = 64 << 20
_ROUNDS = 3
_HEAD = "| chunks | images | tables | open and list | load 64 MB | load it again | look-ups/s | df | verify structure | prune |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument(
        "--root", type=Path, help="where the stores are made: some GB at 10^7 chunks"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="layerstore-scale-", dir=options.root))
    try:
        archive = folder / "image.tar"
        archive.write_bytes(_archive())
        print(_HEAD, "|---" * _HEAD.count(" | ") + "|---|", sep="\n", flush=True)
        sizes = []
        for chunks in options.chunks:
            sizes.append(_measure(folder, archive, chunks))
            print(_line(sizes[-1]), flush=True)
    finally:
        shutil.rmtree(folder)
    if options.json:
        report = {**machine(), "commit": commit(Path(__file__).parent), "sizes": sizes}
        options.json.write_text(json.dumps(report, indent=1))


def _measure(folder: Path, archive: Path, chunks: int) -> dict[str, Any]:
    root = folder / "store"
    layers = max(10, chunks // _IN_A_LAYER)
    with Store(root, create=True) as store:
        add_layers(store, add_rows(store, chunks), chunks, layers)
        lookups = _lookups_per_s(store, chunks)
    tables = disk_bytes(root / "meta") + disk_bytes(root / "journal")
    command = [sys.executable, "-m", "layerstore", "--root", str(root)]

    def least(*verb: str, rounds: int = _ROUNDS) -> dict[str, float]:
        costs = [run([[*command, *verb]], {}, folder) for _ in range(rounds)]
        return {
            "cpu_s": round(min(cost.cpu_s for cost in costs), 3),
            "wall_s": round(min(cost.wall_s for cost in costs), 3),
            "peak_rss_bytes": max(cost.peak_rss for cost in costs),
        }

    found = {
        "chunks": chunks,
        "images": len(range(0, layers * 9 // 10, 10)),
        "tables_bytes": tables,
        "lookups_per_s": lookups,
        "list": least("images", "--quiet"),
        "load": least("load", "--quiet", str(archive), rounds=1),
        "load_again": least("load", "--quiet", str(archive)),
        "df": least("df", "--format", "json", rounds=1),
        "verify_structure": least("verify", "--quiet", "--depth", "structure", rounds=1),
        "prune": least("prune", "--force", rounds=1),
    }
    shutil.rmtree(root)
    return found


def _lookups_per_s(store: Store, chunks: int) -> int:
    """In the order of their IDs' making, which is none: a chunk that is there, then one that is not."""
    present = made_ids(0, min(_LOOKUPS // 2, chunks))
    ids = [one for pair in zip(present, made_ids(1, len(present)), strict=True) for one in pair]
    begin = time.perf_counter()
    for at in range(0, len(ids), 1000):
        with store.read() as txn:
            store.index.lookup(txn, ids[at : at + 1000])
    return round(len(ids) / (time.perf_counter() - begin))


def _archive() -> bytes:
    """A docker-archive of one layer: files of text-like bytes, a third of which compress away."""
    rng = random.Random(1)
    words = [rng.randbytes(rng.randrange(3, 12)) for _ in range(4096)]
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        while layer.tell() < _IMAGE_BYTES:
            data = b"".join(rng.choices(words, k=rng.randrange(100, 20_000)))
            _add(tar, f"usr/share/{layer.tell()}", data)
    diff_id = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["scale:new"], "Layers": ["layer.tar"]}]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        _add(tar, "manifest.json", json.dumps(manifest).encode())
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "layer.tar", layer.getvalue())
    return archive.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _line(size: dict[str, Any]) -> str:
    def cost(verb: str) -> str:
        return f"{size[verb]['cpu_s']:.2f} s, {size[verb]['peak_rss_bytes'] / 1e6:.0f} MB"

    return (
        f"| {size['chunks']:,} | {size['images']:,} | {size['tables_bytes'] / 1e6:.0f} MB | {cost('list')} | {cost('load')}"
        f" | {cost('load_again')} | {size['lookups_per_s']:,} | {cost('df')} | {cost('verify_structure')} | {cost('prune')} |"
    )


if __name__ == "__main__":
    main()

"""The demo: load images, see what they share, get every byte back. Exits with 1 if a single digest differs.

    python -m tools.demo [--root FOLDER] [ARCHIVE...]

An archive is what `docker save` wrote, or an OCI layout (a folder or a tar). Without one, three images are built first
(`tools/build_images.py`). What went in is read a second time by `tools/originals.py`, which knows nothing of layerstore.
The folder, ./demo by default, is made by the demo and emptied at its start.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import layerstore
from layerstore import kernels
from layerstore.reference import parse_reference
from tools.build_images import build_images
from tools.originals import OriginalImage, OriginalLayer, read_originals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerstore import LayerStore

_MARKER = "made-by-layerstore-demo"


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("demo"), help="where to work")
    parser.add_argument("archives", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    folder = _empty_folder(options.root)
    paths = options.archives
    if not paths:
        print("Building three images from this machine's Python and the package index ...")
        paths = build_images(folder / "images")
    originals = {path: _originals(path) for path in paths}

    print(f"\n1. Load into an empty store (kernels: {kernels.NAME}, {kernels.simd()})\n")
    with layerstore.open(folder / "store") as store:
        _load_and_tell(store, paths)
        print("\n2. What each layer holds, and shares with other layers of the store\n")
        _tell_sharing(store)
        print("\n3. Load everything again\n")
        wrong = _load_again(store, paths)
        print("\n4. Get everything back, and compare with the archives by SHA-256\n")
        wrong += _compare(store, folder / "saved", originals)
        print("\n5. Verify: read and hash every byte of the store\n")
        wrong += _verify(store)
        print("\n6. Size\n")
        _tell_sizes(store, [image for images in originals.values() for image in images])
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    if not wrong:
        print(f"\nEverything came back byte for byte. The store stays in {folder / 'store'}.")
    return 1 if wrong else 0


def _empty_folder(folder: Path) -> Path:
    """Start anew, but never in a folder that is not ours."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise SystemExit(f"{folder} is not empty, and not the demo's: choose another --root")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    return folder


def _originals(path: Path) -> list[OriginalImage]:
    try:
        return read_originals(path)
    except (tarfile.TarError, KeyError, ValueError, zlib.error) as error:
        raise SystemExit(f"{path}: not an archive of images: {error}") from error


def _load_and_tell(store: LayerStore, paths: Iterable[Path]) -> None:
    rows = []
    for path in paths:
        start = time.perf_counter()
        report = store.load(path)
        seconds = time.perf_counter() - start
        for image in report.images:
            fresh = [layer for layer in image.layers if layer.status == "new"]
            rows.append(
                (
                    _label(image.names, image.id),
                    f"{len(fresh)} new of {len(image.layers)}",
                    _mb(sum(layer.size for layer in image.layers)),
                    _mb(sum(layer.new_bytes for layer in fresh)),
                    f"{seconds:.2f} s",
                )
            )
    _table(("image", "layers", "its tars", "added to the store", "time"), rows)


def _tell_sharing(store: LayerStore) -> None:
    rows = []
    for summary in store.images():
        for layer in store.inspect(summary.digest).layers:
            share = 100 * layer.shared / layer.stored if layer.stored else 0
            rows.append(
                (
                    _label(summary.names, summary.id),
                    layer.diff_id[7:19],
                    _mb(layer.size),
                    _mb(layer.stored),
                    f"{share:.1f} %",
                    str(layer.shared_with),
                )
            )
    _table(("image", "layer", "its tar", "as chunks", "shared", "with layers"), rows)


def _load_again(store: LayerStore, paths: Iterable[Path]) -> list[str]:
    before = store.size_on_disk()
    start = time.perf_counter()
    chunks = sum(store.load(path).new_chunks for path in paths)
    seconds = time.perf_counter() - start
    grown = store.size_on_disk() - before
    print(f"  {chunks} new chunks, {grown} bytes more on disk, {seconds * 1000:.0f} ms")
    return [f"loading again added {chunks} chunks"] if chunks else []


def _compare(
    store: LayerStore, folder: Path, originals: dict[Path, list[OriginalImage]]
) -> list[str]:
    """Every layer tar straight out of the store, and one archive for each image, against the originals."""
    wrong = []
    layers = _distinct_layers(image for images in originals.values() for image in images)
    start = time.perf_counter()
    for layer in layers:
        hasher = hashlib.sha256()
        for block in store.iter_layer(layer.diff_id):
            hasher.update(block)
        if f"sha256:{hasher.hexdigest()}" != layer.diff_id:
            wrong.append(f"layer {layer.diff_id}")
    seconds = time.perf_counter() - start
    total = sum(layer.size for layer in layers)
    print(
        f"  {len(layers) - len(wrong)} of {len(layers)} layer tars are equal, {_mb(total)}, {seconds:.2f} s"
    )

    folder.mkdir()
    images = {image.id: image for images in originals.values() for image in images}
    equal = 0
    for image in images.values():
        target = folder / f"{image.id[7:19]}.tar"
        store.save(image.id, target)
        saved = [_identity(other) for other in read_originals(target)]
        if saved == [_identity(image)]:
            equal += 1
        else:
            wrong.append(f"image {image.id} came out of `save` as {saved}")
        target.unlink()
    print(
        f"  {equal} of {len(images)} saved images are equal: image ID, number of layers, every layer"
    )
    return wrong


def _identity(image: OriginalImage) -> tuple[str, list[str]]:
    return image.id, [layer.diff_id for layer in image.layers]


def _verify(store: LayerStore) -> list[str]:
    start = time.perf_counter()
    report = store.verify()
    seconds = time.perf_counter() - start
    checked = report.checked
    print(
        f"  {checked.layers} layers, {checked.blobs} blobs, {checked.chunks} chunks, "
        f"{_mb(checked.bytes)}: {len(report.damages)} damages, {seconds:.2f} s"
    )
    return [f"{damage.damage.what} {damage.damage.problem}" for damage in report.damages]


def _tell_sizes(store: LayerStore, images: Sequence[OriginalImage]) -> None:
    each = sum(layer.size for image in images for layer in image.layers)
    unique = sum(layer.size for layer in _distinct_layers(images))
    blobs: dict[str, int] = {}
    for layer in (layer for image in images for layer in image.layers):
        if layer.blob != layer.diff_id:
            known = blobs.get(layer.diff_id, layer.blob_size)
            blobs[layer.diff_id] = min(known, layer.blob_size)
    size = store.size_on_disk()
    rows = [
        ("the images' tars, each by itself", _mb(each), _ratio(each, size)),
        ("the same, each layer once", _mb(unique), _ratio(unique, size)),
    ]
    if len(blobs) == len(_distinct_layers(images)):
        total = sum(blobs.values())
        rows.append(
            ("their compressed layers, each once", _mb(total), _ratio(total, size)),
        )
    rows.append(("the store, every file counted", _mb(size), ""))
    _table(("", "bytes", "to the store"), rows)


def _distinct_layers(images: Iterable[OriginalImage]) -> list[OriginalLayer]:
    return list({layer.diff_id: layer for image in images for layer in image.layers}.values())


def _label(names: Sequence[str], image_id: str) -> str:
    return parse_reference(names[0]).familiar() if names else image_id[7:19]


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _ratio(size: int, store: int) -> str:
    return f"{size / store:.2f} : 1"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for number, row in enumerate([head, *rows]):
        cells = [
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "   ".join(cells).rstrip())
        if number == 0:
            print("  " + "   ".join("-" * width for width in widths))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, layerstore.errors.LayerstoreError) as error:
        sys.exit(f"make demo: {error}")

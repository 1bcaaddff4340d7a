"""An analysis as Parquet files, for notebooks: images, layers, which image has which layer, pairs, files in several layers.

    images.parquet    id, label, source, unpacked, gzip, … a row for each image, in the order of `Analysis.images`
    layers.parquet    diff_id, size, unpacked, gzip, compressed
    stacks.parquet    image, layer, depth: positions in the two above; depth 0 is the lowest
    pairs.parquet     first < second, shared: encoded bytes, where there are any
    files.parquet     path, size, layers, wasted

Needs pyarrow, the extra `parquet`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerstore.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.analysis.report import Analysis

__all__ = ["write_parquet"]


def write_parquet(found: Analysis, folder: Path) -> list[Path]:
    """Write the files into a folder, made if need be; files of the same names are replaced. Returns their paths.

    Raises: Unsupported: pyarrow is not installed. InvalidArgument: the folder cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Unsupported(
            'Parquet files need pyarrow; install it with `pip install "layerstore[parquet]"`'
        ) from error
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, columns in _tables(found).items():
            paths.append(folder / f"{name}.parquet")
            pyarrow.parquet.write_table(pyarrow.table(columns), paths[-1])
    except OSError as error:
        raise InvalidArgument(f"{folder}: {error.strerror or error}") from error
    return paths


def _tables(found: Analysis) -> dict[str, dict[str, Any]]:
    images = (
        "id", "label", "source", "unpacked", "gzip", "gzip_is_estimate", "files", "chunks",
        "compressed", "alone", "share", "closest", "closest_shared",
    )  # fmt: skip
    layers = ("diff_id", "size", "unpacked", "gzip", "gzip_is_estimate", "compressed")
    files = ("path", "size", "layers", "wasted")
    at = {layer.diff_id: position for position, layer in enumerate(found.layers)}
    stacks = [
        (image, at[diff_id], depth)
        for image, one in enumerate(found.images)
        for depth, diff_id in enumerate(one.layers)
    ]
    matrix = np.array(found.pairs, "i8").reshape(len(found.images), len(found.images))
    first, second = np.nonzero(np.triu(matrix, 1))
    return {
        "images": {name: [getattr(one, name) for one in found.images] for name in images},
        "layers": {name: [getattr(one, name) for one in found.layers] for name in layers},
        "stacks": {
            name: np.array([row[i] for row in stacks], "i8")
            for i, name in enumerate(("image", "layer", "depth"))
        },
        "pairs": {"first": first, "second": second, "shared": matrix[first, second]},
        "files": {name: [getattr(one, name) for one in found.duplicated_files] for name in files},
    }

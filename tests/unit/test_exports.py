"""What `import layerstore` promises. A name goes from this list only with a new major version."""

from __future__ import annotations

import subprocess
import sys

import layerstore


def test_the_public_names_are_these() -> None:
    assert sorted(layerstore.__all__) == [
        *("Analysis", "AnalyzeOptions", "ArchiveKind", "BlobPolicy", "Change", "ChangeKind"),
        *("DiskUsage", "Held", "HistoryStep"),
        *("ImageDamage", "ImageDetails"),
        *(
            "ImageSummary",
            "ImageUsage",
            "ImportOptions",
            "ImportReport",
            "LayerDetails",
            "LayerReport",
        ),
        *(
            "LayerStatus",
            "LayerStore",
            "Limits",
            "LoadReport",
            "LoadedImage",
            "Progress",
            "RemovalForecast",
            "RemoveReport",
            "RepairReport",
        ),
        *("SaveReport", "SavedImage", "StoreReport", "View"),
        *("analyze", "errors", "open", "repair"),
    ]


def test_every_public_name_is_there_and_stays_the_same_object() -> None:
    for name in layerstore.__all__:
        assert getattr(layerstore, name) is getattr(layerstore, name)
        if name not in {"errors", "open", "repair"}:
            assert getattr(layerstore, name).__name__ == name


def test_an_import_alone_loads_neither_numpy_nor_the_store() -> None:
    check = "import sys, layerstore; print(sorted({'numpy', 'lmdb', 'click'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, check=True)
    assert result.stdout.strip() == b"[]"

"""layerstore keeps the disk of many container images down to what is really different between them.

    with layerstore.open("/var/lib/layerstore") as store:
        report = store.load("image.tar")
        store.save("python:3.12", "copy.tar")

Layout: `api` is the door; `images` has a module a verb; `ingest` and `emit` are the ways in and out; `store` owns the
disk; `formats` turns bytes into values and back; `kernels` chooses the native or the pure hot loops.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from layerstore import errors

if TYPE_CHECKING:
    from layerstore.analysis import Analysis, AnalyzeOptions, analyze
    from layerstore.api import LayerStore
    from layerstore.api import open_store as open
    from layerstore.api import repair_store as repair
    from layerstore.images.accounting import DiskUsage, ImageUsage
    from layerstore.images.checking import ImageDamage, StoreReport
    from layerstore.images.holding import Held
    from layerstore.images.listing import HistoryStep, ImageDetails, ImageSummary, LayerDetails
    from layerstore.images.load import BlobPolicy, LayerReport, LayerStatus, LoadedImage, LoadReport
    from layerstore.images.naming import RemoveReport
    from layerstore.images.progress import Progress
    from layerstore.images.removal import RemovalForecast
    from layerstore.images.repair import RepairReport
    from layerstore.images.rootfs import ImportOptions, ImportReport
    from layerstore.images.save import ArchiveKind, SavedImage, SaveReport
    from layerstore.limits import Limits
    from layerstore.treediff import Change, ChangeKind
    from layerstore.view import View

__all__ = [
    "Analysis",
    "AnalyzeOptions",
    "ArchiveKind",
    "BlobPolicy",
    "Change",
    "ChangeKind",
    "DiskUsage",
    "Held",
    "HistoryStep",
    "ImageDamage",
    "ImageDetails",
    "ImageSummary",
    "ImageUsage",
    "ImportOptions",
    "ImportReport",
    "LayerDetails",
    "LayerReport",
    "LayerStatus",
    "LayerStore",
    "Limits",
    "LoadReport",
    "LoadedImage",
    "Progress",
    "RemovalForecast",
    "RemoveReport",
    "RepairReport",
    "SaveReport",
    "SavedImage",
    "StoreReport",
    "View",
    "analyze",
    "errors",
    "open",
    "repair",
]


# Loaded at first use: `layerstore --help` need not wait for numpy and LMDB.
_MODULES = {
    "Analysis": "analysis",
    "AnalyzeOptions": "analysis",
    "analyze": "analysis",
    "LayerStore": "api",
    "DiskUsage": "images.accounting",
    "ImageUsage": "images.accounting",
    "Held": "images.holding",
    "RemovalForecast": "images.removal",
    "ImageDamage": "images.checking",
    "StoreReport": "images.checking",
    "HistoryStep": "images.listing",
    "ImageDetails": "images.listing",
    "ImageSummary": "images.listing",
    "LayerDetails": "images.listing",
    "BlobPolicy": "images.load",
    "LayerReport": "images.load",
    "LayerStatus": "images.load",
    "LoadReport": "images.load",
    "LoadedImage": "images.load",
    "RemoveReport": "images.naming",
    "Progress": "images.progress",
    "RepairReport": "images.repair",
    "ImportOptions": "images.rootfs",
    "Limits": "limits",
    "ImportReport": "images.rootfs",
    "ArchiveKind": "images.save",
    "SaveReport": "images.save",
    "SavedImage": "images.save",
    "Change": "treediff",
    "ChangeKind": "treediff",
    "View": "view",
}


def __getattr__(name: str) -> object:
    if name in ("open", "repair"):
        value: object = getattr(importlib.import_module("layerstore.api"), f"{name}_store")
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"layerstore.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value

"""What holds for every verb: which store, how much input may ask for, and whether tracebacks are shown. The environment is read here only.

    --root  >  LAYERSTORE_ROOT  >  /var/lib/layerstore (root)  or  $XDG_DATA_HOME/layerstore (everybody else)

Source: XDG Base Directory Specification: `~/.local/share` where the variable is unset, empty or not absolute.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerstore.api import LayerStore

__all__ = ["Settings", "cache_folder", "default_root"]

_SYSTEM_ROOT = Path("/var/lib/layerstore")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options in front of the verb."""

    root: Path
    debug: bool = False
    limits: tuple[str, ...] = ()

    def open_for_reading(self) -> LayerStore:
        """The store as it is; NotFound where there is none."""
        from layerstore.api import open_store

        return open_store(self.root, create=False, read_only=True)

    def open_for_writing(self, *, create: bool) -> LayerStore:
        """The store, made first if `create` and there is none."""
        from layerstore.api import open_store
        from layerstore.limits import parse_limits

        return open_store(self.root, create=create, limits=parse_limits(self.limits))


def default_root(environment: Mapping[str, str], *, is_superuser: bool | None = None) -> Path:
    """Where the store is when nobody says it."""
    if is_superuser is None:
        is_superuser = os.geteuid() == 0
    if is_superuser:
        return _SYSTEM_ROOT
    data_home = Path(environment.get("XDG_DATA_HOME", ""))
    if not data_home.is_absolute():
        data_home = Path.home() / ".local" / "share"
    return data_home / "layerstore"


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where what can be made again is kept.

    Source: XDG Base Directory Specification: `~/.cache` where XDG_CACHE_HOME is unset, empty or not absolute.
    """
    cache_home = Path(environment.get("XDG_CACHE_HOME", ""))
    if not cache_home.is_absolute():
        cache_home = Path.home() / ".cache"
    return cache_home / "layerstore"

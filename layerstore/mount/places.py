"""Where mounts keep their things below the store's root, and the locks around them.

    ROOT/
      images/meta-<key>.erofs    the tree of a stack for overlayfs   } caches: rebuilt when missing
      images/meta-<key>.json     what it needs and is                }
      images/meta-<key>.names    content names in it, 32 bytes each  }
      images/data-<n>.erofs      contents, over the chunk file       }
      objects/ab/<name>          contents as plain files             }
      links/ab/<name>            files that checkouts share          }
      uppers/<token>/{fs,work}   changes of writable mounts
      run/data/<n>, run/meta/<key>, run/merged/<key>, run/empty    private mount places; nothing in them outlives a boot
      run/lock, images/lock      flock

The folders are the owner's only: what is below them is not to be reached around the permissions of a mount.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerstore.store.files import no_room

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Places"]


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one store; `root` is absolute and without symbolic links, as the kernel shows paths."""

    root: Path

    @staticmethod
    def of(root: Path) -> Places:
        """The places of the store at `root`."""
        return Places(Path(os.path.realpath(root)))

    @property
    def images(self) -> Path:
        """EROFS images."""
        return self.root / "images"

    @property
    def objects(self) -> Path:
        """Contents as plain files."""
        return self.root / "objects"

    @property
    def links(self) -> Path:
        """Files that checkouts share as hard links."""
        return self.root / "links"

    @property
    def run(self) -> Path:
        """Private mounts, and what is known of this boot."""
        return self.root / "run"

    @property
    def empty(self) -> Path:
        """A folder without anything."""
        return self.run / "empty"

    def meta_image(self, key: str) -> Path:
        """The metadata image of a stack."""
        return self.images / f"meta-{key}.erofs"

    def meta_facts(self, key: str) -> Path:
        """What a metadata image needs and is."""
        return self.images / f"meta-{key}.json"

    def meta_names(self, key: str) -> Path:
        """The content names in a metadata image."""
        return self.images / f"meta-{key}.names"

    def data_image(self, number: int) -> Path:
        """A data image."""
        return self.images / f"data-{number}.erofs"

    def meta_mount(self, key: str) -> Path:
        """Where a metadata image is mounted."""
        return self.run / "meta" / key

    def merged_mount(self, key: str) -> Path:
        """Where a stack is mounted whole."""
        return self.run / "merged" / key

    def data_mount(self, number: int) -> Path:
        """Where a data image is mounted."""
        return self.run / "data" / str(number)

    def upper(self, token: str) -> Path:
        """The changes of a writable mount."""
        return self.root / "uppers" / token

    def make(self) -> None:
        """Make the folders that are missing. Raises: StoreFull."""
        with no_room("make the folders of mounts"):
            for path in (self.images, self.objects, self.links, self.run, self.root / "uppers"):
                path.mkdir(mode=0o700, exist_ok=True)
            for path in (self.run / "meta", self.run / "data", self.run / "merged", self.empty):
                path.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def mounting(self) -> Iterator[None]:
        """Hold the lock around records and mounts: they change together. Waits; not for the same thread twice."""
        with _locked(self.run / "lock"):
            yield

    @contextmanager
    def building(self) -> Iterator[None]:
        """Hold the lock around the making of images, so that each content goes into one. Waits."""
        with _locked(self.images / "lock"):
            yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

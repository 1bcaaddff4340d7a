"""The driver `hardlinks`: a checkout whose files are hard links into ROOT/links, so that the next one costs almost nothing.

Files with the same content and the same metadata are one inode in all checkouts (`mount.links`); directories, symbolic
links and devices are each checkout's own. So the tree is for reading: who writes to a file changes it in all of them.
The store itself is not concerned, and such a file is not given to checkouts to come.

The folder must be on the store's filesystem. Link counts are higher than the image's.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from layerstore.errors import Unsupported
from layerstore.mount.checkout import CheckoutDriver, write_view
from layerstore.mount.contents import name_contents
from layerstore.mount.driver import Support
from layerstore.mount.links import LinkPool
from layerstore.mount.objects import BUDGET, evict_objects

if TYPE_CHECKING:
    from layerstore.mount.places import Places
    from layerstore.store.store import Store
    from layerstore.view import View

__all__ = ["HardlinksDriver"]


class HardlinksDriver(CheckoutDriver):
    """See the module. Thread safety: stateless."""

    name = "hardlinks"

    def __init__(self, budget: int = BUDGET) -> None:
        """Keep at most `budget` bytes of files that no checkout has, with the contents of `objects` that no mount needs."""
        self._budget = budget

    def probe(self, store: Store, places: Places, *, rw: bool) -> Support:
        """It works everywhere, for reading."""
        del store, places
        return Support(
            not rw, "checkouts share its files: they must not be written to" if rw else ""
        )

    def _write(self, store: Store, places: Places, view: View, folder: int) -> None:
        _check_links(places, folder)
        with TemporaryDirectory(prefix="links-", dir=places.run) as staging:
            names = name_contents(view.tree).of_inodes
            pool = LinkPool(places.links, Path(staging), view.tree, names)
            write_view(view, folder, places.objects, pool)
            added = pool.publish()
        if added:
            evict_objects(store, places, self._budget)


def _check_links(places: Places, folder: int) -> None:
    """Make a link from ROOT to the open directory once. Raises: Unsupported: that cannot be done."""
    with TemporaryDirectory(prefix="links-", dir=places.run) as here:
        probe, name = Path(here, "probe"), f".layerstore-{Path(here).name}"
        probe.touch()
        try:
            os.link(probe, name, dst_dir_fd=folder)
        except OSError as error:
            raise Unsupported(
                f"no hard links from {places.links} to there: {error.strerror}; it must be the same filesystem"
            ) from error
        os.unlink(name, dir_fd=folder)

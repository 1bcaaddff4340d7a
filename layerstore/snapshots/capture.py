"""An upper directory as a layer of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerstore.errors import FailedPrecondition
from layerstore.formats.codecs import Compression
from layerstore.ingest import Expected, ingest_layer
from layerstore.mount.upper import BlockReader, RootAttributes, iter_upper_tar
from layerstore.snapshots.merged import merged_view

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.ingest import IngestReport
    from layerstore.snapshots.lower import Lower
    from layerstore.store.session import WriteSession

__all__ = ["capture_upper", "root_of"]


def capture_upper(
    upper: Path, lower: Lower | None, what: str, session: WriteSession
) -> IngestReport:
    """Store what an upper directory changes in its lower one as a layer; messages call it `what`.

    Raises:
        FailedPrecondition: a file changed while it was read.
        StoreFull.
    """
    try:
        with merged_view(upper, lower) as merged:
            source = BlockReader(iter_upper_tar(upper, root_of(lower), merged))
            return ingest_layer(source, Expected(what), Compression.NONE, session)
    except FileNotFoundError as error:
        raise FailedPrecondition(
            f"{what} changed while it was read ({error}): failed precondition"
        ) from error


def root_of(lower: Lower | None) -> RootAttributes:
    """The root directory's attributes below an upper one; those of an image without an entry for it, on nothing."""
    return RootAttributes.implied() if lower is None else lower.attributes

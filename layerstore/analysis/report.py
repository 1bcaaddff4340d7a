"""What an analysis found, as values: the shape of its JSON. All sizes are bytes.

Images are named by their position in `Analysis.images`, layers by their diff ID. `estimates` names the members that are no
exact figures; all others are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerstore.analysis.sources import Skipped
    from layerstore.digest import DiffID, Digest

__all__ = [
    "Analysis",
    "DuplicatedFile",
    "Group",
    "ImageSavings",
    "LayerFacts",
    "LayerFamily",
    "Savings",
    "Suggestion",
]


@dataclass(frozen=True, slots=True)
class Savings:
    """What the set takes, one way after another.

    Attributes:
        unpacked: every image has all its files for itself.
        gzip: every image has its compressed layers for itself.
        registry: every compressed layer once.
        layers: every layer unpacked once: what Docker keeps on a host.
        files: every file content once.
        chunks: every chunk once, zeros not at all.
        compressed: the same as frames: what layerstore keeps of contents.
        overhead: index, recipes and documents of a store; an estimate.
        store: `compressed` and `overhead` together; an estimate.
        estimates: the names of those that are estimates.
    """

    unpacked: int
    gzip: int
    registry: int
    layers: int
    files: int
    chunks: int
    compressed: int
    overhead: int
    store: int
    estimates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageSavings:
    """One image.

    Attributes:
        names: full references; empty where its archive has none.
        source: the archive, or `store`.
        layers: diff IDs, bottom first.
        gzip: its compressed layers; an estimate if `gzip_is_estimate`.
        files, chunks, compressed: as in `Savings`, if it were alone.
        alone: of `compressed`, what no other image holds.
        share: of `compressed`, each chunk divided by the images that hold it; shares add up to the set's `compressed`.
        closest: the image that it shares most with, or null.
        closest_shared: encoded bytes that the two share.
    """

    id: Digest
    names: tuple[str, ...]
    source: str
    layers: tuple[DiffID, ...]
    unpacked: int
    gzip: int
    gzip_is_estimate: bool
    files: int
    chunks: int
    compressed: int
    alone: int
    share: int
    closest: int | None
    closest_shared: int

    @property
    def label(self) -> str:
        """A name for people."""
        return self.names[0] if self.names else self.id


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One distinct layer: tar, files, compressed, its chunks as frames, and the images that have it."""

    diff_id: DiffID
    size: int
    unpacked: int
    gzip: int
    gzip_is_estimate: bool
    compressed: int
    images: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DuplicatedFile:
    """A file content in several layers.

    Attributes:
        path: where it is in one of them.
        size: bytes.
        layers: how many distinct layers have it.
        wasted: bytes beyond the first copy.
    """

    path: str
    size: int
    layers: int
    wasted: int


@dataclass(frozen=True, slots=True)
class LayerFamily:
    """Layers of different digests with mostly the same content: a rebuilt base, a cache that was copied again.

    Attributes:
        layers: diff IDs, those of most images first.
        images: those that have one of them.
        is_base: each is the lowest layer of its images.
        compressed: encoded bytes of all, each for itself.
        duplicated: of these, what is there more than once.
        unpacked_duplicated: about as much of unpacked files; an estimate from the ratio of the two.
    """

    layers: tuple[DiffID, ...]
    images: tuple[int, ...]
    is_base: bool
    compressed: int
    duplicated: int
    unpacked_duplicated: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Something to do that follows from the figures.

    Attributes:
        kind: `rebuilt-base`, `similar-layers`, `repeated-files` or `package-cache`.
        text: a sentence for people.
        saves: unpacked bytes that it saves where layers are shared and nothing else is.
        is_estimate: whether `saves` is.
        images: whom it is about.
    """

    kind: str
    text: str
    saves: int
    is_estimate: bool
    images: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Chunks that exactly these images hold; `compressed` bytes as frames, `chunks` as they are."""

    images: tuple[int, ...]
    compressed: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Analysis:
    """All of it.

    Attributes:
        pairs: a row for each image: encoded bytes that it shares with each, itself included.
        groups: the largest groups of shared chunks, for what-if questions.
        groups_left: encoded bytes of shared chunks that are in none of `groups`.
        skipped: what folders held besides archives of images.
        cached_layers: how many layers were known from an earlier analysis and not read.
    """

    images: tuple[ImageSavings, ...]
    savings: Savings
    chunk_count: int
    layers: tuple[LayerFacts, ...]
    pairs: tuple[tuple[int, ...], ...]
    duplicated_files: tuple[DuplicatedFile, ...]
    families: tuple[LayerFamily, ...]
    suggestions: tuple[Suggestion, ...]
    groups: tuple[Group, ...]
    groups_left: int
    skipped: tuple[Skipped, ...]
    cached_layers: int

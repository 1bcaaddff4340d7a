"""Names that archives give their images, made complete; a name that cannot be one is a warning, not an error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from layerstore.errors import InvalidArgument
from layerstore.formats.oci import ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME
from layerstore.reference import is_tag, parse_reference, path_part_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["base_name", "complete_names", "names_of_annotations"]

_SUFFIXES = re.compile(r"(?:\.(?:tar|tgz|tbz2?|txz|gz|zst|zstd|xz|bz2))+$", re.IGNORECASE)


def complete_names(names: Iterable[str], warnings: list[str]) -> tuple[str, ...]:
    """Complete references as `layerstore.reference` does, without doubles; bad ones go to `warnings`."""
    result: dict[str, None] = {}
    for name in names:
        try:
            result[str(parse_reference(name))] = None
        except InvalidArgument as error:
            warnings.append(f"name ignored: {error}")
    return tuple(result)


def names_of_annotations(
    annotations: Mapping[str, str], base: str, warnings: list[str]
) -> tuple[str, ...]:
    """The name of an entry of a layout's `index.json`.

    containerd's annotation is a full name. The image-spec's is one, or only a tag: that belongs to `base`, which
    is made of the archive's file name.
    """
    full = annotations.get(ANNOTATION_CONTAINERD_NAME)
    if full:
        return complete_names([full], warnings)
    name = annotations.get(ANNOTATION_REF_NAME)
    if not name:
        return ()
    if not is_tag(name):
        return complete_names([name], warnings)
    if not base:
        warnings.append(
            f"name ignored: the image has only a tag, {name!r}, and the archive has no file name"
        )
        return ()
    return complete_names([f"{base}:{name}"], warnings)


def base_name(file_name: str) -> str:
    """The part of a repository path nearest to an archive's file name; empty if nothing is left."""
    return path_part_from(_SUFFIXES.sub("", file_name))

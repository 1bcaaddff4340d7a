"""From what people type to an image: full and short names, image IDs, manifest digests, and prefixes of them.

A name points to a manifest, or to an index whose manifest for this machine's platform is meant.
"""

from __future__ import annotations

import platform as machine
import re
from typing import TYPE_CHECKING

from layerstore import emit
from layerstore.errors import InvalidArgument, NotFound
from layerstore.formats import oci
from layerstore.reference import parse_reference

if TYPE_CHECKING:
    from layerstore.digest import Digest
    from layerstore.store.catalog import ImageRecord
    from layerstore.store.store import Store

__all__ = [
    "find_image",
    "find_target",
    "host_platform",
    "image_of",
    "manifests_of",
    "names_by_target",
]

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")


def find_image(store: Store, text: str, platform: str | None = None) -> Digest:
    """The manifest digest of the image that `text` names.

    Raises:
        NotFound: no image has this name or ID, or none is for the platform.
        InvalidArgument: neither a name nor an ID, or an ID that several images share.
    """
    return image_of(store, find_target(store, text), platform)


def find_target(store: Store, text: str) -> Digest:
    """What `text` points to: the digest of a manifest or of an index. Raises as `find_image`."""
    try:
        reference = parse_reference(text)
    except InvalidArgument:
        reference = None
        if not _ID.fullmatch(text):
            raise
    if reference is not None:
        with store.read() as txn:
            target = store.catalog.ref(txn, str(reference))
            if target is None and reference.digest is not None:
                known = store.catalog.image(txn, reference.digest) or store.catalog.blob(
                    txn, reference.digest
                )
                target = reference.digest if known else None
        if target is not None:
            return target
    if (match := _ID.fullmatch(text)) and (found := _with_prefix(store, match[1])):
        if len(found) > 1:
            raise InvalidArgument(f"{text} could be {len(found)} images; give more digits")
        return found.pop()
    raise NotFound(f"no image {text} in this store; `layerstore images` lists them")


def image_of(store: Store, target: Digest, platform: str | None = None) -> Digest:
    """The manifest for a platform (this machine's by default) behind a manifest or index digest.

    Raises: NotFound: the index has none for it in this store.
    """
    with store.read() as txn:
        if store.catalog.image(txn, target) is not None:
            return target
    present = manifests_of(store, target)
    if not present:
        raise NotFound(f"{target} has no image in this store")
    if len(present) == 1 and platform is None:
        return next(iter(present))
    wanted = oci.parse_platform(platform) if platform else host_platform()
    document = oci.parse_document(emit.read_document(store, target), None, target)
    if isinstance(document, oci.Index):
        here = tuple(entry for entry in document.manifests if entry.digest in present)
        chosen = oci.select_platform(oci.Index(document.media_type, here), wanted)
        return chosen.digest
    raise NotFound(f"{target} is no image")


def manifests_of(store: Store, target: Digest) -> dict[Digest, ImageRecord]:
    """The images of this store that a manifest or index digest reaches, in the index's order."""
    with store.read() as txn:
        image = store.catalog.image(txn, target)
    if image is not None:
        return {target: image}
    try:
        document = oci.parse_document(emit.read_document(store, target), None, target)
    except NotFound:
        return {}
    found: dict[Digest, ImageRecord] = {}
    if isinstance(document, oci.Index):
        for entry in document.manifests:
            with store.read() as txn:
                known = store.catalog.blob(txn, entry.digest) is not None
            if known:
                found |= manifests_of(store, entry.digest)
    return found


def names_by_target(store: Store) -> dict[Digest, list[str]]:
    """All references, by what they point to."""
    names: dict[Digest, list[str]] = {}
    with store.read() as txn:
        for name, target in store.catalog.refs(txn):
            names.setdefault(target, []).append(name)
    return names


def host_platform() -> oci.Platform:
    """The platform of this machine."""
    return oci.parse_platform(f"linux/{machine.machine()}")


def _with_prefix(store: Store, digits: str) -> set[Digest]:
    """Manifests whose own digest, or whose config's (the image ID), starts with these digits."""
    found = set()
    with store.read() as txn:
        for digest, record in store.catalog.images(txn):
            if digest[7:].startswith(digits):
                return {digest}
            if record.config[7:].startswith(digits):
                found.add(digest)
    if len(found) > 1:
        # The same image under two manifests (compressed otherwise): any of them shows the same.
        with store.read() as txn:
            configs = {
                record.config for digest, record in store.catalog.images(txn) if digest in found
            }
        if len(configs) == 1:
            return {min(found)}
    return found

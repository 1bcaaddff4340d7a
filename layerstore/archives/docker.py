"""The docker-archive: what `docker save`, podman and skopeo write.

    manifest.json      [{"Config": "<hex>.json", "RepoTags": ["python:3.12"], "Layers": ["<id>/layer.tar", ...]}, ...]
    <hex>.json         image config; its name is its sha256
    <id>/layer.tar     one layer, or a link to a member with the same bytes; since Docker 25 blobs/sha256/<hex>
    <id>/json VERSION  what Docker before 1.10 used
    repositories       {"python": {"3.12": "<id of the top layer>"}}

Members come in any order, `manifest.json` usually near the end.

Source: Docker's "Image Specification v1.2", "Combined Image JSON + Filesystem Changeset Format"; moby `image/tarexport`.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.archives.member import read_document
from layerstore.archives.names import complete_names
from layerstore.digest import Digest
from layerstore.errors import MalformedInput
from layerstore.formats.strictjson import Place, open_document, parse_json

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from layerstore.archives.member import MemberReader, Members
    from layerstore.limits import Limits

__all__ = ["MANIFEST", "REPOSITORIES", "DockerArchive", "DockerImage", "names_by_config"]

MANIFEST = "manifest.json"
REPOSITORIES = "repositories"
_DOCUMENTS_FACTOR = 16  # all configs together may be this many times the largest allowed
_CONFIG_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class DockerImage:
    """One image of a docker-archive.

    Attributes:
        names: complete references, such as `docker.io/library/python:3.12`.
        config: the exact bytes of the image config.
        layers: names of the members with the layers, bottom first; plain or compressed tars.
    """

    names: tuple[str, ...]
    config: bytes
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


class DockerArchive:
    """The images of a docker-archive. Thread safety: `open_member` and its readers, from any thread.

    Attributes:
        warnings: what was ignored, as text for the user.

    Raises: MalformedInput: `manifest.json` has a wrong shape, or names members that are not there.
    """

    def __init__(self, members: Members, limits: Limits) -> None:
        self._members = members
        self.warnings: list[str] = []
        self._images = self._load(limits)

    @property
    def source(self) -> str:
        """What errors call the archive."""
        return self._members.source

    def images(self) -> tuple[DockerImage, ...]:
        """All images, in the order of `manifest.json`."""
        return self._images

    def open_member(self, name: str) -> tuple[MemberReader, int]:
        """Open a layer by its member name; gives the stream, to be closed, and its size in bytes.

        Raises: NotFound: no such member.
        """
        reader = self._members.open(name)
        return reader, reader.size

    def close(self) -> None:
        """Close the archive; open readers fail from now on."""
        self._members.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _load(self, limits: Limits) -> tuple[DockerImage, ...]:
        entries = _entries(self._members, limits)
        tags_by_layer = (
            _repositories(self._members, limits) if not all(e.tags for e in entries) else {}
        )
        configs: dict[str, bytes] = {}
        present: set[str] = set()
        budget = _DOCUMENTS_FACTOR * limits.document_bytes
        images = []
        for entry in entries:
            for name in entry.layers:
                if name not in present:
                    self._required(name)
                    present.add(name)
            if entry.config not in configs:
                budget -= self._required(entry.config)
                if budget < 0:
                    raise MalformedInput(
                        "the image configs are too large together", source=self.source
                    )
                configs[entry.config] = read_document(self._members, entry.config, limits)
            top = posixpath.dirname(entry.layers[-1]) if entry.layers else ""
            tags = entry.tags or tags_by_layer.get(top, ())
            images.append(
                DockerImage(
                    complete_names(tags, self.warnings), configs[entry.config], entry.layers
                )
            )
        return tuple(images)

    def _required(self, name: str) -> int:
        size = self._members.size(name)
        if size is None:
            raise MalformedInput(
                f"{name!r} is not in the archive", source=self.source, entry=MANIFEST
            )
        return size


def names_by_config(members: Members, limits: Limits) -> dict[Digest, tuple[str, ...]]:
    """The `RepoTags`, as written, of each image that `manifest.json` names by its config's digest."""
    names: dict[Digest, tuple[str, ...]] = {}
    for entry in _entries(members, limits):
        match = _CONFIG_NAME.fullmatch(posixpath.normpath(entry.config))
        if match is not None and entry.tags:
            config = Digest("sha256:" + match[1])
            names[config] = names.get(config, ()) + entry.tags
    return names


def _entries(members: Members, limits: Limits) -> tuple[_Entry, ...]:
    source = f"{members.source} {MANIFEST}"
    data = read_document(members, MANIFEST, limits)
    return Place(parse_json(data, limits.document_bytes, source), "", source).elements(_entry)


def _entry(place: Place) -> _Entry:
    config = place.text("Config")
    if not config:
        raise place.bad("Config is missing")
    return _Entry(
        config, place.sequence("RepoTags", Place.as_text), place.sequence("Layers", Place.as_text)
    )


def _repositories(members: Members, limits: Limits) -> dict[str, tuple[str, ...]]:
    """Names by the ID of the top layer; images whose `RepoTags` are empty may have theirs only here."""
    if members.size(REPOSITORIES) is None:
        return {}
    data = read_document(members, REPOSITORIES, limits)
    root = open_document(data, limits.document_bytes, f"{members.source} {REPOSITORIES}")
    names: dict[str, tuple[str, ...]] = {}
    for repository in root.as_object():
        for tag, layer in root.texts(repository).items():
            names[layer] = (*names.get(layer, ()), f"{repository}:{tag}")
    return names

"""Image references: the names that people type and that images are listed under.

    docker.io/library/python:3.12@sha256:...
    └ domain ┘└── path ────┘ └tag┘ └ digest ┘

Short names are completed as Docker does it: `python` is `docker.io/library/python:latest`. What stands before the first
`/` is a domain only if it has a `.`, a `:` or an upper-case letter, or is `localhost`.

    reference := name [":" tag] ["@" digest]        name := domain "/" path
    path      := part ("/" part)*                   part := [a-z0-9]+ (("." | "_" | "__" | "-"+) [a-z0-9]+)*
    tag       := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}

Source: the grammar of the `distribution/reference` project; OCI distribution-spec, "Pulling manifests".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from layerstore.digest import parse_digest
from layerstore.errors import InvalidArgument

if TYPE_CHECKING:
    from layerstore.digest import Digest

__all__ = [
    "DEFAULT_DOMAIN",
    "DEFAULT_TAG",
    "Reference",
    "is_tag",
    "parse_reference",
    "path_part_from",
]

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_NAME_LIMIT = 255  # characters of domain, "/" and path
_TEXT_LIMIT = 1024  # no valid reference is longer; keeps error messages and matching small

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete reference: at least one of `tag` and `digest` is set.

    Attributes:
        domain: the registry, with its port: `docker.io`, `localhost:5000`.
        path: the repository inside the registry: `library/python`.
        tag: None when only a digest was given.
        digest: pins the manifest; it wins over the tag.
    """

    domain: str
    path: str
    tag: str | None
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"{self.domain}/{self.path}{self._suffix()}"

    @property
    def name(self) -> str:
        """Domain and path: what all tags of a repository share."""
        return f"{self.domain}/{self.path}"

    def familiar(self) -> str:
        """The short form as Docker prints it: `python:3.12`; it parses back to this reference."""
        if self.domain != DEFAULT_DOMAIN:
            return str(self)
        short = self.path.removeprefix(_OFFICIAL)
        if "/" in short:
            short = self.path
            if _looks_like_domain(short.partition("/")[0]):
                return str(self)
        return short + self._suffix()

    def with_tag(self, tag: str) -> Reference:
        """The same repository under another tag, without a digest; raises InvalidArgument for a bad tag."""
        if not is_tag(tag):
            raise InvalidArgument(_bad_tag(tag))
        return replace(self, tag=tag, digest=None)

    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"


def parse_reference(text: str) -> Reference:
    """Complete and check a reference that came from outside.

    Raises: InvalidArgument: saying which part is wrong and what it should look like.
    """
    if not text:
        raise InvalidArgument(
            "an image reference must not be empty; give for example 'python:3.12'"
        )
    if len(text) > _TEXT_LIMIT:
        raise InvalidArgument(f"an image reference of {len(text)} characters is too long")
    if _IMAGE_ID.fullmatch(text):
        raise InvalidArgument(
            f"{text!r} is an image ID and not a name; add a tag to use it as a name"
        )
    if "://" in text:
        raise InvalidArgument(f"{text!r} is a URL; leave out {text.partition('://')[0]}://")
    rest, at, digest_text = text.partition("@")
    digest = parse_digest(digest_text) if at else None
    domain, rest = _split_domain(rest)
    path, colon, tag = rest.partition(":")
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = _OFFICIAL + path
    _check_name(domain, path, text)
    if colon and not is_tag(tag):
        raise InvalidArgument(f"in {text!r}, {_bad_tag(tag)}")
    if not colon:
        return Reference(domain, path, None if digest else DEFAULT_TAG, digest)
    return Reference(domain, path, tag, digest)


def is_tag(text: str) -> bool:
    """Whether the text can be a tag."""
    return _TAG.fullmatch(text) is not None


def path_part_from(text: str) -> str:
    """Make the nearest valid part of a path out of any text, such as a file name; empty if nothing is left."""
    words = re.findall(r"[a-z0-9]+|[^a-z0-9]+", text.lower()[:_NAME_LIMIT])
    part = "".join(w if w[0].isalnum() and w.isascii() else _separator_from(w) for w in words)
    return part.strip("._-")


def _separator_from(text: str) -> str:
    return text if text in {".", "_", "__"} else "-"


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash or not _looks_like_domain(first):
        return DEFAULT_DOMAIN, text
    return DEFAULT_DOMAIN if first == _LEGACY_DOMAIN else first, rest


def _looks_like_domain(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost" or first.lower() != first


def _check_name(domain: str, path: str, text: str) -> None:
    if not _DOMAIN.fullmatch(domain):
        raise InvalidArgument(f"in {text!r}, {domain!r} is not a registry; give host or host:port")
    if not path:
        raise InvalidArgument(
            f"in {text!r}, the repository is missing; give for example 'python:3.12'"
        )
    if path.lower() != path:
        raise InvalidArgument(f"in {text!r}, {path!r} must be lower case; try {path.lower()!r}")
    if not _PATH.fullmatch(path):
        raise InvalidArgument(
            f"in {text!r}, {path!r} is not a repository; use a-z and 0-9, joined by one of . _ __ - /"
        )
    if len(domain) + 1 + len(path) > _NAME_LIMIT:
        raise InvalidArgument(
            f"the name in {text[:40]!r}... is longer than {_NAME_LIMIT} characters"
        )


def _bad_tag(tag: str) -> str:
    return (
        f"{tag[:140]!r} is not a tag; use up to 128 of A-Z a-z 0-9 _ . - and start with none of . -"
    )

"""Platforms: what an image runs on, and which of several runs best.

    os/architecture[/variant]      linux/amd64   linux/arm/v7   linux/arm64

Architectures are Go's names, and the machine names of `uname` are taken for them. A variant is a level of the CPU: what
is built for a lower one runs on a higher one. Without a variant, arm is v7, arm64 is v8 and amd64 is v1.

Source: OCI image-spec `image-index.md`, "Platform Variants"; containerd's platform matching.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from layerstore.errors import InvalidArgument

__all__ = ["Platform", "parse_platform", "rank"]

_ALIASES = {
    "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "armel": "arm", "i386": "386", "i686": "386",
}  # fmt: skip
_DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
_EXACT = 1 << 30


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest runs on; `variant` is the CPU's (`v7`, `v8`) or empty."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def parse_platform(text: str) -> Platform:
    """Parse `os/architecture[/variant]`, accepting the names that `uname -m` gives; raises InvalidArgument."""
    parts = text.lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(re.fullmatch(r"[a-z0-9_.-]+", part) for part in parts):
        raise InvalidArgument(f"{text[:80]!r} is not a platform; give for example 'linux/amd64'")
    return _normal(Platform(*parts))


def rank(have: Platform, want: Platform) -> tuple[int, ...] | None:
    """How well what is built for `have` runs on `want`: higher is better, None when it does not run."""
    have, want = _normal(have), _normal(want)
    if (have.os, have.architecture) != (want.os, want.architecture):
        return None
    if have.variant == want.variant:
        return (_EXACT,)
    if have.architecture not in _DEFAULT_VARIANTS:
        # No order is known among the variants of other CPUs; an entry for all of them has none.
        return (0,) if not have.variant or not want.variant else None
    ours, theirs = _version(have.variant), _version(want.variant)
    return ours if ours and theirs and ours < theirs else None


def _normal(platform: Platform) -> Platform:
    """One spelling for each platform, so that they can be compared."""
    architecture = _ALIASES.get(platform.architecture, platform.architecture)
    variant = platform.variant or _DEFAULT_VARIANTS.get(architecture, "")
    if platform.architecture in {"armhf", "armel"} and not platform.variant:
        variant = {"armhf": "v7", "armel": "v6"}[platform.architecture]
    if variant.isdigit():
        variant = "v" + variant
    return Platform(platform.os, architecture, variant, platform.os_version)


def _version(variant: str) -> tuple[int, ...]:
    match = re.fullmatch(r"v([0-9]{1,3})(?:\.([0-9]{1,3}))?", variant)
    return () if match is None else (int(match[1]), int(match[2] or 0))

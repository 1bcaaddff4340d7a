"""How much input from outside may ask for: one value, `Limits`, that a store is opened with.

Layers and archives are hostile until they are read. What is beyond a limit is refused with `LimitExceeded`, which names the
limit, and nothing of it becomes visible. Limits are of this process, not of the store: what another has let in stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from layerstore.errors import InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Limits", "parse_limits"]

_FREE_OUTPUT = 64 << 20  # bytes that anything may grow to, whatever the ratio
_VALUE = re.compile(r"(\d{1,15})([KMGT]?)", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True, slots=True)
class Limits:
    """What input may ask for; each is inclusive.

    Attributes:
        layers: of one image.
        layer_bytes: of one layer, uncompressed.
        ratio: uncompressed to compressed bytes, once a layer or archive has grown beyond 64 MiB. gzip ends at 1,032.
        entries: of one layer's tar.
        path_bytes: of one path in a layer; the format ends at 4,096.
        depth: components of one path.
        document_bytes: of one manifest, index or config; of all of an archive together, 16 times as much.
        members: files of an archive; each costs some hundred bytes of memory.
        spool_bytes: of the temporary copy of an archive that is compressed or comes through a pipe.
    """

    layers: int = 1_000
    layer_bytes: int = 1 << 40
    ratio: int = 2_000
    entries: int = 10_000_000
    path_bytes: int = 4_096
    depth: int = 2_048
    document_bytes: int = 16 << 20
    members: int = 100_000
    spool_bytes: int = 1 << 40

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise InvalidArgument(f"limit {field.name}: {value!r} is no positive number")

    def check(
        self, name: str, value: int, *, source: str = "", entry: str = "", offset: int | None = None
    ) -> None:
        """Compare what input asks for with a limit. Raises: LimitExceeded."""
        allowed = getattr(self, name)
        if value > allowed:
            raise LimitExceeded(name, value, allowed, source=source, entry=entry, offset=offset)

    def check_growth(self, consumed: int, produced: int, *, source: str) -> None:
        """Compare what came out of a decoder with what went in. Raises: LimitExceeded."""
        if produced > _FREE_OUTPUT:
            self.check("ratio", produced // max(consumed, 1), source=source)


def parse_limits(texts: Iterable[str]) -> Limits:
    """Limits from texts like `entries=1000000` and `layer_bytes=10G`; units are powers of 1024.

    Raises: InvalidArgument.
    """
    known = {field.name for field in fields(Limits)}
    changes = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise InvalidArgument(f"no limit {name!r}; there are {', '.join(sorted(known))}")
        number = _VALUE.fullmatch(value)
        if number is None:
            raise InvalidArgument(f"limit {name}: {value!r} is no number, K, M, G or T behind it")
        changes[name] = int(number[1]) << _UNITS[number[2].upper()]
    return replace(Limits(), **changes)

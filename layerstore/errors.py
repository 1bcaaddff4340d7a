"""Every error that layerstore raises on purpose.

A class is one thing that a caller can *do* something about; the message says what to do next. The split that
matters most: `MalformedInput` (THEIR bytes are bad) or `CorruptStore` (OUR bytes are bad).

    LayerstoreError                                              exit
    ├── InvalidArgument(ValueError)  the request is wrong        2
    ├── NotFound(LookupError)        no such blob, ref, image    3
    ├── AlreadyExists                key or name is taken        4
    ├── FailedPrecondition           e.g. remove with children   5
    ├── MalformedInput               THEIR bytes break a spec    6
    │   ├── DigestMismatch           want, got, size             6
    │   └── LimitExceeded            limit, value, allowed       6
    ├── CorruptStore                 OUR bytes are not right     7
    ├── Unsupported                  feature flag, codec, kernel 8
    ├── Busy                         lock or lease is held       9
    └── StoreFull                    ENOSPC, quota               10

The exit column is `layerstore.cli.exits`; a test walks this tree and fails on a missing row.
"""

from __future__ import annotations

__all__ = [
    "AlreadyExists",
    "Busy",
    "CorruptStore",
    "DigestMismatch",
    "FailedPrecondition",
    "InvalidArgument",
    "LayerstoreError",
    "LimitExceeded",
    "MalformedInput",
    "NotFound",
    "StoreFull",
    "Unsupported",
]


class LayerstoreError(Exception):
    """The root of the tree: catch this to catch everything that layerstore raises on purpose."""


class InvalidArgument(LayerstoreError, ValueError):
    """The request itself is wrong; the same call can never succeed."""


class NotFound(LayerstoreError, LookupError):
    """No such image, reference, blob or layer in this store."""


class AlreadyExists(LayerstoreError):
    """The name is taken."""


class FailedPrecondition(LayerstoreError):
    """The store is not in the state that the call needs; change that first."""


class MalformedInput(LayerstoreError):
    """Bytes from outside break their specification; nothing of them became visible.

    Attributes:
        source: what was being read: a file name, a blob digest; empty when unknown.
        entry: the archive member or tar entry, as text; empty when not inside one.
        offset: byte offset in the stream that `source` names, or None.
    """

    def __init__(
        self, problem: str, *, source: str = "", entry: str = "", offset: int | None = None
    ) -> None:
        self.problem, self.source, self.entry, self.offset = problem, source, entry, offset
        super().__init__(problem)

    def __str__(self) -> str:
        where = [self.source] if self.source else []
        where += [f"entry {self.entry!r}"] if self.entry else []
        where += [f"byte {self.offset}"] if self.offset is not None else []
        return f"{', '.join(where)}: {self.problem}" if where else self.problem

    def within(self, source: str = "", entry: str = "") -> MalformedInput:
        """Name the file or entry around the error where the raiser did not know it; returns self."""
        self.source = self.source or source
        self.entry = self.entry or entry
        return self


class DigestMismatch(MalformedInput):
    """Bytes from outside are not the bytes that their digest or size promises.

    Attributes:
        want: the promised digest, or the promised size as text.
        got: what was read.
        size: bytes read.
    """

    def __init__(self, want: str, got: str, size: int, *, source: str = "") -> None:
        self.want, self.got, self.size = want, got, size
        super().__init__(f"expected {want}, got {got} after {size} bytes", source=source)


class LimitExceeded(MalformedInput):
    """Input from outside asks for more than this process allows; a higher limit lets it in.

    Attributes:
        limit: name of the field of `layerstore.Limits`.
        value: what was asked for, or more was to come.
        allowed: the limit's value.
    """

    def __init__(
        self,
        limit: str,
        value: int,
        allowed: int,
        *,
        source: str = "",
        entry: str = "",
        offset: int | None = None,
    ) -> None:
        self.limit, self.value, self.allowed = limit, value, allowed
        super().__init__(
            f"{limit} of {value:,}, where {allowed:,} are allowed; raise the limit `{limit}` "
            "if this is no attack",
            source=source,
            entry=entry,
            offset=offset,
        )


class CorruptStore(LayerstoreError):
    """Bytes in the store are not what was stored; `layerstore verify` says which images are hit."""


class Unsupported(LayerstoreError):
    """A feature flag, codec or kernel that this version or this machine does not have."""


class Busy(LayerstoreError):
    """Another process holds what the call needs; try again."""


class StoreFull(LayerstoreError):
    """The filesystem or its quota has no room; what was acknowledged before is intact."""

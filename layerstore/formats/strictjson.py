"""JSON from outside, read strictly, with errors that say where in the document they are.

    Place("layers[3].size")  =  a value + the path to it + the name of the document

`parse_json` refuses whatever two parsers could read differently: duplicate keys, NaN, lone surrogates, other encodings
than UTF-8; and whatever costs more than its size: endless integers, nesting deeper than the stack. A key that is
absent and a key that is null are the same, because Go writes null for an empty list.

Source: RFC 8259, and I-JSON (RFC 7493) for what interoperates.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from layerstore.digest import parse_digest
from layerstore.errors import InvalidArgument, MalformedInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layerstore.digest import Digest

__all__ = ["Place", "open_document", "parse_json"]

T = TypeVar("T")

_MAX_SIZE = (1 << 63) - 1  # Go's int64, which all other tools use
_MAX_DIGITS = 20  # a longer integer is no size, and Python's conversion is quadratic
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Place:
    """A value in a document, and where it is. Every accessor raises MalformedInput for a wrong shape."""

    value: object
    path: str
    source: str

    def bad(self, problem: str) -> MalformedInput:
        """The error to raise about this place."""
        return MalformedInput(
            f"{self.path}: {problem}" if self.path else problem, source=self.source
        )

    def as_object(self) -> dict[str, object]:
        """The value, which must be an object."""
        if not isinstance(self.value, dict):
            raise self._not("an object")
        return self.value

    def as_text(self) -> str:
        """The value, which must be a string."""
        if not isinstance(self.value, str):
            raise self._not("a string")
        return self.value

    def as_digest(self) -> Digest:
        """The value, which must be a sha256 digest."""
        try:
            return parse_digest(self.as_text())
        except InvalidArgument as error:
            raise self.bad(str(error)) from None

    def has(self, key: str) -> bool:
        """Whether the object has the key, with any value but null."""
        return self.as_object().get(key) is not None

    def at(self, key: str) -> Place:
        """The value of a key; null when it is absent."""
        return Place(
            self.as_object().get(key), f"{self.path}.{key}" if self.path else key, self.source
        )

    def member(self, key: str) -> Place | None:
        """The object under a key, or None when it is absent."""
        place = self.at(key)
        if place.value is None:
            return None
        place.as_object()
        return place

    def text(self, key: str) -> str:
        """The string under a key, empty when it is absent."""
        place = self.at(key)
        return "" if place.value is None else place.as_text()

    def flag(self, key: str) -> bool:
        """The boolean under a key, False when it is absent."""
        place = self.at(key)
        if place.value is not None and not isinstance(place.value, bool):
            raise place._not("true or false")  # noqa: SLF001  # another Place
        return bool(place.value)

    def size(self, key: str) -> int:
        """The byte count under a key, which must be there."""
        place = self.at(key)
        if not isinstance(place.value, int) or isinstance(place.value, bool):
            raise place._not("an integer")  # noqa: SLF001  # another Place
        if not 0 <= place.value <= _MAX_SIZE:
            raise place.bad(f"{place.value} is not a size")
        return place.value

    def texts(self, key: str) -> Mapping[str, str]:
        """The object of strings under a key, read-only; empty when it is absent."""
        place = self.member(key)
        if place is None:
            return MappingProxyType({})
        return MappingProxyType({name: place.at(name).as_text() for name in place.as_object()})

    def sequence(self, key: str, parse: Callable[[Place], T]) -> tuple[T, ...]:
        """The parsed elements of the array under a key; empty when it is absent."""
        return self.at(key).elements(parse)

    def elements(self, parse: Callable[[Place], T]) -> tuple[T, ...]:
        """The parsed elements of the value, which must be an array or null."""
        if self.value is None:
            return ()
        if not isinstance(self.value, list):
            raise self._not("an array")
        return tuple(
            parse(Place(value, f"{self.path}[{i}]", self.source))
            for i, value in enumerate(self.value)
        )

    def _not(self, wanted: str) -> MalformedInput:
        names = {
            dict: "an object",
            list: "an array",
            str: "a string",
            bool: "a boolean",
            type(None): "missing",
        }
        return self.bad(f"must be {wanted}, is {names.get(type(self.value), 'a number')}")


def open_document(data: bytes, limit: int, source: str) -> Place:
    """Parse a document that must be one object; raises MalformedInput as `parse_json` does."""
    root = Place(parse_json(data, limit, source), "", source)
    root.as_object()
    return root


def parse_json(data: bytes, limit: int, source: str) -> object:
    """Parse one JSON document of at most `limit` bytes.

    Raises: MalformedInput: naming `source`: too large, not UTF-8, not JSON, or one of the refusals above.
    """
    if len(data) > limit:
        raise MalformedInput(
            f"a document of {len(data)} bytes, where {limit} are allowed", source=source
        )
    try:
        text = data.decode("utf-8")
        document: object = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_no_constant
        )
        if _SURROGATE.search(text):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedInput("not UTF-8 text", source=source, offset=error.start) from None
    except UnicodeEncodeError:
        raise MalformedInput("a lone surrogate in a JSON string", source=source) from None
    except RecursionError:
        raise MalformedInput("JSON is nested too deeply", source=source) from None
    except ValueError as error:
        raise MalformedInput(f"not acceptable JSON: {error}", source=source) from None
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key[:80]!r} occurs twice")
        result[key] = value
    return result


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

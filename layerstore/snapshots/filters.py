r"""The filter language of containerd's lists, for snapshots.

    filters  = any of a list; no filter at all matches everything
    filter   = selector ("," selector)*          all of them
    selector = field [("==" | "!=" | "~=") value]
    field    = name ("." name)*                  name: letters, digits, _; or "quoted"
    value    = "quoted" | /quoted/ | |quoted| (of ~= only) | anything up to a comma or space

`==` and a bare field want the field to be there; `!=` does not; `~=` searches for a regular expression, in an absent
field as in an empty one. Fields: `name`, `parent` (empty at the bottom), `kind`, `labels.KEY`, whose key may have dots.

Source: containerd's package `pkg/filters` and `core/snapshots`; regular expressions are Python's, not RE2.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from layerstore.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Filterable", "parse_filters"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_PATTERN = re.compile(r"/(?:[^/\\\n]|\\.)*/|\|(?:[^|\\\n]|\\.)*\|")
_OPERATOR = re.compile(r"==|!=|~=")
_VALUE = re.compile(r'[^\s,"]+')
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")


class Filterable(Protocol):
    """What filters look at."""

    @property
    def name(self) -> str:
        """The key."""
        ...

    @property
    def parent(self) -> str:
        """The parent's key, or empty."""
        ...

    @property
    def kind(self) -> str:
        """active, view or committed."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        ...


def parse_filters(filters: Sequence[str]) -> Callable[[Filterable], bool]:
    """One test for a list of filters.

    Raises: InvalidArgument: a filter is not in the language, naming where.
    """
    parsed = [_Scanner(text).selectors() for text in filters]
    if not parsed:
        return lambda item: True
    return lambda item: any(all(part.matches(item) for part in parts) for parts in parsed)


@dataclass(frozen=True, slots=True)
class _Selector:
    field: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def matches(self, item: Filterable) -> bool:
        found = _field(item, self.field)
        if self.pattern is not None:
            return self.pattern.search(found or "") is not None
        if self.operator == "==":
            return found == self.value
        if self.operator == "!=":
            return (found or "") != self.value
        return found is not None


def _field(item: Filterable, path: tuple[str, ...]) -> str | None:
    if path[0] == "labels" and len(path) > 1:
        return item.labels.get(".".join(path[1:]))
    if path == ("name",):
        return item.name
    if path == ("parent",):
        return item.parent
    if path == ("kind",):
        return str(item.kind)
    return None


class _Scanner:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def selectors(self) -> list[_Selector]:
        self._skip_space()
        if self.at == len(self.text):
            return []
        found = [self._selector()]
        while self.at < len(self.text):
            if self.text[self.at] != ",":
                raise self._wrong("expected a comma")
            self.at += 1
            self._skip_space()
            found.append(self._selector())
        return found

    def _selector(self) -> _Selector:
        field = [self._name()]
        while self.text[self.at : self.at + 1] == ".":
            self.at += 1
            field.append(self._name())
        self._skip_space()
        operator = self._take(_OPERATOR)
        if not operator:
            return _Selector(tuple(field))
        self._skip_space()
        value = self._value(operator)
        self._skip_space()
        if operator != "~=":
            return _Selector(tuple(field), operator, value)
        try:
            return _Selector(tuple(field), operator, value, re.compile(value))
        except re.error as error:
            raise self._wrong(f"not a regular expression ({error})") from error

    def _name(self) -> str:
        if quoted := self._take(_QUOTED):
            return self._unquote(quoted)
        if name := self._take(_NAME):
            return name
        raise self._wrong("expected a field")

    def _value(self, operator: str) -> str:
        if quoted := self._take(_QUOTED):
            return self._unquote(quoted)
        if operator == "~=" and (quoted := self._take(_PATTERN)):
            return quoted[1:-1].replace("\\" + quoted[0], quoted[0])
        if value := self._take(_VALUE):
            return value
        raise self._wrong("expected a value or a quoted string")

    def _unquote(self, quoted: str) -> str:
        def escaped(match: re.Match[str]) -> str:
            code = match[1]
            if len(code) > 1 and code[0] in "xuU":
                return chr(int(code[1:], 16))
            if code.isdigit():
                return chr(int(code, 8))
            plain = {"a": "\a", "v": "\v", "'": "'"}.get(code)
            if plain is not None:
                return plain
            return str(json.loads(f'"\\{code}"'))

        try:
            return _ESCAPE.sub(escaped, quoted[1:-1])
        except (ValueError, OverflowError) as error:
            raise self._wrong("unknown escape in a quoted string") from error

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[0]

    def _skip_space(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def _wrong(self, problem: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self.text!r}, position {self.at}: {problem}")

"""Changes to an image's config in the words of a Dockerfile, as `docker import --change` and `commit --change` take.

    CMD ENTRYPOINT  ["a", "b"] or a shell line        ENV LABEL  key=value …        EXPOSE  80/tcp …
    VOLUME          ["/a"] or /a …                    USER WORKDIR STOPSIGNAL  a word

Source: Dockerfile reference; OCI image-spec `config.md`, "Properties", for the names of the members.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

from layerstore.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["apply_changes"]

_WORDS = {"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}
_COMMANDS = {"CMD": "Cmd", "ENTRYPOINT": "Entrypoint"}
_PORT = re.compile(r"\d{1,5}(?:-\d{1,5})?(?:/(?:tcp|udp|sctp))?")


def apply_changes(runtime: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A config's `config` object with changes applied, in order.

    Raises: InvalidArgument: naming the change.
    """
    result = dict(runtime)
    for change in changes:
        instruction, _, rest = change.strip().partition(" ")
        try:
            _apply(result, instruction.upper(), rest.strip())
        except ValueError as error:
            raise InvalidArgument(f"cannot apply the change {change!r}: {error}") from error
    return result


def _apply(result: dict[str, Any], instruction: str, rest: str) -> None:
    if not rest:
        raise ValueError("it says nothing")
    if instruction in _WORDS:
        result[_WORDS[instruction]] = rest
    elif instruction in _COMMANDS:
        result[_COMMANDS[instruction]] = _command(rest)
    elif instruction == "ENV":
        pairs = _pairs(rest)
        kept = [text for text in result.get("Env") or [] if text.partition("=")[0] not in pairs]
        result["Env"] = kept + [f"{key}={value}" for key, value in pairs.items()]
    elif instruction == "LABEL":
        result["Labels"] = {**(result.get("Labels") or {}), **_pairs(rest)}
    elif instruction == "EXPOSE":
        ports: dict[str, object] = {_port(word): {} for word in rest.split()}
        result["ExposedPorts"] = {**(result.get("ExposedPorts") or {}), **ports}
    elif instruction == "VOLUME":
        volumes = _list(rest) if rest.startswith("[") else rest.split()
        result["Volumes"] = {**(result.get("Volumes") or {}), **{path: {} for path in volumes}}
    else:
        raise ValueError(
            "not one of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR"
        )


def _command(text: str) -> list[str]:
    return _list(text) if text.startswith("[") else ["/bin/sh", "-c", text]


def _list(text: str) -> list[str]:
    words = json.loads(text)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("not a JSON list of words")
    return words


def _pairs(text: str) -> dict[str, str]:
    words = shlex.split(text)
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value:
            raise ValueError("give key=value")
        return {key: value.strip()}
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ValueError(f"{word!r} is not key=value")
        pairs[key] = value
    return pairs


def _port(word: str) -> str:
    if not _PORT.fullmatch(word):
        raise ValueError(f"{word!r} is not a port")
    return word if "/" in word else f"{word}/tcp"

"""Logs of a service: a line a record on standard error, for people or as JSON for machines.

    2026-11-27T08:00:00.123Z info  serving address=unix:///run/layerstore/snapshotter.sock
    {"time": "2026-11-27T08:00:00.123Z", "level": "info", "msg": "serving", "address": "unix:///run/…"}

What a record carries beside its message (`extra=`) are its fields.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

__all__ = ["LogForm", "set_up_logs"]

LogForm = Literal["text", "json"]

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}


class _Formatter(logging.Formatter):
    """Both forms: they differ in the last step."""

    def __init__(self, form: LogForm) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level, message = record.levelname.lower(), record.getMessage()
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._form == "json":
            document = {"time": time, "level": level, "msg": message, **fields}
            return json.dumps(document | ({"trace": trace} if trace else {}), default=str)
        words = [f"{name}={_quoted(value)}" for name, value in fields.items()]
        line = " ".join([time, f"{level:<7}", message, *words])
        return f"{line}\n{trace}" if trace else line


def set_up_logs(form: LogForm, level: str) -> None:
    """Send the records of this package from `level` on to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(form))
    logger = logging.getLogger("layerstore")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _quoted(value: object) -> str:
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    return json.dumps(text) if not text or any(c.isspace() or c in '"=' for c in text) else text

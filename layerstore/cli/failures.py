"""Several things asked at once: each is tried, what fails is said at once, and the first failure is the exit code."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from layerstore.cli.exits import exit_code, message_of
from layerstore.cli.output import print_note
from layerstore.errors import LayerstoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Failure", "Failures"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One that failed: what was asked for, the class of the error, its message and exit code."""

    name: str
    error: str
    message: str
    exit_code: int


@dataclass(slots=True)
class Failures:
    """Those that failed so far."""

    failed: list[Failure] = field(default_factory=list)
    is_debugging: bool = False

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Note an error of the block and go on after it, with its traceback under `--debug`; bugs are raised."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (LayerstoreError, OSError) as error:
            if self.is_debugging:
                traceback.print_exc()
            message = message_of(error)
            self.failed.append(Failure(name, type(error).__name__, message, exit_code(error)))
            print_note(message if name in message else f"{name}: {message}")

    def leave(self) -> None:
        """End the process with the first failure's exit code, if there was one."""
        if self.failed:
            click.get_current_context().exit(self.failed[0].exit_code)

"""`main`: the console entry point. Signals first, then the verb, then an exit code for whatever came of it.

Importing click and the verbs happens inside, when Ctrl-C already ends in order.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING

from layerstore.cli.exits import exit_code, message_of
from layerstore.cli.signals import Stopped, stopping_on_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_PIPE_CLOSED = 128 + signal.SIGPIPE
_NO_BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "1",
)  # numpy would start them, 40 ms, and nothing here uses them
_COMPLETE = "_LAYERSTORE_COMPLETE"  # click's variable for shell completion


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process by default); returns its exit code and raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Names come from images: what the locale cannot show must not end the command.
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault(*_NO_BLAS_THREADS)
    try:
        with stopping_on_signals():
            code = _run(list(sys.argv[1:] if argv is None else argv))
            if sys.stdout is not None:
                sys.stdout.flush()
    except Stopped as stop:
        code = stop.exit_code
    except BrokenPipeError:
        code = _PIPE_CLOSED
    if code == _PIPE_CLOSED:
        _drop_output()
    return code


def _run(arguments: list[str]) -> int:
    import click

    from layerstore.cli.verbs import cli

    context = None
    try:
        if _COMPLETE in os.environ:
            cli.main(arguments, prog_name="layerstore", complete_var=_COMPLETE)
        with cli.make_context("layerstore", arguments) as context:
            cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return Stopped(signal.SIGINT).exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        if context is not None and context.params.get("debug"):
            import traceback

            traceback.print_exc()
        from layerstore.cli.output import print_note

        with suppress(OSError):  # standard error may be closed as well
            print_note(message_of(error))
        return exit_code(error)
    return 0


def _drop_output() -> None:
    """Nobody reads any more: what is still buffered must not fail once more when Python ends."""
    if sys.stdout is not None:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)

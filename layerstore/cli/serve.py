"""`layerstore serve …`: services that run until a signal ends them."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from layerstore.cli.output import print_note
from layerstore.cli.signals import Stopped
from layerstore.errors import Unsupported

if TYPE_CHECKING:
    from layerstore.cli.settings import Settings

__all__ = ["serve_verb"]

_WAKE_S = 0.2


@click.group("serve", short_help="Run a service.")
def serve_verb() -> None:
    """Run a service until SIGTERM or Ctrl-C ends it; calls that are under way are finished first."""


@serve_verb.command("snapshotter", short_help="Be a snapshotter for containerd.")
@click.option(
    "--listen",
    default="unix:///run/layerstore/snapshotter.sock",
    show_default=True,
    metavar="ADDRESS",
    help="A Unix socket.",
)
@click.option("--metrics", default="", metavar="HOST:PORT", help="Where Prometheus may ask.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long calls may take that are under way at the end.",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option(
    "--ready-fd",
    type=click.IntRange(min=0),
    metavar="FD",
    help="Write a newline to this descriptor, and close it, once calls are answered.",
)
@click.pass_obj
def _snapshotter(
    settings: Settings,
    listen: str,
    metrics: str,
    grace_s: float,
    log_format: str,
    log_level: str,
    ready_fd: int | None,
) -> None:
    """Serve this store's snapshots to containerd, as a proxy plugin of type "snapshot".

    See docs/snapshotter.md for containerd's side. Under systemd, readiness is told by sd_notify(3).
    """
    try:
        from layerstore.serve.daemon import ServeOptions, snapshotter_daemon
        from layerstore.serve.logs import set_up_logs
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"{error.name} is not installed; pip install 'layerstore[containerd]'"
        ) from error
    set_up_logs("json" if log_format == "json" else "text", log_level)
    options = ServeOptions(listen, metrics, grace_s)
    manager = os.environ.pop("NOTIFY_SOCKET", "")
    with settings.open_for_writing(create=True) as store, snapshotter_daemon(store, options):
        # The kernel may give a signal to any thread, gRPC's too, and then wakes only that one; the handler that
        # raises runs here, as soon as this thread wakes. Who is told that we are ready may stop us at once.
        never = threading.Event()
        with suppress(Stopped):
            _say_ready(manager, ready_fd)
            while not never.wait(_WAKE_S):
                pass
        # A second signal ends the process as it would any: what is not acknowledged is not there.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _tell(manager, "STOPPING=1")


def _say_ready(manager: str, ready_fd: int | None) -> None:
    _tell(manager, f"READY=1\nMAINPID={os.getpid()}")
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
        os.close(ready_fd)


def _tell(manager: str, state: str) -> None:
    from layerstore.serve.listening import notify_systemd

    if manager:
        try:
            notify_systemd(manager, state)
        except OSError as error:
            print_note(f"the service manager at {manager} does not listen: {error}")

"""Run: a command in a writable root filesystem of an image, by an OCI runtime (runc or crun).

    fork > mount > config.json > runtime run … > runtime delete > umount > remove the snapshot (or keep it)

    ROOT/containers/<key>/rootfs        where the snapshot is mounted
    ROOT/containers/<key>/config.json   see `bundle`
    ROOT/containers/state               the runtime's own state

Source: OCI runtime-spec `runtime.md`; runc(8).
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore import emit
from layerstore.errors import NotFound, Unsupported
from layerstore.formats import oci
from layerstore.images.bundle import RunOptions, runtime_config
from layerstore.images.commit import fork_image
from layerstore.images.lookup import find_image
from layerstore.snapshots.mounting import mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.snapshots import Snapshots
    from layerstore.store.store import Store

__all__ = ["RUNTIMES", "RunOptions", "RunReport", "run_image"]

RUNTIMES = ("runc", "crun")
"""The programs that are looked for, in this order."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """How it ended: the snapshot's key, whether it is still there, and the exit code of the command."""

    key: str
    kept: bool
    exit_code: int


def run_image(store: Store, snapshots: Snapshots, image: str, options: RunOptions) -> RunReport:
    """Run a command in an image; returns when it has ended. Standard output and error are this process's.

    What the command changes is gone afterwards, unless `options.keep` is set.

    Raises:
        NotFound: no such image.
        InvalidArgument: nothing to run, no such user, a malformed volume or variable.
        Unsupported: no runtime is installed, or this process cannot mount.
    """
    runtime = _find_runtime()
    digest = find_image(store, image)
    with store.read() as txn:
        record = store.catalog.image(txn, digest)
    if record is None:
        raise NotFound(f"{image} was removed meanwhile")
    config = oci.parse_config(emit.read_document(store, record.config), record.config)
    key = f"run-{secrets.token_hex(6)}"
    fork_image(store, snapshots, digest, [key])
    keeps = False
    try:
        with _bundle(store, key) as bundle:
            root = bundle / "rootfs"
            with mounted(snapshots.mounts(key), root):
                document = runtime_config(config.runtime, root, options, key)
                (bundle / "config.json").write_text(json.dumps(document))
                code = _run(runtime, bundle, key, options)
        keeps = options.keep
    finally:
        if not keeps:
            snapshots.remove(key)
    return RunReport(key, keeps, code)


def _find_runtime() -> str:
    for name in RUNTIMES:
        if found := shutil.which(name):
            return found
    raise Unsupported(f"no OCI runtime here ({' or '.join(RUNTIMES)}); install one")


@contextmanager
def _bundle(store: Store, key: str) -> Iterator[Path]:
    """The folder of one container; its mount is gone before it is."""
    bundle = store.layout.root.absolute() / "containers" / key
    (bundle / "rootfs").mkdir(mode=0o700, parents=True)
    try:
        yield bundle
    finally:
        (bundle / "config.json").unlink(missing_ok=True)
        (
            bundle / "rootfs"
        ).rmdir()  # fails where something is mounted still, and never looks inside
        bundle.rmdir()


def _run(runtime: str, bundle: Path, key: str, options: RunOptions) -> int:
    base = [runtime, "--root", str(bundle.parent / "state")]
    stdin = None if options.interactive or options.terminal else subprocess.DEVNULL
    try:
        done = subprocess.run(
            [*base, "run", "--bundle", str(bundle), key], stdin=stdin, check=False
        )
    finally:
        subprocess.run([*base, "delete", "--force", key], capture_output=True, check=False)
    # A runtime that was killed by a signal ends as a shell would say it.
    return done.returncode if done.returncode >= 0 else 128 - done.returncode

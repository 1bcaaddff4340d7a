"""Other programs that take the same images, and the commands they are given.

    from gzip layers    containerd (ctr import, overlayfs), umoci unpack
    from plain tars     restic, borg, casync; cp and zstd as baselines

Where there is a choice, it is made in the peer's favour: backup programs get each unique layer tar once and in one
call, already decompressed; nobody but layerstore is asked to have its files on disk when it ends; repositories are made
before the clock starts, and caches outside of them are not counted. restic encrypts always; borg does not here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from benchmarks.corpora import Corpus

__all__ = ["GZIP", "PEERS", "PLAIN", "Inputs", "Peer", "layout_tars"]

GZIP, PLAIN = "gzip", "plain"
_READY_S = 20.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What peers read, made before: `tars` has each unique layer, `layout_tars` an OCI archive of each image."""

    corpus: Corpus
    tars: Sequence[Path]
    layout_tars: Mapping[str, Path]

    def paths(self, source: str) -> list[Path]:
        """The files that are to be warm."""
        if source == PLAIN:
            return list(self.tars)
        return [image.layout for image in self.corpus.images] + list(self.layout_tars.values())


@dataclass(frozen=True, slots=True)
class Peer:
    """A program and how it is used.

    Attributes:
        program: what must be on the PATH; `version` are the arguments that print its version.
        source: `gzip` or `plain`: what it reads, and so what it stands beside.
        commands: given the inputs and a new folder; these are timed.
        setup: commands before the clock starts.
        store: the part of the folder that is its store.
        environment: more variables; `{folder}` stands for the folder.
        needs_root: whether others cannot run it.
        has_daemon: whether containerd is to run; commands find its socket in the folder.
        is_slow: whether one round has to do.
    """

    name: str
    program: str
    version: Sequence[str]
    source: str
    commands: Callable[[Inputs, Path], list[list[str]]]
    setup: Callable[[Path], list[list[str]]] = lambda folder: []
    store: str = "store"
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_root: bool = False
    has_daemon: bool = False
    is_slow: bool = False

    def found_version(self) -> str | None:
        """The first line that the program says about itself, or None where it is not, or cannot be used."""
        if shutil.which(self.program) is None or (self.needs_root and os.geteuid() != 0):
            return None
        if self.has_daemon and shutil.which("containerd") is None:
            return None
        done = subprocess.run(
            [self.program, *self.version],
            capture_output=True,
            text=True,
            check=False,
        )
        return next(iter((done.stdout or done.stderr).splitlines()), "unknown").strip()

    def prepare(self, folder: Path) -> dict[str, str]:
        """Make its store in a new folder; returns the environment for its commands."""
        (folder / self.store).mkdir(parents=True, exist_ok=True)
        environment = {
            name: value.format(folder=folder) for name, value in self.environment.items()
        }
        for command in self.setup(folder):
            subprocess.run(
                command, check=True, capture_output=True, env={**os.environ, **environment}
            )
        return environment

    @contextmanager
    def running(self, folder: Path) -> Iterator[int | None]:
        """Its daemon while the block runs: the process ID, or None."""
        if not self.has_daemon:
            yield None
            return
        config = folder / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{folder}/store"\nstate = "{folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{folder}/sock"\n'
        )
        with (folder / "daemon.log").open("wb") as log:
            daemon = subprocess.Popen(
                ["containerd", "--config", str(config)], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + _READY_S
            ready = ["ctr", "-a", f"{folder}/sock", "version"]
            while subprocess.run(ready, capture_output=True, check=False).returncode:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "daemon.log").read_text()[-2000:])
                time.sleep(0.2)
            yield daemon.pid
        finally:
            daemon.terminate()
            daemon.wait()


def layout_tars(corpus: Corpus, folder: Path) -> dict[str, Path]:
    """Each OCI layout as one tar, which is what `ctr images import` reads."""
    folder.mkdir()
    tars = {}
    for image in corpus.images:
        tars[image.name] = folder / f"{image.name}.tar"
        with tarfile.open(tars[image.name], "w") as tar:
            for path in sorted(image.layout.iterdir()):
                tar.add(path, path.name)
    return tars


def _ctr(inputs: Inputs, folder: Path) -> list[list[str]]:
    ctr = ["ctr", "-a", f"{folder}/sock", "images", "import", "--snapshotter", "overlayfs"]
    return [
        [*ctr, "--digests=false", "--base-name", f"bench/{name}", str(path)]
        for name, path in inputs.layout_tars.items()
    ]


def _umoci(inputs: Inputs, folder: Path) -> list[list[str]]:
    return [
        [
            "umoci",
            "unpack",
            *([] if os.geteuid() == 0 else ["--rootless"]),
            "--image",
            f"{image.layout}:{_tag(image.layout)}",
            str(folder / "store" / image.name),
        ]
        for image in inputs.corpus.images
    ]


def _tag(layout: Path) -> str:
    """The one tag of a layout; the corpus gives `latest`, the synthetic images `1`."""
    index = json.loads((layout / "index.json").read_bytes())
    tag: str = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
    return tag


def _restic(inputs: Inputs, folder: Path) -> list[list[str]]:
    return [["restic", "--repo", str(folder / "store"), "backup", *map(str, inputs.tars)]]


def _borg(compression: str) -> Callable[[Inputs, Path], list[list[str]]]:
    def commands(inputs: Inputs, folder: Path) -> list[list[str]]:
        create = ["borg", "create", "--compression", compression]
        return [[*create, f"{folder}/store::layers", *map(str, inputs.tars)]]

    return commands


def _casync(inputs: Inputs, folder: Path) -> list[list[str]]:
    return [
        [
            "casync",
            "make",
            f"--store={folder}/store/castr",
            f"{folder}/store/{tar.stem}.caibx",
            str(tar),
        ]
        for tar in inputs.tars
    ]


def _cp(inputs: Inputs, folder: Path) -> list[list[str]]:
    return [["cp", "--reflink=never", *map(str, inputs.tars), str(folder / "store")]]


def _zstd(inputs: Inputs, folder: Path) -> list[list[str]]:
    zstd = ["zstd", "-3", "-T0", "--quiet", "--output-dir-flat", str(folder / "store")]
    return [[*zstd, *map(str, inputs.tars)]]


_BORG = {
    "BORG_BASE_DIR": "{folder}",
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
}
_RESTIC = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": "{folder}/cache"}


def _borg_setup(folder: Path) -> list[list[str]]:
    return [["borg", "init", "--encryption", "none", f"{folder}/store"]]


def _restic_setup(folder: Path) -> list[list[str]]:
    # Version 2 compresses; restic before 0.14 has only version 1.
    return [["restic", "--repo", f"{folder}/store", "init", "--repository-version", "2"]]


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("ctr", "ctr", ["--version"], GZIP, _ctr, needs_root=True, has_daemon=True),
        Peer("umoci", "umoci", ["--version"], GZIP, _umoci, is_slow=True),
        Peer("restic", "restic", ["version"], PLAIN, _restic, _restic_setup, environment=_RESTIC),
        Peer(
            "borg-lz4", "borg", ["--version"], PLAIN, _borg("lz4"), _borg_setup, environment=_BORG
        ),
        Peer(
            "borg-zstd",
            "borg",
            ["--version"],
            PLAIN,
            _borg("zstd,3"),
            _borg_setup,
            environment=_BORG,
        ),
        Peer("casync", "casync", ["--version"], PLAIN, _casync, is_slow=True),
        Peer("zstd", "zstd", ["--version"], PLAIN, _zstd),
        Peer("cp", "cp", ["--version"], PLAIN, _cp),
    )
}

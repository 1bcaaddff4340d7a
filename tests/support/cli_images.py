"""Small images for the command line, and ways to run it: in this process, or in one of its own for signals and pipes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstore.cli.main import main
from tests.support.archive_builders import (
    Image,
    docker_archive_of,
    image_config,
    layer_tar,
    oci_layout_of,
    sha256,
    write_folder,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

__all__ = [
    "BASE",
    "Cli",
    "app_layers",
    "noise",
    "sha256",
    "start",
    "write_archive",
    "write_layout",
]

PROJECT = Path(__file__).parents[2]


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress and do not repeat."""
    return random.Random(seed).randbytes(size)


BASE = layer_tar({"etc/os-release": b"ID=test\n", "usr/lib/base": noise(100_000)})


def app_layers(version: int) -> list[bytes]:
    """Two layers, of which the lower is the same in all versions."""
    return [BASE, layer_tar({"app/main": noise(30_000, 100 + version)})]


def write_archive(path: Path, *versions: int, **config: object) -> Path:
    """A docker-archive with an image `example/app:N` for each version (1 by default)."""
    images = [
        Image(app_layers(n), image_config(app_layers(n), **config), [f"example/app:{n}"])
        for n in versions or (1,)
    ]
    path.write_bytes(docker_archive_of(images))
    return path


def write_layout(path: Path, version: int = 1) -> Path:
    """An OCI layout folder with gzip layers, and the same tag."""
    notes = {"io.containerd.image.name": f"docker.io/example/app:{version}"}
    return write_folder(path, oci_layout_of([(Image.of(app_layers(version)), notes)], "gzip"))


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """Runs command lines on one store, in this process."""

    root: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str | Path) -> Outcome:
        self.capture.readouterr()
        code = main(["--root", str(self.root), *map(str, arguments)])
        out, err = self.capture.readouterr()
        return Outcome(code, out, err)

    def ok(self, *arguments: str | Path) -> Outcome:
        """Run what must succeed."""
        outcome = self(*arguments)
        assert outcome.code == 0, outcome
        return outcome


def start(root: Path, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own."""
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        [sys.executable, "-m", "layerstore", "--root", str(root), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )

"""A fleet of 100 environment images, as evaluations of code-writing programs use them: built without a registry.

    python -m tools.build_fleet CORPUS FOLDER [--count N]        FOLDER/oci/NAME/       an OCI layout, plain layers
                                                                 FOLDER/layers/*.tar    each layer once

CORPUS is what `tools/build-corpus.sh CORPUS python-bookworm python-trixie` makes: the two bases. Each image of
`tools/fleet.lock` gets two layers of its own on one of them, by what a Dockerfile of such a fleet would run:

    RUN python3 -m venv /opt/testbed && pip install DEPENDENCIES      every environment with its own pip and pytest
    ADD PROJECT-VERSION.tar.gz /testbed && pip install -e /testbed    the whole source tree, tests and documents too

No two of these layers have the same digest, because each is built at another time: that stands in its files, and, as
Python compiles, in every .pyc. Nothing is made more alike than it would be: the hash seed differs too, which changes
the order of sets in a .pyc. What is fixed makes the same fleet everywhere: pins, times, seeds.

Needs root (chroot), umoci, and the package index that pip is set up for; 10 GB and half an hour for all of it. An
image that is there is not built again, so a stopped build goes on where it was.

Source: pip's editable installs (PEP 660), `direct_url.json` (PEP 610).
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.image_writer import Image, Layer, read_layout, write_oci_layout, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["FleetImage", "read_lock"]

_LOCK = Path(__file__).with_name("fleet.lock")
_FIRST_S, _STEP_S = 1_735_689_600, 3_600  # 2025-01-01; an image an hour
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# What builds these projects' metadata, which pip wants before it gives a source archive away.
_BACKENDS = ("setuptools<80", "wheel", "flit-core<4", "hatchling", "setuptools-scm")


@dataclass(frozen=True, slots=True)
class FleetImage:
    """One line of the lock; `number` counts from 0 and sets the time and the seed."""

    number: int
    base: str
    python: str
    project: str
    version: str
    pins: tuple[str, ...]

    @property
    def name(self) -> str:
        """Such as `django-4.2.1-bookworm`."""
        return f"{self.project}-{self.version}-{self.base.removeprefix('python-')}"

    @property
    def time_s(self) -> int:
        """When it is built, seconds since the epoch."""
        return _FIRST_S + self.number * _STEP_S


def read_lock(text: str) -> list[FleetImage]:
    """The images of a lock, in its order."""
    images = []
    for number, line in enumerate(text.splitlines()):
        base, python, pin, _, *pins = line.split()
        project, version = pin.split("==")
        images.append(FleetImage(number, base, python, project, version, tuple(pins)))
    return images


def main(arguments: Sequence[str]) -> None:
    """Build the images that are not there."""
    parser = argparse.ArgumentParser(prog="build_fleet")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100, help="the first N of the lock (100)")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0 or shutil.which("umoci") is None:
        parser.error("it needs root, for chroot, and umoci")
    images = read_lock(_LOCK.read_text())[: options.count]
    folder = options.folder.resolve()
    missing = [image for image in images if not (folder / "oci" / image.name).is_dir()]
    for name in ("layers", "oci", "work/sources"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    fetcher = _Fetcher(folder / "work")
    by_base: dict[str, list[FleetImage]] = {}
    for image in missing:
        by_base.setdefault(image.base, []).append(image)
    with ThreadPoolExecutor() as pool:  # a base has one root, so its images are built one by one
        builders = [
            _Builder(folder, base, options.corpus / "oci" / base, fetcher) for base in by_base
        ]
        list(pool.map(lambda builder: builder.build_all(by_base[builder.base]), builders))


class _Fetcher:
    """Wheels and source archives from the package index, each once."""

    def __init__(self, work: Path) -> None:
        self._sources = work / "sources"
        self._pip = work / "tools/bin/pip"
        if not self._pip.exists():
            subprocess.run([sys.executable, "-m", "venv", self._pip.parent.parent], check=True)
            subprocess.run([self._pip, "install", "--quiet", *_BACKENDS], check=True)

    def wheels(self, image: FleetImage, target: Path) -> None:
        """Have the wheels of all its pins in a folder."""
        there = {tuple(path.name.split("-")[:2]) for path in target.glob("*.whl")}
        missing = [pin for pin in image.pins if _wheel_key(pin) not in there]
        if missing:
            platforms = [f"--platform={name}" for name in _PLATFORMS]
            versions = [f"--python-version={image.python}", "--only-binary=:all:"]
            self._download(target, [*platforms, *versions, *missing])

    def source(self, image: FleetImage) -> Path:
        """The source archive of its project."""
        pattern = f"{image.project}-{image.version}.tar.gz"
        if not (found := _find(self._sources, pattern)):
            pin = f"{image.project}=={image.version}"
            self._download(self._sources, ["--no-binary=:all:", "--no-build-isolation", pin])
            found = _find(self._sources, pattern)
        return found[0]

    def _download(self, target: Path, rest: Sequence[str]) -> None:
        target.mkdir(parents=True, exist_ok=True)
        command = [str(self._pip), "download", "--quiet", "--no-deps", f"--dest={target}", *rest]
        subprocess.run(command, check=True)


class _Builder:
    """Builds the images of one base in its unpacked root."""

    def __init__(self, folder: Path, base: str, layout: Path, fetcher: _Fetcher) -> None:
        self.base = base
        self._folder, self._fetcher = folder, fetcher
        self._bundle = folder / "work" / base
        self._root = self._bundle / "rootfs"
        self._layers = [self._base_layer(blob, diff_id) for blob, diff_id in read_layout(layout)]
        if not self._root.is_dir():
            shutil.rmtree(self._bundle, ignore_errors=True)  # what a stopped umoci left
            subprocess.run(
                ["umoci", "unpack", "--image", f"{layout}:latest", str(self._bundle)], check=True
            )

    def build_all(self, images: Iterable[FleetImage]) -> None:
        """Build images one by one; each appears when it is whole."""
        for image in images:
            layers = [*self._layers, self._environment(image), self._source(image)]
            self._clear()
            command = ["/opt/testbed/bin/python"]
            made = Image(f"fleet/{image.project}:{image.version}-{image.base.removeprefix('python-')}",
                         layers, command, image.time_s)  # fmt: skip
            partial = self._folder / "work" / image.name
            shutil.rmtree(partial, ignore_errors=True)
            write_oci_layout(partial, made, platform.machine(), "none")
            partial.rename(self._folder / "oci" / image.name)
            print(f"{image.number + 1:4} {image.name}", flush=True)

    def _environment(self, image: FleetImage) -> Layer:
        """The layer of the virtual environment."""
        self._clear()
        self._fetcher.wheels(image, self._root / "run/fleet")
        self._run(image, "python3", "-m", "venv", "--without-pip", "/opt/testbed")
        pip = ["/opt/venv/bin/python", "-m", "pip", "--python", "/opt/testbed/bin/python"]
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--find-links=/run/fleet"]
        self._run(image, *pip, "install", *options, "--root-user-action=ignore", *image.pins)
        return self._layer(image, ("opt/testbed",), f"RUN pip install {' '.join(image.pins)}")

    def _source(self, image: FleetImage) -> Layer:
        """The layer of the source tree and of what an editable install leaves in the environment."""
        testbed = self._root / "testbed"
        with tarfile.open(self._fetcher.source(image)) as archive:
            archive.extractall(self._root / "unpacked", filter="data")
        (top,) = (self._root / "unpacked").iterdir()
        top.rename(testbed)
        packages = f"opt/testbed/lib/python{image.python}/site-packages"
        files = {
            f"{packages}/__editable__.{image.project}-{image.version}.pth": (
                "/testbed/src\n" if (testbed / "src").is_dir() else "/testbed\n"
            ),
            f"{packages}/{image.project}-{image.version}.dist-info/METADATA": (
                (testbed / "PKG-INFO").read_text()
            ),
            f"{packages}/{image.project}-{image.version}.dist-info/INSTALLER": "pip\n",
            f"{packages}/{image.project}-{image.version}.dist-info/direct_url.json": (
                '{"dir_info": {"editable": true}, "url": "file:///testbed"}'
            ),
        }
        for path, text in files.items():
            (self._root / path).parent.mkdir(exist_ok=True)
            (self._root / path).write_text(text)
        return self._layer(
            image, ("testbed", *files), f"ADD {image.project}-{image.version} /testbed"
        )

    def _layer(self, image: FleetImage, paths: Sequence[str], created_by: str) -> Layer:
        """Give files the image's time, compile them as they are then, and write them down."""
        roots = [self._root / path for path in paths]
        for root in roots:
            for path in [root, *root.rglob("*")]:
                os.utime(path, (image.time_s, image.time_s), follow_symlinks=False)
        # Not checked: the tests of some projects have files that no Python can compile.
        compileall = ["/usr/bin/python3", "-m", "compileall", "-qq", "-f", f"/{paths[0]}"]
        self._run(image, *compileall, check=False)
        partial = self._folder / "work" / f"{image.name}.tar"
        return _keep(write_tree(partial, self._root, paths, image.time_s, created_by),
                     self._folder / "layers")  # fmt: skip

    def _base_layer(self, blob: Path, diff_id: str) -> Layer:
        """A layer of the base, out of its gzip blob."""
        target = self._folder / "layers" / f"{diff_id[7:]}.tar"
        if not target.exists():
            partial = target.with_suffix(".partial")
            with gzip.open(blob) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            partial.rename(target)
        return Layer(target, diff_id, "base")

    def _clear(self) -> None:
        for name in ("opt/testbed", "testbed", "unpacked"):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def _run(self, image: FleetImage, *command: str, check: bool = True) -> None:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/bin",
            "PYTHONHASHSEED": str(image.number),
            "HOME": "/nonexistent",
        }
        subprocess.run(["chroot", str(self._root), *command], env=environment, check=check)


def _keep(layer: Layer, folder: Path) -> Layer:
    """Put a layer where its digest says, so that each is there once."""
    target = folder / f"{layer.diff_id[7:]}.tar"
    layer.tar.rename(target)
    return Layer(target, layer.diff_id, layer.created_by)


def _wheel_key(pin: str) -> tuple[str, ...]:
    name, version = pin.split("==")
    return name.replace("-", "_").replace(".", "_"), version


def _find(folder: Path, name: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.lower() == name]


if __name__ == "__main__":
    main(sys.argv[1:])

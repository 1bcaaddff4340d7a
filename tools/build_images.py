"""Three related images from what every machine with Python has: the demo's input.

    demo/python:1   this machine's Python: interpreter and standard library            docker-archive
    demo/site:1     the same base, Django 5.1.1 and a page                             OCI layout, gzip
    demo/site:2     the base built again a month later, Django 5.1.4, the page again   OCI layout, gzip

A base that is built again has the same files with other times, and one of them changed: no layer of `site:2` has the
digest of one of `site:1`, though nearly all of its bytes are the same. The wheels come from the package index that pip
is set up for; without one, packages of this environment take their place.

    python -m tools.build_images FOLDER
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools.image_writer import (
    Image,
    LayerFile,
    write_docker_archive,
    write_layer,
    write_oci_layout,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["build_images", "python_files"]

_WHEELS = {
    1: ("django==5.1.1", "asgiref==3.8.1", "sqlparse==0.5.1"),
    2: ("django==5.1.4", "asgiref==3.8.1", "sqlparse==0.5.1"),
}
_INSTEAD = ("click", "numpy", "rich")
_TIMES = {1: 1_735_689_600, 2: 1_738_368_000}  # 2025-01-01 and 2025-02-01, seconds since the epoch
_LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
}
_PAGE = b"from django.http import HttpResponse\n\n\ndef page(request):\n    return HttpResponse('demo')\n"


def build_images(folder: Path) -> list[Path]:
    """Make the three images in a new folder; returns what `layerstore load` takes."""
    work = folder / "layers"
    work.mkdir(parents=True)
    packages = {1: _wheel_files(folder, _WHEELS[1]), 2: _wheel_files(folder, _WHEELS[2])}
    if not (packages[1] and packages[2]):
        print("  no package index: packages of this environment instead of Django", file=sys.stderr)
        packages = {1: list(_installed_files()), 2: list(_installed_files())}
    base = list(python_files())
    machine = platform.machine()
    paths = []
    for number, mtime in _TIMES.items():
        release = LayerFile("etc/demo-release", b"BUILD=%d\n" % number)
        page = LayerFile("srv/app/page.py", _PAGE)
        runtime = write_layer(work / f"base{number}.tar", [*base, release], mtime, "ADD python /")
        layers = (
            runtime,
            write_layer(work / f"packages{number}.tar", packages[number], mtime, "RUN pip install"),
            write_layer(work / f"page{number}.tar", [page], mtime, "COPY page.py /srv/app/"),
        )
        if number == 1:
            paths.append(folder / "python-1.tar")
            image = Image("demo/python:1", layers[:1], ["python3"], mtime)
            write_docker_archive(paths[-1], image, machine)
        paths.append(folder / f"site-{number}")
        image = Image(f"demo/site:{number}", layers, ["python3", "page.py"], mtime)
        write_oci_layout(paths[-1], image, machine)
    return paths


def python_files() -> Iterator[LayerFile]:
    """This machine's interpreter and standard library, without tests and caches."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    inside = f"usr/local/lib/{stdlib.name}"
    for path in _regular_files(stdlib):
        parts = path.relative_to(stdlib).parts
        if not (_LEFT_OUT & set(parts) or parts[0].startswith("config-")):
            mode = 0o755 if path.suffix == ".so" else 0o644
            yield LayerFile("/".join((inside, *parts)), path, mode)
    yield LayerFile(f"usr/local/bin/{stdlib.name}", Path(sys.executable).resolve(), 0o755)


def _wheel_files(folder: Path, requirements: Sequence[str]) -> list[LayerFile]:
    """What wheels put into site-packages; nothing when they cannot be had."""
    wheels = folder / "wheels" / requirements[0]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    options = ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(wheels)]
    done = subprocess.run([*download, *options, *requirements], capture_output=True, check=False)
    if done.returncode:
        return []
    files = []
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            files += [
                LayerFile(_site_packages(name), archive.read(name))
                for name in archive.namelist()
                if not name.endswith("/")
            ]
    return files


def _installed_files() -> Iterator[LayerFile]:
    for name in _INSTEAD:
        for file in importlib.metadata.files(name) or []:
            path = Path(str(file.locate()))
            if path.is_file() and ".." not in file.parts and path.suffix != ".pyc":
                yield LayerFile(_site_packages(str(file)), path)


def _site_packages(name: str) -> str:
    return f"usr/local/lib/{Path(sysconfig.get_path('stdlib')).name}/site-packages/{name}"


def _regular_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in _LEFT_OUT:
                yield from _regular_files(path)
        elif path.is_file():
            yield path


if __name__ == "__main__":
    for made in build_images(Path(sys.argv[1])):
        print(made)

"""Ways to see an image's root filesystem: our drivers, and what others have.

    layerstore   erofs, objects, fuse, checkout, all of one store
    ext4         the files unpacked into a folder of the disk that is measured (whatever filesystem that has)
    overlayfs    containerd's snapshots of the same layers, on the same disk
    squashfs     one image file, zstd 3, blocks of 128 KiB (the default), by a loop device
    mkfs.erofs   one image file, zstd 3 where mkfs.erofs has it (1.8 or later), clusters of 64 KiB, by a loop device

Each is shown afresh for every measurement, so that a cold one is cold: a FUSE server keeps nothing, nor does a loop
device. Whoever is not installed is absent and named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.corpora import CorpusImage
    from layerstore.api import LayerStore

__all__ = [
    "BASELINE",
    "DRIVERS",
    "Containerd",
    "Filesystem",
    "drop_caches",
    "filesystem_of",
    "image_filesystems",
]

BASELINE = "ext4"
DRIVERS = ("erofs", "objects", "fuse", "checkout")
_LEVEL = 3
_CLUSTER = 65536


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A way to see an image. `show` gives its folder while the block runs; `note` says how it was made."""

    name: str
    show: Callable[[], AbstractContextManager[Path]]
    note: str = ""


def drop_caches() -> None:
    """Forget what the kernel has cached of all disks: pages, names and inodes; not what is yet to be written."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def filesystem_of(path: Path) -> str:
    """The kind of filesystem that a path is on."""
    command = ["stat", "--file-system", "--format=%T", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def image_filesystems(
    store: LayerStore, reference: str, image: CorpusImage, folder: Path, names: Sequence[str]
) -> Iterator[tuple[list[Filesystem], dict[str, str]]]:
    """Make an image ready in each of these ways; gives them, and why some are absent."""
    places = folder / "shown"
    places.mkdir()
    made, absent = [], dict[str, str]()
    plain = folder / "plain"
    with ExitStack() as stack:
        for name in names:
            place = places / name
            place.mkdir()
            if name in DRIVERS:
                made.append(Filesystem(name, _driver(store, reference, place, name)))
                continue
            try:
                if name == "overlayfs":
                    containerd = stack.enter_context(Containerd.running(folder / "containerd"))
                    found = containerd.load(image)
                    made.append(Filesystem(name, partial(containerd.show, found, place)))
                    continue
                if not plain.exists():
                    _unpack(store, reference, plain)
                made.append(_plain(plain) if name == BASELINE else _packed(name, plain, place))
            except (FileNotFoundError, RuntimeError) as error:
                absent[name] = str(error)
        os.sync()
        yield made, absent


@dataclass(frozen=True, slots=True)
class Containerd:
    """A containerd of our own, with overlayfs snapshots in `folder`."""

    folder: Path

    @staticmethod
    @contextmanager
    def running(folder: Path) -> Iterator[Containerd]:
        """Start one for the block. Raises: FileNotFoundError: it is not installed."""
        if shutil.which("containerd") is None or shutil.which("ctr") is None:
            raise FileNotFoundError("containerd is not installed")
        folder.mkdir()
        with PEERS["ctr"].running(folder):
            yield Containerd(folder)

    def ctr(self, *words: str) -> str:
        """Run `ctr`; returns what it prints. Raises: RuntimeError: it failed."""
        return _run(["ctr", "-a", f"{self.folder}/c.sock", *words])

    def load(self, image: CorpusImage, *, unpack: bool = True) -> str:
        """Import an image from its OCI layout; returns its name there."""
        archive = self.folder / f"{image.name}.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(image.layout.iterdir()):
                tar.add(path, path.name)
        before = set(self.ctr("images", "ls", "-q").split())
        options = ["--snapshotter", "overlayfs", "--base-name", f"bench/{image.name}"]
        self.ctr("images", "import", *options, *([] if unpack else ["--no-unpack"]), str(archive))
        archive.unlink()
        return (set(self.ctr("images", "ls", "-q").split()) - before).pop()

    @contextmanager
    def show(self, name: str, place: Path, *, rw: bool = False) -> Iterator[Path]:
        """Mount an image's snapshot; unpacks it first, if it is not."""
        options = ["--snapshotter", "overlayfs", *(["--rw"] if rw else [])]
        self.ctr("images", "mount", *options, name, str(place))
        try:
            yield place
        finally:
            self.ctr("images", "unmount", "--rm", "--snapshotter", "overlayfs", str(place))


def _driver(
    store: LayerStore, reference: str, place: Path, driver: str
) -> Callable[[], AbstractContextManager[Path]]:
    if driver == "checkout":
        store.mount(reference, place, driver=driver)
        return lambda: _same(place)

    @contextmanager
    def show() -> Iterator[Path]:
        with store.mount(reference, place, driver=driver):
            yield place

    return show


def _unpack(store: LayerStore, reference: str, plain: Path) -> None:
    """Write the files of an image, with GNU tar."""
    plain.mkdir()
    command = ["tar", "--extract", "--xattrs", "--directory", str(plain), "--file", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as tar:
        assert tar.stdin is not None, "it was asked for"
        for block in store.export(reference):
            tar.stdin.write(block)
    if tar.returncode:
        raise RuntimeError(f"tar: {tar.returncode}")


def _plain(plain: Path) -> Filesystem:
    return Filesystem(BASELINE, lambda: _same(plain), f"plain files on {filesystem_of(plain)}")


def _packed(name: str, plain: Path, place: Path) -> Filesystem:
    """One image file that the kernel mounts by a loop device."""
    file = place.with_suffix(".img")
    if name == "squashfs":
        options = ["-comp", "zstd", "-Xcompression-level", str(_LEVEL), "-no-progress", "-quiet"]
        _run(["mksquashfs", str(plain), str(file), *options])
        return Filesystem(name, lambda: _loop("squashfs", file, place), f"zstd {_LEVEL}, 128 KiB")
    try:
        codec = f"zstd,level={_LEVEL}"
        _run(["mkfs.erofs", f"-z{codec}", f"-C{_CLUSTER}", "--quiet", str(file), str(plain)])
    except RuntimeError:
        codec = "lz4hc"
        _run(["mkfs.erofs", f"-z{codec}", f"-C{_CLUSTER}", "--quiet", str(file), str(plain)])
    note = f"{codec}, clusters of {_CLUSTER >> 10} KiB"
    return Filesystem(name, lambda: _loop("erofs", file, place), note)


@contextmanager
def _same(folder: Path) -> Iterator[Path]:
    yield folder


@contextmanager
def _loop(kind: str, file: Path, place: Path) -> Iterator[Path]:
    _run(["mount", "-t", kind, "-o", "loop,ro", str(file), str(place)])
    try:
        yield place
    finally:
        _run(["umount", str(place)])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[:4])}: {(done.stderr or done.stdout).strip()[-500:]}"
        )
    return done.stdout

"""How much memory do images take that are read at the same time, beside overlayfs over a folder for each layer?

Unit: bytes of resident pages (mincore) of all files behind the mounts, once each, after every file of every container was
read, one container after another. Baselines: the different contents that were read (each once, by BLAKE3 and in whole
pages), and overlayfs as containerd and Docker use it: a folder for each chain of layers, shared by images that begin with
the same layers.

    rebased     py-numpy-a, then its own two layers on python-bookworm-upd
    rebuilt     python-bookworm, then python-bookworm-upd
    containers  ten writable containers of five images, two of each

    python -m benchmarks.bench_memory --corpus FOLDER [--only rebased,rebuilt,containers] [--work DIR] [--json FILE]

Needs root, and memory for all of it. Prints a table; --json FILE gets one JSON object a line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import stat
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.corpora import open_corpus
from benchmarks.measure import commit, machine
from layerstore import kernels
from layerstore.api import open_store
from layerstore.mount.mounter import MountOptions, mount_stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from layerstore.api import LayerStore
    from layerstore.digest import DiffID

__all__: list[str] = []

_PROJECT = Path(__file__).resolve().parent.parent
_OWN_LAYERS = 2  # of py-numpy-a, above its base
_FIVE = ("python-bookworm", "py-flask", "py-numpy-a", "nginx", "py-flask-rebuilt")
_CASES = ("rebased", "rebuilt", "containers")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

_Stack = tuple["DiffID", ...]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parse(arguments)
    records = []
    with tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=options.work) as name:
        folder = Path(name)
        with open_store(folder / "store") as store:
            for case in options.only:
                stacks = _stacks(store, options.corpus, case)
                layerstore = _Layerstore(store, rw=case == "containers")
                overlayfs = _Overlayfs(store, folder / "chains", rw=case == "containers")
                for who in (layerstore, overlayfs):
                    records.append(_measure(case, who, stacks, folder))
                    print(json.dumps(records[-1]), file=sys.stderr)
    context = {"commit": commit(_PROJECT), "machine": machine()}
    print(
        "| MB | there before the last one is read | held in the end | different contents | held, x different |"
    )
    print("|---|---:|---:|---:|---:|")
    for one in records:
        figures = [one[key] / 1e6 for key in ("before", "held", "different")]
        print(
            f"| {one['case']}, {one['who']} | {' | '.join(f'{mb:.0f}' for mb in figures)} | {one['x']:.2f} |"
        )
    if options.json:
        options.json.write_text("".join(json.dumps({**one, **context}) + "\n" for one in records))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_memory", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = os.environ.get("LAYERSTORE_CORPUS")
    parser.add_argument(
        "--corpus", type=Path, required=default is None, default=default and Path(default)
    )
    parser.add_argument("--only", default=",".join(_CASES), help=f"some of {','.join(_CASES)}")
    parser.add_argument("--work", type=Path, help="where all files go")
    parser.add_argument("--json", type=Path, help="one line for each result")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(_CASES):
        parser.error(f"no such cases: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("mounting needs root")
    return options


def _stacks(store: LayerStore, corpus: Path, case: str) -> list[_Stack]:
    """The layers of the containers, in the order in which they are read."""

    def layers(name: str) -> _Stack:
        image = next(one for one in open_corpus(corpus).images if one.name == name)
        loaded = store.load(image.archive or image.layout).images[0]
        return tuple(layer.diff_id for layer in loaded.layers)

    match case:
        case "rebased":
            first = layers("py-numpy-a")
            return [first, (*layers("python-bookworm-upd"), *first[-_OWN_LAYERS:])]
        case "rebuilt":
            return [layers("python-bookworm"), layers("python-bookworm-upd")]
        case _:
            return [layers(name) for name in _FIVE for _ in range(2)]


class _Layerstore:
    """The driver `erofs`."""

    name = "layerstore"

    def __init__(self, store: LayerStore, *, rw: bool) -> None:
        self._store, self._options = store, MountOptions(rw=rw, driver="erofs")
        self._root = store.store.layout.root

    def show(self, stack: _Stack, place: Path) -> AbstractContextManager[object]:
        return mount_stack(self._store.store, stack, place, self._options)

    def behind(self) -> Iterator[Path]:
        """All files whose pages may hold what was read."""
        yield self._root / "chunks"
        yield from (self._root / "images").iterdir()
        for mount in (self._root / "run/data").iterdir():
            yield from mount.rglob("*")


class _Overlayfs:
    """A folder for each chain of layers, and an overlay of those of a container."""

    name = "overlayfs"

    def __init__(self, store: LayerStore, folder: Path, *, rw: bool) -> None:
        self._store, self._folder, self._rw = store, folder, rw
        self._uppers = 0
        folder.mkdir(exist_ok=True)

    @contextmanager
    def show(self, stack: _Stack, place: Path) -> Iterator[object]:
        lower = [self._unpacked(stack[: depth + 1]) for depth in range(len(stack))]
        options = "lowerdir=" + ":".join(map(str, reversed(lower)))
        if self._rw:
            self._uppers += 1
            upper = self._folder / f"upper-{self._uppers}"
            for name in ("fs", "work"):
                (upper / name).mkdir(parents=True)
            options += f",upperdir={upper}/fs,workdir={upper}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", place], check=True)
        try:
            yield None
        finally:
            subprocess.run(["umount", place], check=True)

    def behind(self) -> Iterator[Path]:
        """As above."""
        return self._folder.rglob("*")

    def _unpacked(self, chain: _Stack) -> Path:
        """The folder of a chain's top layer. Whiteouts stay names: what they hide is a few files of these images."""
        folder = self._folder / kernels.blake3("".join(chain).encode()).hex()[:16]
        if not folder.exists():
            folder.mkdir()
            command = ["tar", "--extract", "--file", "-", "--directory", str(folder)]
            with subprocess.Popen([*command, "--exclude=dev/*"], stdin=subprocess.PIPE) as tar:
                assert tar.stdin is not None, "it was asked for"
                for block in self._store.iter_layer(chain[-1]):
                    tar.stdin.write(block)
            if tar.returncode:
                raise RuntimeError(f"tar: {tar.returncode}")
            subprocess.run(["sync", "--file-system", folder], check=True)
        return folder


def _measure(
    case: str, who: _Layerstore | _Overlayfs, stacks: list[_Stack], folder: Path
) -> dict[str, Any]:
    different: dict[bytes, int] = {}
    with ExitStack() as mounts:
        places = []
        for number, layers in enumerate(stacks):
            place = folder / f"mnt-{number}"
            place.mkdir(exist_ok=True)
            mounts.enter_context(who.show(layers, place))
            places.append(place)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        for place in places[:-1]:
            _read_all(place, different)
        before = _resident(places[-1].rglob("*"))
        _read_all(places[-1], different)
        held = _resident(who.behind())
    total = sum(different.values())
    if held < total:
        raise SystemExit("pages were dropped before they were counted; run nothing beside this")
    return {
        "bench": "memory", "case": case, "who": who.name, "before": before, "held": held,
        "different": total, "x": round(held / total, 3),
    }  # fmt: skip


def _read_all(root: Path, different: dict[bytes, int]) -> None:
    """Read every file, and note its content and the bytes of its pages."""
    for path in _regular(root.rglob("*")):
        data = path.read_bytes()
        different[kernels.blake3(data)] = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE


def _regular(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among them that have bytes, each inode once."""
    seen = set[tuple[int, int]]()
    for path in paths:
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size:
            if (status.st_dev, status.st_ino) not in seen:
                yield path
            seen.add((status.st_dev, status.st_ino))


def _resident(paths: Iterable[Path]) -> int:
    return sum(map(_resident_bytes, _regular(paths)))


def _resident_bytes(path: Path) -> int:
    """The bytes of a file's pages that are in memory."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if _libc.mincore(address, size, pages):
            raise OSError(ctypes.get_errno(), "mincore")
        _libc.munmap(address, size)
    finally:
        os.close(fd)
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

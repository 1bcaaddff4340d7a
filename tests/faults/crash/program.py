"""What is recorded: `python -m tests.faults.crash.program OPERATION ROOT ARCHIVES BUG [CHAIN]`.

Several chains are processes of their own. Each acknowledged step is marked in the recorder's log. BUG is `none`, or one
that is planted, to see that the exploration finds it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstore.digest import digest_of
from layerstore.images.load import _Loader
from layerstore.store import files
from tests.faults.crash.operations import OPERATIONS, run_chain

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BUGS"]


def main() -> None:
    name, root, archives, bug = sys.argv[1:5]
    operation = OPERATIONS[name]
    if len(operation.chains) > 1 and len(sys.argv) == 5:
        words = [sys.executable, "-m", "tests.faults.crash.program", *sys.argv[1:]]
        children = [
            subprocess.Popen([*words, str(chain)]) for chain in range(len(operation.chains))
        ]
        sys.exit(max(child.wait() for child in children))
    chain = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    BUGS[bug]()
    mark = ctypes.CDLL(None).layerstore_mark

    def told(number: int) -> None:
        mark(f"{chain}:{number}".encode())

    run_chain(operation.chains[chain], Path(root), Path(archives), told)


def _no_bug() -> None:
    pass


def _no_fdatasync() -> None:
    """Chunks are written and never synced."""
    files.fdatasync = lambda fd: None


def _name_before_data() -> None:
    """An image's name is committed before anything that it names."""
    real: Callable[..., Any] = _Loader.load_docker

    def load(self: Any, archive: Any, image: Any, names: Any) -> Any:
        with self.store.write() as txn:
            for name in names:
                self.store.catalog.put_ref(txn, name, digest_of(b"what will come"))
        return real(self, archive, image, names)

    _Loader.load_docker = load  # type: ignore[method-assign]


def _no_directory_sync() -> None:
    """A file is renamed into place, and its directory not synced."""

    def replace_file(path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    files.replace_file = replace_file


BUGS: dict[str, Callable[[], None]] = {
    "none": _no_bug,
    "no fdatasync": _no_fdatasync,
    "name before data": _name_before_data,
    "no directory sync": _no_directory_sync,
}

if __name__ == "__main__":
    main()

"""Makes a golden store: what this version of layerstore writes, for all later ones to open, read, verify and extend.

    python -m tests.data.golden.make tests/data/golden/store-1

store-1.tar.zst is the store (GNU tar, sparse, zstd), store-1.json says what is in it. They are made once for each version
of the format, and never again: a file that is made anew proves nothing about stores that are out there.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from layerstore.api import open_store
from layerstore.digest import digest_of
from layerstore.images.load import BlobPolicy
from layerstore.snapshots import Snapshots
from layerstore.snapshots.plainfiles import PlainLowers
from tests.support.archive_builders import (
    Image,
    docker_archive_of,
    image_config,
    layer_tar,
    oci_layout,
    write_folder,
)
from tests.support.stores import payload


def _rich_layer() -> bytes:
    """A layer with an entry of each kind that a tar of a layer may have."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, fields in (
            ("opt", tarfile.DIRTYPE, {"mode": 0o755}),
            ("opt/link", tarfile.SYMTYPE, {"linkname": "../etc/a.conf"}),
            ("opt/fifo", tarfile.FIFOTYPE, {"mode": 0o600}),
            ("opt/null", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
            (".wh.gone", tarfile.REGTYPE, {}),
            ("opt/.wh..wh..opq", tarfile.REGTYPE, {}),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, 1_700_000_000
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info)
        for name, data in (("opt/module.pyc", payload(3, 30_000)), ("opt/zeros", bytes(70_000))):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid = len(data), 1_700_000_001, 1000
            info.pax_headers = {"SCHILY.xattr.user.note": "golden", "mtime": "1700000001.25"}
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("opt/hard")
        info.type, info.linkname = tarfile.LNKTYPE, "opt/module.pyc"
        tar.addfile(info)
    return out.getvalue()


def _make(root: Path, scratch: Path) -> dict[str, object]:
    base = layer_tar(
        {"etc/a.conf": b"a = 1\n", "usr/lib/big.so": payload(1, 150_000), "gone": b"x"}
    )
    first, second = (
        Image.of([base, _rich_layer()], "golden/app:1"),
        Image.of([base], "golden/base:1", "golden/base:2"),
    )
    archive = scratch / "images.tar"
    archive.write_bytes(docker_archive_of([first, second]))
    layout = scratch / "layout"
    kept = layer_tar({"srv/kept": payload(4, 20_000)})
    write_folder(layout, oci_layout([base, kept], image_config([base, kept]), "gzip"))
    with open_store(root) as store:
        images = [*store.load(archive).images]
        images += store.load(layout, blobs=BlobPolicy.DEFER, name="golden/kept:1").images
        snapshots = Snapshots(store.store, PlainLowers(store.store))
        snapshots.prepare("work")
        (root / "snapshots" / "snap-1" / "fs" / "note").write_bytes(b"committed")
        committed = snapshots.commit("done", "work", {"label": "kept"})
        snapshots.prepare("active")
        (root / "snapshots" / "snap-2" / "fs" / "note").write_bytes(b"active")
        blobs = json.loads((layout / "index.json").read_text())["manifests"]
        with store.store.read() as txn:
            layers = sorted(diff_id for diff_id, _ in store.store.catalog.layers(txn))
        assert committed.labels == {"label": "kept"}
        return {
            "made_by": f"layerstore {version('layerstore')}",
            "layers": layers,
            "images": {name: image.id for image in images for name in image.names},
            "kept_manifest": blobs[0]["digest"],
            "shared_layer": digest_of(base),
            "snapshots": {"done": "committed", "active": "active"},
        }


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        facts = _make(root, Path(folder))
        (root / "meta" / "lock.mdb").unlink()
        packed = (
            f"tar --sparse --owner=0 --group=0 -C {root} -c . | zstd -19 -q -f -o {target}.tar.zst"
        )
        subprocess.run(["bash", "-o", "pipefail", "-c", packed], check=True)
    target.with_suffix(".json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

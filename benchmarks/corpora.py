"""The images that are measured: a folder of real ones, or a few made here.

    FOLDER/docker-archive/NAME.tar    plain layers, as `docker save` writes them
    FOLDER/oci/NAME/                  the same image as an OCI layout, gzip layers
    FOLDER/oci/NAME-zstd/             the same with zstd layers; for some of them

Such a folder comes from `tools/build-corpus.sh`. A fleet (`tools/build_fleet.py`) has no archives, but FOLDER/layers/,
where each layer is once, as a plain tar that is named by its digest. Without a folder, `write_synthetic` makes four images of about 20 MB from
the files of the Python that runs this: always the same on the same machine, and done in seconds.

    python -m benchmarks.corpora FOLDER    make the synthetic images
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from tools.image_writer import LayerFile

__all__ = [
    "Corpus",
    "CorpusImage",
    "CorpusLayer",
    "add_image_options",
    "chosen_image",
    "extract_layers",
    "open_corpus",
    "write_synthetic",
]

_SEED = 20
_BASE_BYTES, _PACKAGE_BYTES, _NOISE_BYTES = 11 << 20, 7 << 20, 1 << 20
_COPY_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class CorpusLayer:
    """One layer in both forms: `tar_size` bytes at `offset` of `archive`, and the gzip file `blob`.

    The offset is 0 where the file is the tar itself.
    """

    diff_id: str
    archive: Path
    offset: int
    tar_size: int
    blob: Path
    blob_size: int


@dataclass(frozen=True, slots=True)
class CorpusImage:
    """One image: an OCI layout folder, maybe a docker-archive and the same layout with zstd.

    `image_id` is the digest of its config, as Docker names images.
    """

    name: str
    image_id: str
    archive: Path | None
    layout: Path
    zstd_layout: Path | None
    layers: tuple[CorpusLayer, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Images in the order of their names. Sizes are bytes."""

    name: str
    images: tuple[CorpusImage, ...]

    def unique_layers(self) -> list[CorpusLayer]:
        """Each layer tar once, in the order in which the images bring them."""
        layers: dict[str, CorpusLayer] = {}
        for image in self.images:
            for layer in image.layers:
                layers.setdefault(layer.diff_id, layer)
        return list(layers.values())

    def tar_bytes(self) -> int:
        """Of all layer tars, each once."""
        return sum(layer.tar_size for layer in self.unique_layers())

    def gzip_bytes(self) -> int:
        """Of all gzip layer blobs, each once."""
        blobs = {
            layer.blob.name: layer.blob_size for image in self.images for layer in image.layers
        }
        return sum(blobs.values())

    def unpacked_bytes(self) -> int:
        """What overlay2 keeps: each layer once as files on a file system with 4 KiB blocks."""
        return sum(_unpacked(layer) for layer in self.unique_layers())


def open_corpus(folder: Path) -> Corpus:
    """Read what images a folder has.

    Raises: OSError, ValueError: it is not such a folder.
    """
    layouts = [path.parent for path in sorted((folder / "oci").glob("*/index.json"))]
    images = [
        _open_image(folder, layout) for layout in layouts if not layout.name.endswith("-zstd")
    ]
    if not images:
        raise ValueError(f"{folder} has no oci/NAME: see tools/build-corpus.sh")
    return Corpus(folder.name, tuple(images))


def extract_layers(corpus: Corpus, folder: Path) -> dict[str, Path]:
    """Have each layer's tar as a file of its own, for programs that back up files; by diff ID."""
    folder.mkdir()
    paths = {}
    for layer in corpus.unique_layers():
        if layer.offset == 0:
            paths[layer.diff_id] = layer.archive
            continue
        path = paths[layer.diff_id] = folder / f"{layer.diff_id[7:19]}.tar"
        with layer.archive.open("rb") as source, path.open("wb") as target:
            source.seek(layer.offset)
            left = layer.tar_size
            while left:
                block = source.read(min(left, _COPY_BLOCK))
                target.write(block)
                left -= len(block)
    return paths


def write_synthetic(folder: Path) -> None:
    """Make a corpus from this Python's files: two applications, each also on a base that was built again."""
    # Not at the top: who only measures shall stay small while it has children (see measure.py).
    from tools import image_writer
    from tools.build_images import python_files

    (folder / "docker-archive").mkdir(parents=True)
    (folder / "oci").mkdir()
    work = folder / "layers"
    work.mkdir()
    choice = random.Random(_SEED)
    files = list(python_files())
    choice.shuffle(files)
    noise = image_writer.LayerFile("var/lib/noise", choice.randbytes(_NOISE_BYTES))
    base, rest = _take(files, _BASE_BYTES)
    old, new = [noise, *base], [noise, *_drifted(base, choice)]
    package, _ = _take(rest, _PACKAGE_BYTES)
    times = (1_735_689_600, 1_738_368_000)
    layers = {
        name: image_writer.write_layer(work / f"{name}.tar", content, mtime, f"COPY {name} /")
        for name, content, mtime in (
            ("base", old, times[0]),
            ("base-rebuilt", new, times[1]),
            ("app-a", package, times[0]),
            ("app-b", _drifted(package, choice), times[0]),
        )
    }
    for name, parts in {
        "synthetic-a": ("base", "app-a"),
        "synthetic-a-rebuilt": ("base-rebuilt", "app-a"),
        "synthetic-b": ("base", "app-b"),
        "synthetic-b-rebuilt": ("base-rebuilt", "app-b"),
    }.items():
        image = image_writer.Image(
            f"bench/{name}:1", [layers[part] for part in parts], ["python3"], times[0]
        )
        machine = platform.machine()
        image_writer.write_docker_archive(folder / f"docker-archive/{name}.tar", image, machine)
        image_writer.write_oci_layout(folder / "oci" / name, image, machine)
        if name == "synthetic-a":
            image_writer.write_oci_layout(folder / "oci" / f"{name}-zstd", image, machine, "zstd")


def _open_image(folder: Path, layout: Path) -> CorpusImage:
    """Join the forms of an image: their layers stand in the same order."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = _blob_json(layout, index["manifests"][0]["digest"])
    image_id = manifest["config"]["digest"]
    diff_ids = _blob_json(layout, image_id)["rootfs"]["diff_ids"]
    archive = folder / "docker-archive" / f"{layout.name}.tar"
    has_archive = archive.exists()
    tars = _members(archive) if has_archive else _files(folder / "layers", diff_ids)
    layers = tuple(
        CorpusLayer(diff_id, *tar, _blob(layout, blob["digest"]), blob["size"])
        for tar, diff_id, blob in zip(tars, diff_ids, manifest["layers"], strict=True)
    )
    zstd = layout.with_name(f"{layout.name}-zstd")
    zstd_layout = zstd if zstd.is_dir() else None
    return CorpusImage(
        layout.name, image_id, archive if has_archive else None, layout, zstd_layout, layers
    )


def _members(archive: Path) -> list[tuple[Path, int, int]]:
    """Where the layers of a docker-archive are: file, offset and size."""
    places = []
    with tarfile.open(archive) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None, "extractfile of a regular file"
        for name in json.load(file)[0]["Layers"]:
            member = tar.getmember(name)
            while member.issym():
                target = f"{member.name.rpartition('/')[0]}/{member.linkname}"
                member = tar.getmember(target.removeprefix("/").rpartition("../")[2])
            places.append((archive, member.offset_data, member.size))
    return places


def _files(layers: Path, diff_ids: Iterable[str]) -> list[tuple[Path, int, int]]:
    """The same of a fleet, whose layers are files."""
    paths = [layers / f"{diff_id[7:]}.tar" for diff_id in diff_ids]
    return [(path, 0, path.stat().st_size) for path in paths]


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _blob_json(layout: Path, digest: str) -> Any:
    return json.loads(_blob(layout, digest).read_bytes())


def _unpacked(layer: CorpusLayer) -> int:
    """Blocks of the files and folders of one layer; hard links and short symbolic links take none."""
    total = 0
    with layer.archive.open("rb") as file:
        file.seek(layer.offset)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # not in the stubs; it would keep them all
                if member.isdir():
                    total += 4096
                elif member.isreg():
                    total += -(-member.size // 4096) * 4096
    return total


def _take(files: list[LayerFile], size: int) -> tuple[list[LayerFile], list[LayerFile]]:
    """The first files that make up `size` bytes, and the rest."""
    total = 0
    for position, file in enumerate(files):
        if total >= size:
            return files[:position], files[position:]
        total += _size(file)
    return files, []


def _drifted(files: Iterable[LayerFile], choice: random.Random) -> list[LayerFile]:
    """The same files, a few of them changed in one place: what an update of a package leaves."""
    from tools.image_writer import LayerFile

    drifted = []
    for file in files:
        if choice.random() < 0.03:
            data = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
            at = choice.randrange(len(data) + 1)
            drifted.append(LayerFile(file.path, data[:at] + b"changed" + data[at:], file.mode))
        else:
            drifted.append(file)
    return drifted


def _size(file: LayerFile) -> int:
    return len(file.source) if isinstance(file.source, bytes) else file.source.stat().st_size


if __name__ == "__main__":
    write_synthetic(Path(sys.argv[1]))


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """The options of a program that measures one image: which, where its files go, and where the results."""
    default = os.environ.get("LAYERSTORE_CORPUS")
    parser.add_argument("--corpus", type=Path, default=Path(default) if default else None)
    parser.add_argument("--image", help="of the corpus (its first)")
    parser.add_argument("--work", type=Path, help="where all files go; on the disk to measure")
    parser.add_argument("--json", type=Path, help="one line for each result")


def chosen_image(options: argparse.Namespace, folder: Path) -> CorpusImage:
    """The image of these options; a synthetic one, made in `folder`, where no corpus is given."""
    if options.corpus is None:
        write_synthetic(folder / "synthetic")
    corpus = open_corpus(options.corpus.resolve() if options.corpus else folder / "synthetic")
    found = [image for image in corpus.images if options.image in (None, image.name)]
    if not found:
        names = [image.name for image in corpus.images]
        raise SystemExit(f"no image {options.image}; there are {names}")
    return found[0]

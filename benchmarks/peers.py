"""Other programs that take the same images, and the commands they are given.

    gzip     compressed layers: OCI layouts, or a registry that has them
    plain    each unique layer as a tar; docker-archives
    trees    each unique layer as a folder: what makes filesystem images

Where there is a choice, it is made in the peer's favour: backup programs get each new layer tar once and in one call,
already decompressed; who reads folders finds them unpacked; nobody but layerstore is asked to have its files on disk
when it ends; repositories are made before the clock starts, and caches outside of them are not counted. Roots that a
backup program gives back are piped into `tar`, without a thought of whiteouts. restic encrypts always; borg does not here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.daemons import daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.corpora import Corpus, CorpusImage, CorpusLayer

__all__ = [
    "GZIP",
    "LAYERSTORE",
    "PEERS",
    "PLAIN",
    "TREES",
    "Command",
    "Inputs",
    "Peer",
    "layout_tars",
]

GZIP, PLAIN, TREES = "gzip", "plain", "trees"
LAYERSTORE = ("layerstore", "layerstore-defer", "layerstore-drop", "layerstore-plain")

Command = list[str]


@dataclass(slots=True)
class Inputs:
    """What peers read, made before: whatever a peer's `source` and `daemon` ask for.

    Attributes:
        tars: each unique layer, by diff ID.
        trees: the same, unpacked to folders.
        layout_tars: an OCI archive of each image, by its name.
        registry: `host:port` of a registry that has all images.
    """

    corpus: Corpus
    tars: Mapping[str, Path] = field(default_factory=dict)
    trees: Mapping[str, Path] = field(default_factory=dict)
    layout_tars: Mapping[str, Path] = field(default_factory=dict)
    registry: str = ""

    def paths(self, source: str) -> list[Path]:
        """The files that are to be warm."""
        if source == PLAIN:
            archives = [image.archive for image in self.corpus.images if image.archive is not None]
            return [*self.tars.values(), *archives]
        if source == TREES:
            return list(self.trees.values())
        return [image.layout for image in self.corpus.images] + list(self.layout_tars.values())


@dataclass(frozen=True, slots=True)
class Peer:
    """A program and how it is used. Functions get the inputs and the peer's folder, and give commands.

    Attributes:
        program: what must be on the PATH; `version` are the arguments that print its version.
        source: `gzip`, `plain` or `trees`: what it reads, and so what it stands beside.
        add: put images into the store, whatever of them is there already.
        setup: commands before the clock starts.
        show: have the root filesystem of an image that was added in a folder, readable.
        hide: undo that, after the clock has stopped.
        store: the part of the folder that is its store.
        environment: more variables; `{folder}` stands for the folder.
        needs_root: whether others cannot run it.
        daemon: what is to run meanwhile (daemons.py).
        needs: programs besides; `unfit` says why this version will not do, or nothing.
        repeats: whether adding again what is there has a meaning.
        is_whole: whether every addition makes all of it again, so that all images come at once.
        is_slow: whether one round has to do.
        note: what has to be known about its figures.
    """

    name: str
    program: str
    version: Sequence[str]
    source: str
    add: Callable[[Inputs, Path, Sequence[CorpusImage]], list[Command]]
    setup: Callable[[Path], list[Command]] = lambda folder: []
    show: Callable[[Inputs, Path, CorpusImage, Path], list[Command]] | None = None
    hide: Callable[[Path, Path], list[Command]] = lambda folder, target: []
    store: str = "store"
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_root: bool = False
    daemon: str | None = None
    needs: Sequence[str] = ()
    unfit: Callable[[], str] = lambda: ""
    repeats: bool = True
    is_whole: bool = False
    is_slow: bool = False
    note: str = ""

    def absence(self) -> str:
        """Why it cannot be measured here; empty when it can."""
        missing = [name for name in (self.program, *self.needs) if shutil.which(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        if self.needs_root and os.geteuid() != 0:
            return "needs root"
        return self.unfit()

    def found_version(self) -> str | None:
        """The first line that the program says about itself, or None where it cannot be measured."""
        if self.absence():
            return None
        done = subprocess.run(
            [self.program, *self.version], capture_output=True, text=True, check=False
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

    def running(self, folder: Path) -> AbstractContextManager[tuple[int, ...]]:
        """Its daemons while the block runs: their process IDs."""
        return daemon(self.daemon, folder)


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


def _tag(layout: Path) -> str:
    """The one tag of a layout; the corpus gives `latest`, the synthetic images `1`."""
    return _annotations(layout)["org.opencontainers.image.ref.name"]


def _annotations(layout: Path) -> dict[str, str]:
    index = json.loads((layout / "index.json").read_bytes())
    annotations: dict[str, str] = index["manifests"][0]["annotations"]
    return annotations


def _source(image: CorpusImage) -> str:
    return f"oci:{image.layout}:{_tag(image.layout)}"


def _tars(inputs: Inputs, images: Sequence[CorpusImage]) -> list[str]:
    """The layers of some images, each once."""
    return [str(inputs.tars[layer.diff_id]) for layer in _layers(images)]


def _layers(images: Sequence[CorpusImage]) -> list[CorpusLayer]:
    return list({layer.diff_id: layer for image in images for layer in image.layers}.values())


def _piped(
    image: CorpusImage, target: Path, command: Callable[[CorpusLayer], str]
) -> list[Command]:
    """Unpack an image's layers, one upon the other, from commands that write them to standard output."""
    lines = [f"{command(layer)} | tar -x -p -C {target}" for layer in image.layers]
    return [["sh", "-c", "set -e; " + "; ".join(lines)]]


# layerstore itself, as its users run it


def _layerstore(folder: Path) -> Command:
    return [sys.executable, "-m", "layerstore", "--root", f"{folder}/store"]


def _load_layouts(
    inputs: Inputs, folder: Path, images: Sequence[CorpusImage], *how: str
) -> list[Command]:
    layouts = [str(image.layout) for image in images]
    return [[*_layerstore(folder), "load", "--quiet", *how, *layouts]]


def _load_deferred(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    return _load_layouts(inputs, folder, images, "--defer")


def _load_dropping(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    return _load_layouts(inputs, folder, images, "--drop-blobs")


def _load_archives(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    archives = [str(image.archive or image.layout) for image in images]
    return [[*_layerstore(folder), "load", "--quiet", *archives]]


def _mount(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    return [[*_layerstore(folder), "mount", image.image_id, str(target)]]


def _umount(folder: Path, target: Path) -> list[Command]:
    return [[*_layerstore(folder), "umount", str(target)]]


# container engines


def _ctr(folder: Path, *words: str) -> Command:
    return ["ctr", "-a", f"{folder}/c.sock", "images", *words]


def _ctr_import(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    options = ["--snapshotter", "overlayfs", "--digests=false"]
    return [
        _ctr(folder, "import", *options, "--base-name", f"bench/{image.name}", str(path))
        for image in images
        for path in [inputs.layout_tars[image.name]]
    ]


def _ctr_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    name = _annotations(image.layout).get("io.containerd.image.name")
    name = name or f"bench/{image.name}:{_tag(image.layout)}"
    return [_ctr(folder, "mount", "--snapshotter", "overlayfs", name, str(target))]


def _ctr_hide(folder: Path, target: Path) -> list[Command]:
    return [_ctr(folder, "unmount", "--rm", str(target))]


def _ctr_pull(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    options = ["--plain-http", "--snapshotter", "overlayfs"]
    return [
        _ctr(folder, "pull", *options, f"{inputs.registry}/bench/{image.name}:latest")
        for image in images
    ]


def _ctr_pull_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    name = f"{inputs.registry}/bench/{image.name}:latest"
    return [_ctr(folder, "mount", "--snapshotter", "overlayfs", name, str(target))]


def _docker(folder: Path, *words: str) -> Command:
    return ["docker", "-H", f"unix://{folder}/d.sock", *words]


def _docker_load(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    return [
        _docker(folder, "load", "--quiet", "--input", str(image.archive))
        for image in images
        if image.archive is not None
    ]


def _docker_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    create = _docker(folder, "create", "--name", "shown", image.image_id, "true")
    # A stopped container's root is mounted for `cp` only: this is the least that shows it.
    return [create, _docker(folder, "cp", "shown:/.dockerenv", str(target))]


def _docker_hide(folder: Path, target: Path) -> list[Command]:
    return [_docker(folder, "rm", "shown")]


def _storage(folder: Path) -> str:
    return f"overlay@{folder}/store+{folder}/run"


def _skopeo_storage(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    skopeo = ["skopeo", "copy", "--quiet", "--insecure-policy"]
    return [
        [
            *skopeo,
            _source(image),
            f"containers-storage:[{_storage(folder)}]localhost/bench/{image.name}:latest",
        ]
        for image in images
    ]


def _podman(folder: Path, *words: str) -> Command:
    roots = ["--root", f"{folder}/store", "--runroot", f"{folder}/run"]
    return ["podman", "--storage-driver", "overlay", *roots, *words]


def _podman_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    mount = " ".join(_podman(folder, "image", "mount", f"localhost/bench/{image.name}:latest"))
    return [["sh", "-c", f"{mount} > {folder}/mounted && ls $(cat {folder}/mounted)"]]


def _podman_hide(folder: Path, target: Path) -> list[Command]:
    return [_podman(folder, "image", "unmount", "--all")]


def _registry_push(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    address = (folder / "address").read_text()
    skopeo = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
    return [
        [*skopeo, _source(image), f"docker://{address}/bench/{image.name}:latest"]
        for image in images
    ]


def _registry_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    name = f"docker://{(folder / 'address').read_text()}/bench/{image.name}:latest"
    skopeo = ["skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"]
    return [
        [*skopeo, name, f"oci:{folder}/pulled:latest"],
        [*_UMOCI, "--image", f"{folder}/pulled:latest", f"{target}/bundle"],
    ]


_UMOCI = ["umoci", "unpack", *([] if os.geteuid() == 0 else ["--rootless"])]


def _umoci(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    return [
        [*_UMOCI, "--image", f"{image.layout}:{_tag(image.layout)}", f"{folder}/store/{image.name}"]
        for image in images
    ]


def _umoci_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    return [["ls", f"{folder}/store/{image.name}/rootfs"]]  # it was unpacked when it came


# backup programs


def _restic(compression: str) -> Callable[[Inputs, Path, Sequence[CorpusImage]], list[Command]]:
    def add(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
        backup = ["restic", "--repo", f"{folder}/store", "backup", "--compression", compression]
        return [[*backup, *_tars(inputs, images)]]

    return add


def _restic_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    dump = f"restic --quiet --repo {folder}/store dump latest"
    return _piped(image, target, lambda layer: f"{dump} {inputs.tars[layer.diff_id]}")


_RESTIC = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": "{folder}/cache"}


def _restic_setup(folder: Path) -> list[Command]:
    # Version 2 compresses; restic before 0.14 has only version 1.
    return [["restic", "--repo", f"{folder}/store", "init", "--repository-version", "2"]]


def _borg(compression: str) -> Callable[[Inputs, Path, Sequence[CorpusImage]], list[Command]]:
    def add(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
        create = ["borg", "create", "--compression", compression]
        return [[*create, f"{folder}/store::{{utcnow:%H%M%S%f}}", *_tars(inputs, images)]]

    return add


def _borg_setup(folder: Path) -> list[Command]:
    return [["borg", "init", "--encryption", "none", f"{folder}/store"]]


def _borg_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    last = f"borg list --last 1 --format '{{archive}}' {folder}/store"
    extract = f"borg extract --stdout {folder}/store::$({last})"
    return _piped(image, target, lambda layer: f"{extract} {str(inputs.tars[layer.diff_id])[1:]}")


_BORG = {"BORG_BASE_DIR": "{folder}", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


def _casync(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    store = f"--store={folder}/store/castr"
    return [
        ["casync", "make", store, f"{folder}/store/{layer.diff_id[7:]}.caibx", str(path)]
        for layer in _layers(images)
        for path in [inputs.tars[layer.diff_id]]
    ]


def _casync_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    extract = f"casync extract --store={folder}/store/castr {folder}/store"
    lines = [
        f"{extract}/{layer.diff_id[7:]}.caibx {target}.tar && tar -x -p -C {target} -f {target}.tar"
        for layer in image.layers
    ]
    return [["sh", "-c", "set -e; " + "; ".join(lines) + f"; rm {target}.tar"]]


# file stores and filesystem images


def _ostree(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    commit = ["ostree", f"--repo={folder}/store", "commit", "--skip-if-unchanged"]
    commands = []
    for layer in _layers(images):
        path = inputs.tars[layer.diff_id]
        options = [f"--branch=layer/{layer.diff_id[7:]}", "--tar-autocreate-parents"]
        devices, has_other_names = _not_for_ostree(path)
        if has_other_names:
            continue
        if devices:
            skipped = folder / f"{layer.diff_id[7:]}.skip"
            skipped.write_text("".join(f"/{name}\n" for name in devices))
            options.append(f"--skip-list={skipped}")
        commands.append([*commit, *options, f"--tree=tar={path}"])
    return commands


def _not_for_ostree(path: Path) -> tuple[list[str], bool]:
    """Devices and pipes of a tar, which it takes for errors; and whether there are names that are no UTF-8."""
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        members = tar.getmembers()
    devices = [one.name.removeprefix("./") for one in members if one.isdev()]
    return devices, any("\udc80" <= letter <= "\udcff" for one in members for letter in one.name)


def _ostree_setup(folder: Path) -> list[Command]:
    return [["ostree", f"--repo={folder}/store", "init", "--mode=bare"]]


def _ostree_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    checkout = ["ostree", f"--repo={folder}/store", "checkout", "--union", "--whiteouts"]
    return [[*checkout, f"layer/{layer.diff_id[7:]}", str(target)] for layer in image.layers]


def _squashfs(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    trees = [str(inputs.trees[layer.diff_id]) for layer in _layers(images)]
    options = [
        "-comp",
        "zstd",
        "-Xcompression-level",
        "3",
        "-no-progress",
        "-quiet",
        "-keep-as-directory",
    ]
    return [["mksquashfs", *trees, f"{folder}/store/all.squashfs", "-no-recovery", *options]]


def _show_packed(
    kind: str,
) -> Callable[[Inputs, Path, CorpusImage, Path], list[Command]]:
    """The layers of one filesystem image, one upon the other by overlayfs, without a thought of whiteouts."""

    def show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
        packed = f"{folder}/packed"
        lower = [f"{packed}/{layer.diff_id[7:]}" for layer in reversed(image.layers)]
        merge = ["mount", "-t", "overlay", "-o", f"ro,lowerdir={':'.join(lower)}", "overlay"]
        if len(lower) == 1:  # overlayfs wants two
            merge = ["mount", "--bind", *lower]
        return [
            ["mkdir", packed],
            ["mount", "-t", kind, "-o", "loop,ro", f"{folder}/store/all.{kind}", packed],
            [*merge, str(target)],
        ]

    return show


def _hide_packed(folder: Path, target: Path) -> list[Command]:
    return [["umount", str(target), f"{folder}/packed"]]


def _erofs(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    parent = next(iter(inputs.trees.values())).parent
    options = ["-Ededupe,all-fragments", "-zzstd,3"]
    return [["mkfs.erofs", *options, f"{folder}/store/all.erofs", str(parent)]]


def _erofs_unfit() -> str:
    # It says its version while it works only; and 1.5 takes -Ededupe without a word, and shares nothing.
    with tempfile.TemporaryDirectory() as name:
        command = ["mkfs.erofs", f"{name}/image", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"mkfs\.erofs (?:\(erofs-utils\) )?v?(\d+)\.(\d+)", done.stdout + done.stderr)
    if found and (int(found[1]), int(found[2])) >= (1, 8):
        return ""
    return f"-Ededupe with zstd needs erofs-utils 1.8, this is {found[0] if found else 'unknown'}"


# baselines


def _cp(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    return [["cp", "--reflink=never", *_tars(inputs, images), f"{folder}/store"]]


def _cp_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    return _piped(
        image, target, lambda layer: f"cat {folder}/store/{inputs.tars[layer.diff_id].name}"
    )


def _zstd(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    zstd = ["zstd", "-3", "-T0", "--quiet", "--force", "--output-dir-flat", f"{folder}/store"]
    return [[*zstd, *_tars(inputs, images)]]


def _zstd_show(inputs: Inputs, folder: Path, image: CorpusImage, target: Path) -> list[Command]:
    return _piped(
        image,
        target,
        lambda layer: f"zstd -dc {folder}/store/{inputs.tars[layer.diff_id].name}.zst",
    )


def _zstd_long(inputs: Inputs, folder: Path, images: Sequence[CorpusImage]) -> list[Command]:
    stream = f"cat {' '.join(_tars(inputs, images))}"
    return [["sh", "-c", f"{stream} | zstd -3 --long=31 -T0 --quiet > {folder}/store/all.zst"]]


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "layerstore", sys.executable, ["-m", "layerstore", "--version"], GZIP,
            _load_layouts, show=_mount, hide=_umount,
            note="can give every gzip blob back, made again from the tar and a recipe",
        ),
        Peer(
            "layerstore-defer", sys.executable, ["-m", "layerstore", "--version"], GZIP,
            _load_deferred, show=_mount, hide=_umount,
            note="keeps the gzip blobs, until `optimize` has converted them",
        ),
        Peer(
            "layerstore-drop", sys.executable, ["-m", "layerstore", "--version"], GZIP,
            _load_dropping, show=_mount, hide=_umount,
            note="keeps only the tars, as the backup programs do",
        ),
        Peer(
            "layerstore-plain", sys.executable, ["-m", "layerstore", "--version"], PLAIN,
            _load_archives, show=_mount, hide=_umount,
        ),
        Peer(
            "ctr", "ctr", ["--version"], GZIP, _ctr_import, show=_ctr_show, hide=_ctr_hide,
            needs_root=True, daemon="containerd", needs=["containerd"],
            note="keeps the gzip blobs as well as the files",
        ),
        Peer(
            "ctr-pull", "ctr", ["--version"], GZIP, _ctr_pull, show=_ctr_pull_show, hide=_ctr_hide,
            needs_root=True, daemon="containerd", needs=["containerd", "docker-registry", "skopeo"],
            note="from a docker-registry on the loopback; keeps the gzip blobs as well as the files",
        ),
        Peer(
            "docker", "docker", ["--version"], PLAIN, _docker_load, show=_docker_show, hide=_docker_hide,
            needs_root=True, daemon="dockerd", needs=["dockerd", "containerd", "ctr"],
            note="overlay2; the root is reached by `docker create` and `docker cp` of a file",
        ),
        Peer(
            "podman", "skopeo", ["--version"], GZIP, _skopeo_storage,
            show=_podman_show, hide=_podman_hide, needs_root=True, needs=["podman"],
            note="skopeo into containers-storage, overlay",
        ),
        Peer(
            "registry", "docker-registry", ["--version"], GZIP, _registry_push, show=_registry_show,
            daemon="registry", needs=["skopeo", "umoci"],
            note="docker-registry, filled by skopeo; a root is pulled and unpacked by umoci",
        ),
        Peer(
            "umoci", "umoci", ["--version"], GZIP, _umoci, show=_umoci_show, is_slow=True, repeats=False,
            note="no sharing between images; a root is there when it is in; also records every file in an mtree",
        ),
        Peer(
            "restic", "restic", ["version"], PLAIN, _restic("auto"), _restic_setup, _restic_show,
            environment=_RESTIC,
        ),
        Peer(
            "restic-max", "restic", ["version"], PLAIN, _restic("max"), _restic_setup, _restic_show,
            environment=_RESTIC, is_slow=True,
        ),
        Peer(
            "borg-lz4", "borg", ["--version"], PLAIN, _borg("lz4"), _borg_setup, _borg_show,
            environment=_BORG,
        ),
        Peer(
            "borg-zstd", "borg", ["--version"], PLAIN, _borg("zstd,3"), _borg_setup, _borg_show,
            environment=_BORG,
        ),
        Peer("casync", "casync", ["--version"], PLAIN, _casync, show=_casync_show, is_slow=True),
        Peer(
            "ostree", "ostree", ["--version"], PLAIN, _ostree, _ostree_setup, _ostree_show,
            environment={"LC_ALL": "C.UTF-8"}, is_slow=True, needs_root=True,
            note="bare repository: whole files, not compressed; no devices, no layers with names that are no UTF-8",
        ),
        Peer(
            "squashfs", "mksquashfs", ["-version"], TREES, _squashfs, show=_show_packed("squashfs"),
            hide=_hide_packed, needs_root=True, is_slow=True, repeats=False,
            note="appends to one file; zstd 3; whole files are shared",
        ),
        Peer(
            "erofs", "mkfs.erofs", ["--help"], TREES, _erofs, show=_show_packed("erofs"), hide=_hide_packed,
            needs_root=True, is_slow=True, repeats=False, is_whole=True,
            unfit=_erofs_unfit, note="made in one go; every addition makes it all again",
        ),
        Peer("zstd", "zstd", ["--version"], PLAIN, _zstd, show=_zstd_show, note="no sharing below a layer"),
        Peer(
            "zstd-long", "zstd", ["--version"], PLAIN, _zstd_long, repeats=False, is_whole=True, is_slow=True,
            note="one stream, window 2 GiB: all or nothing; the room that is left for a cold tier",
        ),
        Peer("cp", "cp", ["--version"], PLAIN, _cp, show=_cp_show, note="no sharing below a layer"),
    )
}  # fmt: skip

"""What `commit` makes of a snapshot, and how a command runs in one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.errors import InvalidArgument, NotFound, Unsupported
from layerstore.images.bundle import RunOptions, open_inside, runtime_config
from layerstore.images.commit import CommitOptions, commit_image, fork_image
from layerstore.images.load import BlobPolicy
from layerstore.images.rootfs import ImportOptions
from layerstore.images.run import run_image
from layerstore.snapshots import Snapshots, StoreLowers
from layerstore.snapshots.mounting import mounted
from layerstore.snapshots.plainfiles import PlainLowers
from tests.support.cli_images import Cli, write_archive, write_layout
from tests.support.snapshots import unmount_below

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.api import LayerStore


@pytest.fixture(autouse=True)
def _unmounted(tmp_path: Path) -> Iterator[None]:
    yield
    unmount_below(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def snapshots(store: LayerStore) -> Snapshots:
    return Snapshots(store.store, PlainLowers(store.store))


def _document(store: LayerStore, digest: str) -> dict[str, object]:
    return dict(json.loads(b"".join(store.iter_blob(digest))))


def _upper(snapshots: Snapshots, key: str) -> Path:
    (spec,) = snapshots.mounts(key)
    return Path(next(o for o in spec.options if o.startswith("upperdir="))[len("upperdir=") :])


def test_an_image_on_top_of_the_old_one(
    store: LayerStore, snapshots: Snapshots, tmp_path: Path
) -> None:
    store.load(write_archive(tmp_path / "in.tar", config={"Env": ["A=1"], "Cmd": ["old"]}))
    base = store.inspect("example/app:1")
    fork_image(store.store, snapshots, "example/app:1", ["work", "other"])
    (_upper(snapshots, "work") / "new").write_text("new")
    options = CommitOptions("me", "why", ("CMD new", "ENV B=2"), created="2026-01-01T00:00:00Z")
    report = commit_image(store.store, snapshots, "work", "example/new:1", options)
    assert report.layer is not None
    details = store.inspect("example/new:1")
    assert [layer.diff_id for layer in details.layers] == [
        *(layer.diff_id for layer in base.layers), report.layer.diff_id,
    ]  # fmt: skip
    config = _document(store, report.id)
    assert config["config"] == {"Env": ["A=1", "B=2"], "Cmd": ["/bin/sh", "-c", "new"]}
    assert (config["author"], config["created"]) == ("me", "2026-01-01T00:00:00Z")
    (step, *_) = store.history("example/new:1")
    assert (step.comment, step.created_by) == ("why", "layerstore commit")
    assert {info.name for info in snapshots.walk()} == {"work", "other"}
    store.save("example/new:1", tmp_path / "out.tar")
    assert store.verify().damages == ()
    # The snapshot goes on, and the same again is the same image.
    assert commit_image(store.store, snapshots, "work", "example/new:2", options).id == report.id


@pytest.mark.parametrize("blobs", list(BlobPolicy))
def test_layers_keep_their_blobs_where_those_are_known(
    store: LayerStore, snapshots: Snapshots, tmp_path: Path, blobs: BlobPolicy
) -> None:
    store.load(write_layout(tmp_path / "in"), blobs=blobs)
    fork_image(store.store, snapshots, "example/app:1", ["work"])
    (_upper(snapshots, "work") / "new").touch()
    report = commit_image(store.store, snapshots, "work", "example/new:1")
    manifest = _document(store, report.digest)
    old = _document(store, store.inspect("example/app:1").summary.digest)
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]  # type: ignore[attr-defined]  # JSON
    assert kinds == (
        ["tar+gzip", "tar+gzip", "tar"] if blobs is not BlobPolicy.DROP else ["tar"] * 3
    )
    if blobs is not BlobPolicy.DROP:
        assert manifest["layers"][:2] == old["layers"]  # type: ignore[index]  # JSON
    saved = store.save("example/new:1", tmp_path / "out.tar")
    assert [image.exact for image in saved.images] == [True]


def test_without_a_base_image(store: LayerStore, snapshots: Snapshots) -> None:
    snapshots.prepare("scratch")
    (Path(snapshots.mounts("scratch")[0].source) / "file").touch()
    snapshots.commit("base", "scratch")
    report = commit_image(store.store, snapshots, "base", "example/scratch")
    assert report.layer is None
    config = _document(store, report.id)
    assert config["rootfs"] == {"type": "layers", "diff_ids": list(snapshots.stack("base"))}
    assert [image.names for image in store.images()] == [("docker.io/example/scratch:latest",)]


def test_a_removed_base_image_is_no_obstacle(
    store: LayerStore, snapshots: Snapshots, tmp_path: Path
) -> None:
    store.load(write_archive(tmp_path / "in.tar"))
    fork_image(store.store, snapshots, "example/app:1", ["work"])
    store.remove("example/app:1")
    report = commit_image(store.store, snapshots, "work", "example/new")
    assert len(store.inspect("example/new").layers) == 3
    assert report.layer is not None


def test_what_cannot_be_committed(store: LayerStore, snapshots: Snapshots) -> None:
    with pytest.raises(NotFound):
        commit_image(store.store, snapshots, "nothing", "example/new")
    snapshots.prepare("a")
    for name, change in (("Not A Name", "CMD x"), ("example/new", "RUN x")):
        with pytest.raises(InvalidArgument):
            commit_image(store.store, snapshots, "a", name, CommitOptions(changes=(change,)))
    assert store.images() == []


@pytest.mark.root
@pytest.mark.parametrize("lowers", [PlainLowers, StoreLowers])
def test_by_the_folder_where_it_is_mounted(
    store: LayerStore, tmp_path: Path, lowers: type[PlainLowers | StoreLowers]
) -> None:
    snapshots = Snapshots(store.store, lowers(store.store))
    store.load(write_archive(tmp_path / "in.tar"))
    fork_image(store.store, snapshots, "example/app:1", ["work"])
    snapshots.prepare("empty")
    folder = tmp_path / "a folder"
    folder.mkdir()
    for key, layers in (("work", 3), ("empty", 1)):
        with mounted(snapshots.mounts(key), folder):
            (folder / "new").write_text("new")
            commit_image(store.store, snapshots, str(folder), f"example/{key}")
        assert len(store.inspect(f"example/{key}").layers) == layers
    with pytest.raises(NotFound):
        commit_image(store.store, snapshots, folder, "example/none")


BUSYBOX = shutil.which("busybox")


def _rootfs(folder: Path) -> Path:
    """A root filesystem with a static busybox, a user, and a passwd that is an absolute symbolic link."""
    for name in ("bin", "etc", "real", "tmp", "home/user"):
        (folder / name).mkdir(parents=True)
    shutil.copy(BUSYBOX or "/bin/true", folder / "bin/busybox")
    for name in ("sh", "cat", "id", "env", "pwd"):
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "real/passwd").write_text("root:x:0:0::/:/bin/sh\nuser:x:1000:100::/home/user:\n")
    (folder / "etc/passwd").symlink_to("/real/passwd")
    (folder / "etc/group").write_text("root:x:0:\nusers:x:100:\nmore:x:200:root,user\n")
    return folder


def _config(root: Path, options: RunOptions, **runtime: object) -> dict[str, object]:
    document = runtime_config(runtime, root, options, "name")
    return dict(document["process"])


def test_what_runs_is_entrypoint_and_command(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "r")
    for options, entrypoint, cmd, want in (
        (RunOptions(), None, ["a"], ["a"]),
        (RunOptions(), ["e"], ["a"], ["e", "a"]),
        (RunOptions(("b", "c")), ["e"], ["a"], ["e", "b", "c"]),
        (RunOptions(("b",), entrypoint=()), ["e"], ["a"], ["b"]),
        (RunOptions(entrypoint=("x", "y")), ["e"], ["a"], ["x", "y"]),
    ):
        assert _config(root, options, Entrypoint=entrypoint, Cmd=cmd)["args"] == want
    with pytest.raises(InvalidArgument, match="command"):
        _config(root, RunOptions(), Entrypoint=None)


@pytest.mark.parametrize(
    ("user", "want"),
    [
        ("", (0, 0, [])),
        ("root", (0, 0, [200])),
        ("user", (1000, 100, [200])),
        ("1000", (1000, 100, [200])),
        ("user:more", (1000, 200, [])),
        ("5:6", (5, 6, [])),
        ("77", (77, 0, [])),
    ],
)
def test_users_are_those_of_the_image(
    tmp_path: Path, user: str, want: tuple[int, int, list[int]]
) -> None:
    seen = _config(_rootfs(tmp_path / "r"), RunOptions(("x",), user=user))["user"]
    assert seen == dict(zip(("uid", "gid", "additionalGids"), want, strict=True))


def test_unknown_users_volumes_and_variables_are_refused(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "r")
    for options in (
        RunOptions(("x",), user="nobody-here"),
        RunOptions(("x",), user="user:nothing"),
        RunOptions(("x",), user="99999999999"),
        RunOptions(("x",), volumes=("relative:/x",)),
        RunOptions(("x",), volumes=("/x",)),
        RunOptions(("x",), volumes=("/x:/y:no",)),
        RunOptions(("x",), env=("NOTHING",)),
    ):
        with pytest.raises(InvalidArgument):
            _config(root, options)


def test_files_are_opened_inside_whatever_links_say(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "r")
    (tmp_path / "secret").write_text("secret")
    (root / "up").symlink_to("../" * 20 + str(tmp_path / "secret"))
    (root / "loop").symlink_to("loop")
    for name in ("up", "loop", "none", "etc/passwd/none"):
        assert open_inside(root, name) is None


def test_no_runtime_is_said_clearly(
    store: LayerStore, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unsupported, match="runc or crun"):
        run_image(store.store, snapshots, "example/app", RunOptions())


@pytest.mark.root
@pytest.mark.client("runc", "busybox")
def test_run(store: LayerStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = _rootfs(tmp_path / "r")
    changes = ("ENV A=1", "WORKDIR /work", 'CMD ["sh", "-c", "pwd; id -u; echo $A$B; cat /v/f"]')
    store.import_rootfs(root, "test/busybox", ImportOptions(changes))
    (tmp_path / "v").mkdir()
    (tmp_path / "v/f").write_text("from outside\n")
    snapshots = Snapshots(store.store, StoreLowers(store.store))
    options = RunOptions(env=("B=2",), user="user", volumes=(f"{tmp_path}/v:/v:ro",))
    report = run_image(store.store, snapshots, "test/busybox", options)
    assert (report.exit_code, report.kept) == (0, False)
    assert capfd.readouterr().out == "/work\n1000\n12\nfrom outside\n"
    assert list(snapshots.walk()) == []
    keep = RunOptions(("sh", "-c", "echo text > /made; exit 7"), keep=True)
    report = run_image(store.store, snapshots, "test/busybox", keep)
    assert (report.exit_code, report.kept) == (7, True)
    commit_image(store.store, snapshots, report.key, "test/made")
    report = run_image(store.store, snapshots, "test/made", RunOptions(("cat", "/made")))
    assert (report.exit_code, capfd.readouterr().out) == (0, "text\n")
    left = [path.name for path in (tmp_path / "store" / "containers").iterdir()]
    assert left in (["state"], [])
    assert f"{tmp_path}/store/containers" not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(tmp_path / "store", capsys)
    cli.ok("load", write_archive(tmp_path / "in.tar"))
    (forked,) = cli.ok("fork", "example/app:1", "work", "--format", "json").json
    assert forked["snapshot"]["kind"] == "active"
    (tmp_path / "m").mkdir()
    command = cli.ok("snapshot", "mounts", "work", "--target", tmp_path / "m").out
    subprocess.run(command, shell=True, check=True)
    try:
        (tmp_path / "m/new").write_text("x")
        cli.ok("commit", tmp_path / "m", "example/new", "-m", "why", "-c", "CMD x")
    finally:
        subprocess.run(["umount", tmp_path / "m"], check=True)
    cli.ok("snapshot", "update", "work", "l=1")
    cli.ok("snapshot", "commit", "base", "work", "-l", "l=2")
    cli.ok("snapshot", "prepare", "next", "base")
    cli.ok("snapshot", "view", "seen", "base")
    assert cli.ok("snapshot", "ls", "-q", "parent==base").out.split() == ["next", "seen"]
    assert cli.ok("snapshot", "stat", "base").json["snapshot"]["labels"] == {"l": "2"}
    assert cli.ok("snapshot", "usage", "next", "--format", "json").json["inodes"] == 1
    assert cli("snapshot", "rm", "base").code == 5
    assert cli("snapshot", "stat", "none").code == 3
    assert cli("snapshot", "prepare", "next").code == 4
    cli.ok("snapshot", "rm", "next", "seen", "base")
    assert cli.ok("snapshot", "ls", "--format", "json").json == []
    assert cli.ok("history", "example/new", "--format", "json").json

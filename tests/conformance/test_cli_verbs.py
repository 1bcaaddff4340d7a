"""Every verb on real stores, through the console entry point."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.support.archive_builders import image_config
from tests.support.cli_images import (
    BASE,
    Cli,
    app_layers,
    noise,
    sha256,
    write_archive,
    write_layout,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LAYERSTORE_") and name != "LAYERSTORE_KERNELS":
            monkeypatch.delenv(name)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path / "store", capsys)


@pytest.fixture
def loaded(cli: Cli, tmp_path: Path) -> Cli:
    """A store with `example/app:1` and `example/app:2`, which share their lower layer."""
    cli.ok("load", write_archive(tmp_path / "app.tar", 1, 2))
    return cli


def test_load_says_what_came_and_what_was_shared(cli: Cli, tmp_path: Path) -> None:
    first = cli.ok("load", "-i", write_archive(tmp_path / "1.tar", 1))
    assert first.out.splitlines()[0] == "Loaded image: example/app:1"
    assert first.out.splitlines()[1].startswith("2 layers: 2 new, 0 known; ")
    assert [line.split()[-1] for line in first.err.splitlines()] == ["new", "new"]
    second = cli.ok("load", write_archive(tmp_path / "2.tar", 2))
    assert "2 layers: 1 new, 1 known; " in second.out


def test_load_takes_several_archives_and_one_bad_one_spoils_none(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar"
    bad.write_bytes(noise(20_000))
    missing = tmp_path / "missing.tar"
    one, two = write_archive(tmp_path / "1.tar", 1), write_layout(tmp_path / "layout", 2)
    outcome = cli("load", one, bad, missing, two)
    # The missing one was met first, before the store was opened.
    assert outcome.code == 2
    assert "Loaded image: example/app:1\n" in outcome.out
    assert "Loaded image: example/app:2\n" in outcome.out
    complaints = [line for line in outcome.err.splitlines() if line.startswith("layerstore: ")]
    assert str(missing) in complaints[0]
    assert str(bad) in complaints[1]
    assert cli("load", one, bad).code == 6


def test_load_of_nothing_readable_makes_no_store(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("load", tmp_path / "missing.tar")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"layerstore: {tmp_path}/missing.tar: No such file or directory\n"
    assert not cli.root.exists()


@pytest.mark.parametrize("option", ["--defer", None])
def test_load_says_that_dropped_blobs_change_digests(
    cli: Cli, tmp_path: Path, option: str | None
) -> None:
    layout = write_layout(tmp_path / "layout")
    assert "--drop-blobs" in cli.ok("load", "--drop-blobs", layout).err
    assert "--drop-blobs" not in cli.ok("load", "-q", "--drop-blobs", layout).err
    assert "--drop-blobs" not in cli.ok("load", *([option] if option else []), layout).err
    digest = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    saved = cli.ok("save", "example/app:1", "-o", tmp_path / "o.tar", "--format", "json")
    assert saved.json["images"] == [{"name": "example/app:1", "digest": digest, "exact": True}]
    assert "layerstore:" not in saved.err


def test_load_can_name_the_image_and_be_quiet(cli: Cli, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "1.tar", 1)
    outcome = cli.ok("load", "-q", "--name", "my/own", archive)
    assert (outcome.out, outcome.err) == ("Loaded image: my/own:latest\n", "")
    assert [image["names"] for image in cli.ok("images", "--format", "json").json] == [
        ["docker.io/my/own:latest"]
    ]


def test_load_json(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"?" * 2000)
    archive = write_archive(tmp_path / "1.tar", 1)
    outcome = cli("load", "--format", "json", archive, bad)
    assert outcome.code == 6
    [entry], [failure] = outcome.json["archives"], outcome.json["failures"]
    assert entry["source"] == str(archive)
    assert entry["read_bytes"] == sum(map(len, app_layers(1)))
    assert entry.keys() == {
        *("source", "images", "read_bytes", "new_chunks", "new_bytes", "warnings")
    }
    assert entry["images"][0].keys() == {"names", "id", "digest", "platform", "layers", "exact"}
    assert entry["images"][0]["layers"][0]["diff_id"] == f"sha256:{sha256(BASE)}"
    assert entry["images"][0]["layers"][0]["status"] == "new"
    assert failure.keys() == {"name", "error", "message", "exit_code"}
    assert (failure["name"], failure["error"]) == (str(bad), "MalformedInput")


@pytest.mark.parametrize("kind", ["docker", "oci", "folder"])
@pytest.mark.parametrize("zstd", [False, True])
def test_what_is_saved_loads_as_the_same_image(
    cli: Cli, tmp_path: Path, kind: str, zstd: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    # A layout whose gzip layers are dropped: zstd has something to do, on a store open for reading.
    cli.ok("load", "--drop-blobs", write_layout(tmp_path / "layout"))
    target = tmp_path / "copy"
    options = ["--zstd"] if zstd else []
    saved = cli.ok("save", "example/app:1", "-o", target, "--as", kind, *options)
    assert saved.out.startswith(f"Saved to {target}: 1 image, 4 blobs, ")
    assert "example/app:1 is saved with the manifest digest sha256:" in saved.err
    other = Cli(tmp_path / "other", capsys)
    other.ok("load", target)
    before, after = (x.ok("inspect", "example/app:1").json[0] for x in (cli, other))
    assert before["summary"]["id"] == after["summary"]["id"]
    assert [x["diff_id"] for x in before["layers"]] == [x["diff_id"] for x in after["layers"]]


def test_save_of_an_unknown_name_leaves_no_file(loaded: Cli, tmp_path: Path) -> None:
    outcome = loaded("save", "example/app:1", "nope", "-o", tmp_path / "o.tar")
    assert outcome.code == 3
    assert outcome.err.endswith(
        "layerstore: no image nope in this store; `layerstore images` lists them\n"
    )
    assert not list(tmp_path.glob("*o.tar*"))


def test_save_into_a_missing_folder_is_the_users_mistake(loaded: Cli, tmp_path: Path) -> None:
    outcome = loaded("save", "example/app:1", "-o", tmp_path / "no" / "o.tar")
    assert outcome.code == 2
    assert "no/o.tar: No such file or directory" in outcome.err


def test_import_of_a_folder_prints_the_id_and_keeps_the_changes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rootfs" / "bin").mkdir(parents=True)
    (tmp_path / "rootfs" / "bin" / "sh").write_bytes(noise(5000))
    outcome = cli.ok(
        *("import", tmp_path / "rootfs", "my/root:1", "-m", "by hand", "-c", 'CMD ["sh"]'),
        *("--change", "ENV A=1", "--platform", "linux/arm64"),
    )
    [image] = cli.ok("inspect", "my/root:1").json
    assert outcome.out == f"{image['summary']['id']}\n"
    assert "imported my/root:1: " in outcome.err
    assert image["runtime"] == {"Cmd": ["sh"], "Env": ["A=1"]}
    assert image["summary"]["platform"].startswith("linux/arm64")
    assert cli.ok("history", "my/root:1", "--format", "json").json[0]["comment"] == "by hand"


def test_import_says_what_is_wrong_with_a_change(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    outcome = cli("import", tmp_path / "rootfs", "a", "-c", "RUN rm -rf /")
    assert (outcome.code, outcome.out) == (2, "")
    assert "cannot apply the change 'RUN rm -rf /'" in outcome.err


def test_import_of_something_missing_makes_no_store(cli: Cli, tmp_path: Path) -> None:
    assert cli("import", tmp_path / "nothing", "a").code == 2
    assert not cli.root.exists()


def test_images_lists_a_line_for_each_name(loaded: Cli) -> None:
    loaded.ok("tag", "example/app:1", "localhost:5000/copy:x")
    head, *rows = loaded.ok("images").out.splitlines()
    assert head.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [row.split()[:2] for row in rows] == [
        ["example/app", "1"],
        ["example/app", "2"],
        ["localhost:5000/copy", "x"],
    ]
    assert loaded.ok("images", "-q").out.split() == [
        sha256(image_config(app_layers(n)))[:12] for n in (1, 2)
    ]
    [first, *_] = loaded.ok("images", "-a", "--no-trunc", "--digests").out.splitlines()[1:]
    assert f"   sha256:{sha256(image_config(app_layers(1)))}   N/A   " in first
    assert first.count("sha256:") == 2


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("example/app", 2),
        ("example/app:2", 1),
        ("docker.io/example/app", 2),
        ("example/*", 2),
        ("*:1", 1),
        ("app", 0),
        ("example", 0),
    ],
)
def test_images_takes_a_pattern(loaded: Cli, pattern: str, count: int) -> None:
    assert len(loaded.ok("images", pattern, "--format", "json").json) == count


def test_images_json(loaded: Cli) -> None:
    for image in loaded.ok("images", "--format", "json").json:
        assert image.keys() == {
            *("names", "id", "digest", "platform", "created", "layers", "size", "loaded_ns")
        }
        assert (image["layers"], type(image["size"])) == (2, int)


def test_images_shows_platforms_when_there_are_several(cli: Cli, tmp_path: Path) -> None:
    cli.ok("load", write_archive(tmp_path / "1.tar", 1))
    assert "PLATFORM" not in cli.ok("images").out
    cli.ok("load", write_archive(tmp_path / "2.tar", 2, architecture="arm64"))
    assert "linux/arm64" in cli.ok("images").out


def test_inspect_gives_a_list_and_what_it_found_before_it_fails(loaded: Cli) -> None:
    outcome = loaded("inspect", "nope", "example/app:1")
    assert outcome.code == 3
    [image] = outcome.json
    assert image.keys() == {"summary", "author", "annotations", "runtime", "layers"}
    assert image["runtime"] == {"Cmd": ["/bin/sh"]}
    assert image["layers"][0].keys() >= {
        *("diff_id", "blob", "media_type", "wrapping", "size", "entries", "chunks"),
        *("stored", "shared", "shared_with"),
    }
    assert image["layers"][0]["size"] == len(BASE)


@pytest.mark.parametrize("form", ["table", "text"])
def test_inspect_for_people(loaded: Cli, form: str) -> None:
    out = loaded.ok("inspect", "--format", form, "example/app:1", "example/app:2").out
    assert out.count("LAYER ") == 2
    assert sha256(BASE)[:12] in out
    assert 'Cmd        ["/bin/sh"]' in out


def test_history_is_newest_first(cli: Cli, tmp_path: Path) -> None:
    steps = [
        {"created": "2020-01-01T00:00:00Z", "created_by": "base"},
        {"created_by": "CMD " + "x" * 100, "empty_layer": True},
        {"created_by": "COPY \x1b[31mapp", "comment": "c"},
    ]
    cli.ok("load", write_archive(tmp_path / "1.tar", 1, history=steps))
    _, top, middle, bottom = cli.ok("history", "example/app:1").out.splitlines()
    assert "COPY \\x1b[31mapp" in top
    assert middle.startswith("<none>   ")
    assert ("x" * 40 + "…") in middle
    assert " years ago   base " in bottom
    assert "x" * 100 in cli.ok("history", "--no-trunc", "example/app:1").out
    assert cli.ok("history", "-q", "example/app:1").out.split() == [
        sha256(layer)[:12] for layer in app_layers(1)[::-1]
    ]
    document = cli.ok("history", "--format", "json", "example/app:1").json
    assert [step["diff_id"] is None for step in document] == [False, True, False]
    assert document[0].keys() == {"created", "created_by", "comment", "diff_id", "size"}


def test_tag_says_nothing_and_rmi_what_it_did(loaded: Cli) -> None:
    outcome = loaded.ok("tag", "example/app:1", "other")
    assert (outcome.out, outcome.err) == ("", "")
    assert loaded.ok("tag", "example/app:1", "o2", "--format", "json").json == {
        "name": "docker.io/library/o2:latest"
    }
    assert loaded.ok("rmi", "other", "o2").out == "Untagged: other:latest\nUntagged: o2:latest\n"
    untagged, deleted = loaded.ok("rmi", "example/app:1").out.splitlines()
    assert untagged == "Untagged: example/app:1"
    assert deleted.startswith("Deleted: sha256:")
    assert loaded("inspect", "example/app:1").code == 3


def test_rmi_goes_on_after_a_failure_and_force_forgives_what_is_missing(loaded: Cli) -> None:
    outcome = loaded("rmi", "nope", "example/app:1")
    assert outcome.code == 3
    assert "Untagged: example/app:1" in outcome.out
    forgiven = loaded.ok("rmi", "-f", "nope", "--format", "json")
    assert forgiven.json == {"removed": [], "failures": []}
    assert "no image nope" in forgiven.err


def test_rmi_of_an_id_with_several_names_needs_force(loaded: Cli) -> None:
    loaded.ok("tag", "example/app:1", "other")
    image_id = sha256(image_config(app_layers(1)))
    assert loaded("rmi", image_id).code == 5
    removed = loaded.ok("rmi", "-f", image_id, "--format", "json").json["removed"]
    assert removed[0]["untagged"] == [
        "docker.io/example/app:1",
        "docker.io/library/other:latest",
    ]


@pytest.mark.parametrize(
    "line",
    [
        *(["images"], ["inspect", "a"], ["history", "a"], ["verify"], ["tag", "a", "b"]),
        *(["rmi", "a"], ["save", "a", "-o", "x"]),
    ],
    ids=lambda line: line[0],
)
def test_without_a_store_there_is_a_hint_and_none_is_made(cli: Cli, line: list[str]) -> None:
    outcome = cli(*line)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == f"layerstore: no store at {cli.root}; `layerstore load` makes one\n"
    assert not cli.root.exists()


def test_a_whole_store_verifies(loaded: Cli) -> None:
    outcome = loaded.ok("verify")
    assert outcome.out.startswith("3 layers, ")
    assert outcome.out.endswith(": everything is whole\n")
    document = loaded.ok("verify", "-q", "--format", "json").json
    assert document.keys() >= {"depth", "layers", "blobs", "chunks", "bytes", "damages", "notes"}
    assert document["depth"] == "everything"
    assert (document["layers"], document["damages"], document["damaged"]) == (3, [], [])


def test_damage_is_named_with_its_images_and_files_and_exits_7(loaded: Cli) -> None:
    chunks = loaded.root / "chunks"
    data = bytearray(chunks.read_bytes())
    at = data.index(noise(100_000)[:2000][500:600])  # noise is stored as it is
    data[at] ^= 1
    chunks.write_bytes(data)
    outcome = loaded("verify")
    assert outcome.code == 7
    assert "1 damage\n" in outcome.out
    assert f"layer sha256:{sha256(BASE)}: " in outcome.out
    assert "    images: example/app:1, example/app:2\n" in outcome.out
    assert "    usr/lib/base\n" in outcome.out
    document = loaded("verify", "--format", "json").json
    [damage] = document["damages"]
    assert damage.keys() == {"what", "name", "problem", "chunks", "paths", "images"}
    assert "usr/lib/base" in damage["paths"]


def test_version_names_what_a_bug_report_needs(cli: Cli) -> None:
    document = cli.ok("version", "--format", "json").json
    assert document["kernels"] in {"native", "pure"}
    assert document["store_format"] == 1
    assert set(document["libraries"]) >= {"lmdb", "numpy", "zstandard", "isal", "blake3"}
    assert f"kernels        {document['kernels']} ({document['simd']})" in cli.ok("version").out
    assert cli.ok("--version").out.startswith("layerstore ")


def test_a_bug_is_one_line_and_with_debug_a_traceback(
    loaded: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("layerstore.api.LayerStore.images", broken)
    outcome = loaded("images")
    assert outcome.code == 70
    assert outcome.err == (
        "layerstore: ZeroDivisionError: oops; this is a bug, run with --debug to see where\n"
    )
    assert "Traceback" in loaded("--debug", "images").err


def test_debug_shows_where_expected_errors_come_from_too(loaded: Cli) -> None:
    assert "Traceback" not in loaded("inspect", "nope").err
    outcome = loaded("--debug", "inspect", "nope")
    assert outcome.code == 3
    assert "Traceback" in outcome.err


def test_save_to_standard_output_is_the_archive_and_nothing_else(
    loaded: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream))
    outcome = loaded("save", "example/app:1", "example/app:2")
    assert outcome.code == 0
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        assert {"manifest.json", "index.json", "oci-layout"} <= set(tar.getnames())


def test_limit_of_the_command_line_or_the_environment_is_named_when_it_is_exceeded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / "app.tar", 1)
    refused = cli("--limit", "entries=1", "load", archive)
    assert refused.code == 6
    assert "raise the limit `entries`" in refused.err
    monkeypatch.setenv("LAYERSTORE_LIMITS", "entries=1 layers=9")
    assert cli("load", archive).code == 6
    wrong = cli("--limit", "size=1", "load", archive)
    assert wrong.code == 2
    assert "layer_bytes" in wrong.err

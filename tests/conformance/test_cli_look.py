"""`ls`, `cat`, `stat`, `export` and `diff` on real stores, through the console entry point."""

from __future__ import annotations

import base64
import io
import os
import stat
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from layerstore.api import open_store
from layerstore.cli.main import main
from tests.support.archive_builders import Image, docker_archive_of
from tests.support.cli_images import Cli
from tests.support.tars import END, as_tarfile_says, entry, noise, pax

if TYPE_CHECKING:
    from pathlib import Path

_BINARY = noise(300_000, 1)
_LOWER = b"".join(
    (
        entry(b"etc/", typeflag=b"5", mode=0o755, mtime=0),
        entry(b"etc/motd", b"hello\n", uid=3, gid=4, mode=0o4640, mtime=1_700_000_000),
        entry(b"etc/link", typeflag=b"2", link=b"/etc/motd", mtime=0),
        entry(b"etc/loop", typeflag=b"2", link=b"loop"),
        entry(b"etc/mess\x1b[31m\n\xff", b"x"),
        entry(b"conf", typeflag=b"2", link=b"etc"),
        entry(b"bin/tool", _BINARY, mode=0o755),
        entry(b"bin/tool2", typeflag=b"1", link=b"bin/tool"),
        entry(b"dev/null", typeflag=b"3", mode=0o666, device=(1, 3), mtime=0),
        pax([(b"SCHILY.xattr.user.a", b"text"), (b"SCHILY.xattr.user.b", b"\xff\x00")]),
        entry(b"noted", b""),
        END,
    )
)
_UPPER = b"".join(
    (
        entry(b"etc/motd", b"hello world\n", uid=3, gid=4, mode=0o4640, mtime=1_700_000_000),
        entry(b".wh.bin", b""),
        entry(b"srv/new", b"12345"),
        END,
    )
)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """A store with `app:1`, and `app:2` with one layer more."""
    monkeypatch.delenv("LAYERSTORE_ROOT", raising=False)
    archive = tmp_path / "app.tar"
    archive.write_bytes(
        docker_archive_of([Image.of([_LOWER], "app:1"), Image.of([_LOWER, _UPPER], "app:2")])
    )
    made = Cli(tmp_path / "store", capsys)
    made.ok("load", "-q", archive)
    return made


def test_ls_lists_the_root_or_a_directory_or_one_thing(cli: Cli) -> None:
    assert cli.ok("ls", "app:1").out.split() == ["bin", "conf", "dev", "etc", "noted"]
    assert cli.ok("ls", "app:1", "bin/").out == "tool\ntool2\n"
    assert cli.ok("ls", "app:1", "/bin/tool").out == "tool\n"
    assert cli.ok("ls", "app:1", "/etc/link").out == "link\n"


def test_ls_of_a_link_to_a_directory_lists_it(cli: Cli) -> None:
    assert cli.ok("ls", "app:1", "conf").out == cli.ok("ls", "app:1", "etc").out


def test_ls_long_is_what_ls_shows(cli: Cli) -> None:
    lines = cli.ok("ls", "-l", "app:1", "/etc").out.splitlines()
    assert lines[-1].split() == ["-rwSr-----", "1", "3", "4", "6", "2023-11-14", "22:13", "motd"]
    assert lines[0].endswith("1970-01-01 00:00  link -> /etc/motd")
    [device] = cli.ok("ls", "-l", "app:1", "/dev").out.splitlines()
    assert device == "crw-rw-rw-  1  0  0  1, 3  1970-01-01 00:00  null"
    assert cli.ok("ls", "-l", "app:1", "bin/tool").out.split()[1] == "2"


def test_ls_recursive_names_every_path_once_a_line(cli: Cli) -> None:
    assert cli.ok("ls", "-R", "app:1").out.splitlines() == [
        *("/bin", "/bin/tool", "/bin/tool2", "/conf", "/dev", "/dev/null", "/etc", "/etc/link"),
        *("/etc/loop", "/etc/mess\\x1b[31m\\n\\udcff", "/etc/motd", "/noted"),
    ]
    document = cli.ok("ls", "-R", "--format", "json", "app:1").json
    assert [os.fsencode(one["path"]) for one in document][9] == b"/etc/mess\x1b[31m\n\xff"


def test_cat_gives_exact_bytes_one_file_after_another(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    line = ["--root", str(cli.root), "cat", "app:1", "conf/link", "/bin/tool2", "noted", "etc/motd"]
    assert main(line) == 0
    assert isinstance(out.buffer, io.BytesIO)
    assert out.buffer.getvalue() == b"hello\n" + _BINARY + b"hello\n"


def test_cat_goes_on_after_what_is_no_file(cli: Cli) -> None:
    outcome = cli("cat", "app:1", "nothing", "/etc", "/dev/null", "etc/loop", "/etc/motd")
    assert (outcome.code, outcome.out) == (3, "hello\n")
    assert outcome.err.splitlines() == [
        "layerstore: app:1: nothing: No such file or directory",
        "layerstore: app:1: /etc: Is a directory",
        "layerstore: '/dev/null' is a character, not a file",
        "layerstore: app:1: etc/loop: Too many levels of symbolic links",
    ]
    assert cli("cat", "app:1", "/etc").code == 2


def test_cat_json_holds_any_bytes(cli: Cli) -> None:
    outcome = cli("cat", "app:1", "--format", "json", "etc/motd", "bin/tool", "no")
    text, binary = outcome.json["files"]
    assert text == {"path": "/etc/motd", "size": 6, "encoding": "utf-8", "content": "hello\n"}
    assert (binary["encoding"], base64.b64decode(binary["content"])) == ("base64", _BINARY)
    assert [(one["name"], one["error"]) for one in outcome.json["failures"]] == [("no", "NotFound")]


def test_stat_shows_the_link_or_what_it_leads_to(cli: Cli) -> None:
    shown = cli.ok("stat", "app:1", "/etc/link").out
    assert "Type       symlink\n" in shown
    assert "Target     /etc/motd\n" in shown
    followed = cli.ok("stat", "-L", "app:1", "/etc/link").out
    assert "Size       6\nMode       4640 (-rwSr-----)\nOwner      3:4\n" in followed
    assert "Modified   2023-11-14 22:13:20.000000000Z\n" in followed
    assert "Device     1, 3\n" in cli.ok("stat", "app:1", "dev/null").out


def test_stat_shows_extended_attributes(cli: Cli) -> None:
    shown = cli.ok("stat", "app:1", "noted").out
    assert shown.endswith('Xattr      user.a="text"\nXattr      user.b=0xff00\n')
    document = cli.ok("stat", "app:1", "noted", "--format", "json").json
    assert document["xattrs"] == {"user.a": "dGV4dA==", "user.b": "/wA="}
    assert document.keys() - {"xattrs"} == {
        *("path", "type", "mode", "uid", "gid", "size", "nlink", "mtime_ns", "target", "device")
    }


def test_an_export_is_the_merged_tree_and_imports_as_the_same_again(
    cli: Cli, tmp_path: Path
) -> None:
    target = tmp_path / "rootfs.tar"
    outcome = cli.ok("export", "app:2", "-o", target)
    assert outcome.out.startswith(f"Exported to {target}: ")
    assert outcome.err.endswith("exported\n")
    tar = target.read_bytes()
    paths = {seen.path: data for seen, data in as_tarfile_says(tar)}
    assert paths[b"etc/motd"] == b"hello world\n"
    assert not [path for path in paths if b"bin" in path or b".wh." in path]
    with open_store(cli.root, read_only=True) as store:
        assert b"".join(store.export("app:2")) == tar
    cli.ok("import", target, "again:1")
    assert cli.ok("diff", "app:2", "again:1", "-q").out == ""
    report = cli.ok("export", "again:1", "-o", target, "-q", "--format", "json")
    assert report.json == {"name": "again:1", "bytes": len(tar)}
    assert target.read_bytes() == tar


def test_an_export_that_fails_leaves_the_old_file_and_nothing_else(
    cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "o.tar").write_bytes(b"old")
    assert cli("export", "nope", "-o", folder / "o.tar").code == 3
    chunks = cli.root / "chunks"
    data = bytearray(chunks.read_bytes())
    data[data.index(_BINARY[200_000:200_100])] ^= 1
    chunks.write_bytes(data)
    assert cli("export", "app:1", "-o", folder / "o.tar").code == 7
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("o.tar", b"old")]
    missing = cli("export", "app:1", "-o", folder / "no" / "o.tar")
    assert missing.code == 2
    assert "no/o.tar: No such file or directory" in missing.err


def test_an_export_goes_to_standard_output_but_not_to_a_terminal(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["--root", str(cli.root), "export", "app:1"]) == 0
    out.buffer.seek(0)
    with tarfile.open(fileobj=out.buffer) as archive:
        content = archive.extractfile("bin/tool")
        assert content is not None
        assert content.read() == _BINARY
    monkeypatch.setattr(out, "isatty", lambda: True)
    assert main(["--root", str(cli.root), "export", "app:1"]) == 2
    assert main(["--root", str(cli.root), "export", "app:1", "--format", "json"]) == 2


def test_diff_prints_what_docker_diff_prints_with_bytes(cli: Cli) -> None:
    outcome = cli.ok("diff", "app:1", "app:2")
    assert outcome.out.splitlines() == [
        "D /bin   300 kB",
        "C /etc/motd   6 B -> 12 B",
        "A /srv",
        "A /srv/new   5 B",
    ]
    assert outcome.err == (
        "layerstore: 2 added (5 B), 1 changed (6 B -> 12 B), 1 deleted (300 kB)\n"
    )
    back = cli.ok("diff", "app:2", "app:1", "-q")
    assert (back.out.count("\n"), back.err) == (5, "")


def test_diff_json(cli: Cli) -> None:
    document = cli.ok("diff", "app:1", "app:2", "--format", "json").json
    assert document["changes"][:2] == [
        {
            "kind": "deleted",
            "path": "/bin",
            "lower_size": 300_000,
            "upper_size": None,
            "fields": [],
        },
        {
            "kind": "changed",
            "path": "/etc/motd",
            "lower_size": 6,
            "upper_size": 12,
            "fields": ["content"],
        },
    ]
    assert document["totals"]["added"] == {"paths": 2, "lower_size": 0, "upper_size": 5}
    back = cli.ok("diff", "app:2", "app:1", "--format", "json").json["totals"]
    assert back["added"]["upper_size"] == 300_000, "two names of one file count once"


@pytest.mark.parametrize("line", [["ls", "x"], ["cat", "x", "y"], ["stat", "x", "y"]])
def test_an_unknown_image_is_not_found(cli: Cli, line: list[str]) -> None:
    outcome = cli(*line)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == "layerstore: no image x in this store; `layerstore images` lists them\n"


def test_a_view_answers_while_its_store_is_open(cli: Cli) -> None:
    with open_store(cli.root, read_only=True) as store:
        view = store.view("app:2")
        assert view.listdir("/etc") == ["link", "loop", "mess\x1b[31m\n\udcff", "motd"]
        assert stat.S_IMODE(view.stat("/etc/motd").st_mode) == 0o4640
        [change, *_] = store.diff("app:1", "app:2")
        assert (change.path, change.upper) == (b"bin", None)

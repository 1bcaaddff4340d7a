"""`df`, `why` and `rmi --dry-run` for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cli_images import BASE, Cli, sha256, write_archive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(tmp_path / "store", capsys)
    cli.ok("load", "-q", write_archive(tmp_path / "app.tar", 1, 2))
    return cli


def test_df_adds_up_in_json_and_says_the_same_in_words(loaded: Cli) -> None:
    usage = loaded.ok("df", "--format", "json").json
    assert usage.keys() == {
        *("images", "layers", "chunks", "split", "overhead", "blobs", "total", "reclaimable")
    }
    shares = sum(image["share"] for image in usage["images"])
    assert shares + sum(usage["overhead"].values()) == usage["total"]
    assert usage["split"]["unpacked"] == sum(image["unpacked"] for image in usage["images"])
    text = loaded.ok("df", "-v").out
    assert text.startswith("IMAGE           IMAGE ID       UNPACKED   BLOBS")
    assert "\nWRAPPING" in text
    assert sum(kind["blobs"] for kind in usage["blobs"]) == 3
    assert "2 images, 3 layers, " in text
    assert "images unpacked" in text
    assert "every layer once" in text
    assert text.count("example/app:") == 2
    assert "example/app" not in loaded.ok("df").out
    assert "would free" not in text
    loaded.ok("rmi", "example/app:1")
    assert "of it `layerstore prune` would free" in loaded.ok("df").out


def test_why_names_the_holders(loaded: Cli) -> None:
    out = loaded.ok("why", "/usr/lib/base").out
    assert out.startswith("file /usr/lib/base: 100 kB, 100 kB stored\n    in 1 layer: ")
    assert out.endswith("    image example/app:1\n    image example/app:2\n")
    assert loaded.ok("why", "/app/main").out.count("file /app/main: 30.0 kB") == 2
    [layer] = loaded.ok("why", sha256(BASE), "--format", "json").json
    assert layer.keys() == {"kind", "name", "size", "stored", "layers", "holders"}
    assert [one["name"][-5:] for one in layer["holders"]] == ["app:1", "app:2"]
    loaded.ok("rmi", "example/app:1", "example/app:2")
    assert "held by nothing" in loaded.ok("why", sha256(BASE)[:12]).out
    assert loaded("why", "/nothing").code == 3


def test_rmi_dry_run_changes_nothing_and_prune_frees_what_it_said(loaded: Cli) -> None:
    both = ("example/app:1", "example/app:2")
    out = loaded.ok("rmi", "--dry-run", *both).out
    assert "Would be untagged: example/app:1\n" in out
    assert " only together\n" in out
    forecast = loaded.ok("rmi", "--dry-run", *both, "--format", "json").json
    assert forecast["freed"] == forecast["shared"] + sum(d["freed"] for d in forecast["deleted"])
    assert len(loaded.ok("images", "--format", "json").json) == 2
    loaded.ok("rmi", *both)
    pruned = loaded.ok("prune", "-f", "--format", "json").json
    assert pruned["bytes"] == forecast["freed"] > 150_000
    assert loaded("rmi", "--dry-run", "example/app:1").code == 3


def test_analyze_compares_archives_and_images_of_the_store(loaded: Cli, tmp_path: Path) -> None:
    write_archive(tmp_path / "more.tar", 3)
    cache = ("--cache", tmp_path / "cache")
    out = loaded.ok("analyze", *cache, tmp_path / "app.tar", tmp_path / "more.tar").out
    assert "3 images, 4 layers, " in out
    assert "layers once, unpacked: Docker" in out
    assert "with index and recipes: layerstore   ~" in out
    assert "PAIRS THAT SHARE MOST" in out
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 4
    again = loaded.ok("analyze", *cache, tmp_path / "app.tar", "--format", "json")
    assert again.json["cached_layers"] == 3
    assert "0 of 3 layers: 0 B known" in again.err
    stored = loaded.ok("analyze", "-q", "--no-cache", "--format", "json")
    assert stored.err == ""
    assert stored.json["savings"] | {"gzip": 0, "registry": 0} == again.json["savings"] | {
        "gzip": 0,
        "registry": 0,
    }
    mixed = loaded.ok("analyze", *cache, tmp_path / "more.tar", "example/app:1", "--format", "json")
    assert len(mixed.json["images"]) == 2
    assert loaded("analyze", *cache, "./nothing.tar").code == 2
    assert loaded("analyze", *cache, "nothing:1").code == 3

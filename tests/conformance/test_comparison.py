"""The comparison runs, its table has what was measured; the lock of the fleet is what its docstring says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.compare import main
from benchmarks.peers import LAYERSTORE, PEERS
from tools.build_fleet import read_lock
from tools.image_writer import write_tree

_LOCK = Path(__file__).parents[2] / "tools/fleet.lock"


@pytest.mark.slow
def test_comparison_measures_and_reports_everybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--peers",
        "cp,zstd,zstd-long",
        "--work",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    document = json.loads((tmp_path / "out/comparison.json").read_bytes())
    results = {result["name"]: result for result in document["results"]}
    said = {*results, *(one["name"] for one in document["absent"])}
    assert said == {*LAYERSTORE, "cp", "zstd", "zstd-long"}
    for name, result in results.items():
        assert f"| {name} | {result['source']} | {result['disk_bytes'] / 1e6:,.0f} |" in table
        assert result["ingest_s"] >= result.get("one_more_s", 0) >= 0
    # One stream holds everything at once, and not only what came last.
    assert "one_more_s" not in results["zstd-long"]
    assert results["zstd-long"]["disk_bytes"] > results["zstd"]["disk_bytes"] / 5
    assert results["layerstore"]["disk_bytes"] < results["cp"]["disk_bytes"] / 3
    assert results["cp"]["disk_bytes"] >= document["context"]["tar_bytes"]
    picture = ElementTree.parse(tmp_path / "out/comparison.svg")
    shown = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert set(results) <= shown


def test_an_absent_program_is_named_with_the_reason() -> None:
    assert PEERS["ctr"].absence() in ("", "needs root") or "not installed" in PEERS["ctr"].absence()
    assert all(peer.absence() or peer.found_version() for peer in (PEERS["cp"], PEERS["zstd"]))


def test_the_fleet_has_100_pinned_images_of_six_projects_on_two_bases() -> None:
    images = read_lock(_LOCK.read_text())
    assert len({image.name for image in images}) == len(images) == 100
    assert set(Counter(image.base for image in images).values()) == {50}
    assert len({image.project for image in images}) == 6
    for image in images:
        names = [pin.partition("==")[0] for pin in image.pins]
        assert all("==" in pin for pin in image.pins)
        assert {"pip", "setuptools", "wheel"} <= set(names) <= {*names} - {image.project}


def test_a_tree_gives_the_same_layer_whenever_and_by_whom_it_was_made(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "opt").mkdir(parents=True)
        (tmp_path / name / "opt/file").write_text("text")
        (tmp_path / name / "opt/link").symlink_to("file")
    digests = {
        write_tree(tmp_path / f"{name}.tar", tmp_path / name, ["opt"], 5, "ADD opt").diff_id
        for name in ("a", "b")
    }
    assert len(digests) == 1

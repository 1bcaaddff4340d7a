"""The page of `analyze --html` in a real browser: the figures of the JSON, no error, no network, dark, small, sorted."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from layerstore.analysis import analyze
from layerstore.analysis.analyzing import summarize
from layerstore.analysis.page import render_page
from layerstore.cli.output import as_json
from tests.support.archive_builders import Image, docker_archive_of, layer_tar
from tests.support.browser import browser
from tests.support.cli_images import Cli, noise
from tests.support.cut_layers import fleet_of_layers, images_of
from tests.support.stores import payload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layerstore.analysis import Analysis
    from tests.support.browser import Browser

pytestmark = pytest.mark.client("chromium", "chromedriver")

HOSTILE = "srv/</script><script>document.title = 'taken'</script><b>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images that share chunks, layers and a file with a name that wants to be a script."""
    path = tmp_path_factory.mktemp("images")
    base = layer_tar({"usr/a": payload(1, 900_000), HOSTILE: noise(100_000, 2)})
    rebuilt = layer_tar({"usr/a": payload(1, 900_000) + b"!", HOSTILE: noise(100_000, 2)})
    for number, below in enumerate((base, base, rebuilt)):
        image = Image.of([below, layer_tar({"app": noise(50_000 + number)})], f"t/app:{number}")
        (path / f"{number}.tar").write_bytes(docker_archive_of([image]))
    return path


@pytest.fixture(scope="module")
def three(folder: Path) -> Analysis:
    return analyze([folder])


def fleet(count: int) -> Analysis:
    layers, stacks = fleet_of_layers(count, 60)
    images, diff_ids = images_of(stacks, len(layers))
    return summarize(images, diff_ids, layers)


def shown(chromium: Browser, found: Analysis, tmp_path: Path) -> None:
    """Open the page; what must hold for every one of them."""
    path = tmp_path / "page.html"
    path.write_text(render_page(found), "utf-8")
    chromium.console()
    chromium.open(path)
    assert chromium.console() == []
    assert chromium.run("return performance.getEntriesByType('resource').length") == 0
    assert chromium.run("return document.title") == "What these images share"
    savings = as_json(found.savings)
    for key in ("unpacked", "layers", "registry", "store"):
        value = f"return Number(document.getElementById('savings-{key}').value)"
        assert chromium.run(value) == savings[key]
        text = f"return document.getElementById('savings-{key}').textContent"
        assert chromium.run(text).startswith("~") == (key in savings["estimates"])
    bars = chromium.run(
        "return [...document.querySelectorAll('#waterfall [data-key]')]"
        ".map(t => [t.dataset.key, Number(t.dataset.value)])"
    )
    assert dict(bars) == {
        key: savings[key]
        for key in ("unpacked", "layers", "files", "chunks", "compressed", "overhead", "store")
    }
    by_label = {one.label.removeprefix("docker.io/"): one for one in found.images}
    rows = table(chromium)
    assert len(rows) == len(by_label)
    for label, values in rows:
        one = by_label[label]
        assert values == [
            *(one.unpacked, one.gzip, one.compressed, one.alone, one.share, one.closest_shared)
        ]
    assert [values[4] for _, values in rows] == sorted((v[4] for _, v in rows), reverse=True)


def table(chromium: Browser) -> list[tuple[str, list[int]]]:
    """The rows of the table of images, as they stand."""
    return [
        (label, values)
        for label, values in chromium.run(
            "return [...document.querySelectorAll('#images tbody tr')].map(tr => ["
            "tr.querySelector('td.name').textContent,"
            "[...tr.querySelectorAll('data')].map(d => Number(d.value))])"
        )
    ]


def colors_in(chromium: Browser, canvas: str) -> int:
    """How many different colours a canvas shows."""
    return int(
        chromium.run(
            "const c = document.getElementById(arguments[0]);"
            "const p = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);"
            "return new Set(p).size",
            canvas,
        )
    )


def test_the_page_shows_what_the_json_says(
    chromium: Browser, three: Analysis, tmp_path: Path
) -> None:
    shown(chromium, three, tmp_path)
    assert colors_in(chromium, "heat") > 3
    assert colors_in(chromium, "tree") > 3
    files = chromium.run("return document.querySelector('#files tbody td.name').textContent")
    assert files == HOSTILE
    chromium.click("#images th:nth-child(3) button")
    assert [v[0] for _, v in table(chromium)] == sorted(
        (i.unpacked for i in three.images), reverse=True
    )
    chromium.click("#images th:nth-child(2) button")
    assert [label for label, _ in table(chromium)] == [f"t/app:{n}" for n in range(3)]


def test_unticking_an_image_is_an_analysis_without_it(
    chromium: Browser, folder: Path, three: Analysis, tmp_path: Path
) -> None:
    shown(chromium, three, tmp_path)
    for gone in range(3):
        left = analyze([folder / f"{number}.tar" for number in range(3) if number != gone])
        box = f"#images tbody input[aria-label='t/app:{gone}']"
        chromium.click(box)
        what = {
            key: chromium.run(f"return Number(document.getElementById('what-{key}').value)")
            for key in ("unpacked", "layers", "store", "freed")
        }
        assert what == {
            "unpacked": left.savings.unpacked,
            "layers": left.savings.layers,
            "store": left.savings.compressed,
            "freed": three.savings.compressed - left.savings.compressed,
        }
        chromium.click(box)
    assert chromium.run("return document.getElementById('what-count').textContent") == "3 of 3"


def test_one_image_alone_and_a_thousand(chromium: Browser, folder: Path, tmp_path: Path) -> None:
    shown(chromium, analyze([folder / "0.tar"]), tmp_path)
    assert chromium.run("return document.getElementById('heat') === null")
    assert colors_in(chromium, "tree") > 1
    found = fleet(1000)
    shown(chromium, found, tmp_path)
    assert colors_in(chromium, "heat") > 10
    order = chromium.run("return data.order")
    assert sorted(order) == list(range(1000))
    # Neighbours stand on one base: that is what the order is for.
    bases = [found.images[position].layers[0] for position in order]
    assert sum(a != b for a, b in pairwise(bases)) < 40
    chromium.run("document.getElementById('filter').value = 'made/77'")
    chromium.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
    rows = "return [...document.querySelectorAll('#images tbody tr')].filter(r => !r.hidden).length"
    assert chromium.run(rows) == 11


def test_dark_light_and_a_phone(chromium: Browser, three: Analysis, tmp_path: Path) -> None:
    shown(chromium, three, tmp_path)
    backgrounds = set()
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.devtools("Emulation.setEmulatedMedia", features=[feature])
        backgrounds.add(chromium.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 3, "mobile": True}
    chromium.devtools("Emulation.setDeviceMetricsOverride", **phone)
    shown(chromium, three, tmp_path)
    assert chromium.run("return document.documentElement.scrollWidth") <= 360
    chromium.devtools("Emulation.clearDeviceMetricsOverride")
    chromium.devtools("Emulation.setEmulatedMedia", features=[])


def test_the_command_writes_page_picture_and_tables(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    cli = Cli(tmp_path / "store", capsys)
    html, png, tables = (tmp_path / name for name in ("a.html", "a.png", "tables"))
    outputs = ("--html", html, "--png", png, "--parquet", tables)
    found = cli.ok("analyze", "-q", "--no-cache", folder, *outputs, "--format", "json").json
    text = html.read_text("utf-8")
    start = text.index('id="analysis">') + len('id="analysis">')
    page = json.loads(text[start : text.index("</script>", start)])
    assert page["savings"] == found["savings"]
    assert [one["share"] for one in page["images"]] == [one["share"] for one in found["images"]]
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width == 1180
    assert height > 1000
    images = pyarrow.read_table(tables / "images.parquet").to_pydict()
    assert images["compressed"] == [one["compressed"] for one in found["images"]]
    pairs = pyarrow.read_table(tables / "pairs.parquet").to_pylist()
    assert [pair["shared"] for pair in pairs] == [
        found["pairs"][pair["first"]][pair["second"]] for pair in pairs
    ]
    assert len(pairs) == 3
    stacks = pyarrow.read_table(tables / "stacks.parquet")
    assert len(stacks) == sum(len(one["layers"]) for one in found["images"])

"""An analysis as one HTML page that needs nothing else: no network, no other file. And as a picture of that page.

    Analysis > JSON in the page, with an order for the matrix > page.html does the rest, in the browser

The figures on the page are those of the JSON. Pairs of more than 300 images are in the page as 1/255 of the smaller image,
and the page says "about" then. Names come from images: they are only ever text in it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerstore.analysis.order import similar_side_by_side
from layerstore.errors import InvalidArgument, Unsupported
from layerstore.reference import parse_reference

if TYPE_CHECKING:
    import numpy.typing as npt

    from layerstore.analysis.report import Analysis

__all__ = ["render_page", "take_picture", "write_page"]

_EXACT_PAIRS = 300  # images; beyond that a matrix of numbers would be most of the page
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WIDTH = 1180  # pixels of a picture
_TIMEOUT_S = 120
_HEIGHT = re.compile(r'data-height="(\d+)"')


def render_page(found: Analysis) -> str:
    """The page."""
    matrix = np.array(found.pairs, "i8").reshape(len(found.images), len(found.images))
    parts = _parts_of_smaller(matrix)
    document: dict[str, Any] = {
        "images": [{**asdict(one), "label": _label(one.names, one.id)} for one in found.images],
        "savings": asdict(found.savings),
        "chunk_count": found.chunk_count,
        "layers": [
            {
                "diff_id": layer.diff_id,
                "unpacked": layer.unpacked,
                "compressed": layer.compressed,
                "images": layer.images,
            }
            for layer in found.layers
        ],
        "duplicated_files": [asdict(one) for one in found.duplicated_files],
        "families": [asdict(one) for one in found.families],
        "suggestions": [asdict(one) for one in found.suggestions],
        "groups": [{"images": g.images, "compressed": g.compressed} for g in found.groups],
        "groups_left": found.groups_left,
        "skipped": [asdict(one) for one in found.skipped],
        "order": similar_side_by_side(parts),
    }
    if len(found.images) <= _EXACT_PAIRS:
        document["pairs"] = found.pairs
    else:
        quantized = np.round(parts * 255).astype("u1").tobytes()
        document["parts"] = base64.b64encode(quantized).decode()
    # Inside a script element only "</script" and "<!--" mean anything.
    text = json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
    template = files("layerstore.analysis").joinpath("page.html").read_text("utf-8")
    return template.replace("@DATA@", text)


def write_page(page: str, target: Path) -> None:
    """Write a page to a file. Raises: InvalidArgument: it cannot be written."""
    try:
        target.write_text(page, "utf-8")
    except OSError as error:
        raise InvalidArgument(f"{target}: {error.strerror}") from error


def take_picture(page: str, target: Path) -> None:
    """Write a page as a PNG, as a headless Chromium shows it.

    Raises: Unsupported: no Chromium is installed, or it fails. InvalidArgument: the target cannot be written.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise Unsupported(
            "a picture is taken by Chromium, which is not installed; install it (Debian: chromium), or write the page"
        )
    with tempfile.TemporaryDirectory(prefix="layerstore-picture-") as folder:
        path, picture = Path(folder, "page.html"), Path(folder, "page.png")
        path.write_text(page, "utf-8")
        dom = _browse(browser, folder, path, "--dump-dom", f"--window-size={_WIDTH},1000")
        height = _HEIGHT.search(dom)
        if height is None:
            raise Unsupported(f"{browser} does not run the page")
        size = f"--window-size={_WIDTH},{height[1]}"
        _browse(browser, folder, path, f"--screenshot={picture}", size)
        try:
            shutil.copyfile(picture, target)
        except FileNotFoundError:
            raise Unsupported(f"{browser} has taken no picture") from None
        except OSError as error:
            raise InvalidArgument(f"{target}: {error.strerror}") from error


def _browse(browser: str, folder: str, page: Path, *arguments: str) -> str:
    command = [
        browser, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-extensions",
        f"--user-data-dir={folder}/profile", *arguments,
    ]  # fmt: skip
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium refuses root otherwise; the page is our own
    try:
        done = subprocess.run(
            [*command, page.as_uri()], capture_output=True, timeout=_TIMEOUT_S, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise Unsupported(f"{browser}: {error}") from error
    return done.stdout.decode("utf-8", "replace")


def _parts_of_smaller(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Of each pair, which part of the smaller image is shared."""
    stored = matrix.diagonal()
    smaller = np.minimum(stored[:, None], stored[None, :])
    return matrix / np.maximum(smaller, 1)


def _label(names: tuple[str, ...], image_id: str) -> str:
    if not names:
        return image_id.removeprefix("sha256:")[:12]
    name, _, platform = names[0].partition(" ")
    with suppress(InvalidArgument):
        name = parse_reference(name).familiar()
    return f"{name} {platform}".rstrip()

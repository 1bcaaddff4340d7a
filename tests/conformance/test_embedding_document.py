"""The Python blocks of docs/embedding.md run as they stand, one after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.archive_builders import Image, docker_archive_of, layer_tar

if TYPE_CHECKING:
    import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "embedding.md"


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer_tar({"etc/a": b"first" * 5000}), layer_tar({"etc/b": b"second"})]
    (tmp_path / "app.tar").write_bytes(docker_archive_of([Image.of(layers, "demo/app:1")]))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)

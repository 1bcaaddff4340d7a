from __future__ import annotations

from pathlib import Path

import pytest

from layerstore.cli.settings import Settings, default_root
from layerstore.errors import FailedPrecondition, NotFound


def test_the_superuser_has_the_store_of_the_system() -> None:
    assert default_root({"XDG_DATA_HOME": "/x"}, is_superuser=True) == Path("/var/lib/layerstore")


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_everybody_else_has_one_at_home(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    at_home = Path("/home/somebody/.local/share/layerstore")
    assert default_root({}, is_superuser=False) == at_home
    assert default_root({"XDG_DATA_HOME": value}, is_superuser=False) == at_home
    assert default_root({"XDG_DATA_HOME": "/d"}, is_superuser=False) == Path("/d/layerstore")


def test_only_filling_makes_a_store(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "store")
    with pytest.raises(NotFound):
        settings.open_for_reading()
    with pytest.raises(NotFound):
        settings.open_for_writing(create=False)
    assert not settings.root.exists()
    settings.open_for_writing(create=True).close()
    with settings.open_for_reading() as store, pytest.raises(FailedPrecondition):
        store.store.begin()

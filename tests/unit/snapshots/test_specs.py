from __future__ import annotations

from pathlib import Path

from layerstore.mount.upper import RootAttributes
from layerstore.snapshots import Lower
from layerstore.snapshots.specs import MountSpec, active_specs, view_specs

UPPER, WORK = Path("/s/fs"), Path("/s/work")
ROOT = RootAttributes.implied()


def test_data_layers_follow_the_lower_behind_double_colons() -> None:
    (spec,) = active_specs(UPPER, WORK, Lower(Path("/m"), ROOT, (Path("/d1"), Path("/d2"))))
    assert spec == MountSpec(
        "overlay",
        "overlay",
        (
            *("index=off", "redirect_dir=on", "metacopy=on"),
            *("workdir=/s/work", "upperdir=/s/fs", "lowerdir=/m::/d1::/d2"),
        ),
    )


def test_a_view_of_data_layers_is_an_overlay_without_an_upper() -> None:
    (spec,) = view_specs(UPPER, Lower(Path("/m"), ROOT, (Path("/d"),)))
    assert spec.type == "overlay"
    assert "ro" in spec.options
    assert not any(option.startswith(("upperdir", "workdir")) for option in spec.options)


def test_separators_in_paths_are_escaped() -> None:
    (spec,) = active_specs(UPPER, WORK, Lower(Path("/a:b,c\\d"), ROOT))
    assert spec.options[-1] == "lowerdir=/a\\:b\\,c\\\\d"

from __future__ import annotations

import pytest

from layerstore.errors import InvalidArgument
from layerstore.formats.platform import Platform, parse_platform, rank


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64/v1"),
        ("Linux/x86_64", "linux/amd64/v1"),
        ("linux/aarch64", "linux/arm64/v8"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/i686", "linux/386"),
        ("linux/s390x", "linux/s390x"),
        ("windows/amd64/v3", "windows/amd64/v3"),
    ],
)
def test_each_platform_has_one_spelling(text: str, normal: str) -> None:
    assert str(parse_platform(text)) == normal


@pytest.mark.parametrize(
    "text", ["", "linux", "a/b/c/d", "linux/", "linux/am d64", "linux/amd64\n"]
)
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="linux/amd64"):
        parse_platform(text)


def test_exact_is_best_then_the_highest_lower_level_and_a_higher_one_never_runs() -> None:
    want = Platform("linux", "arm64", "v8.2")
    levels = [rank(Platform("linux", "arm64", v), want) for v in ("v8", "v8.1", "v8.2")]
    assert None not in levels
    assert sorted(levels, key=lambda x: x or ()) == levels
    assert len(set(levels)) == 3
    for variant in ("v8.3", "v9", "odd"):
        assert rank(Platform("linux", "arm64", variant), want) is None


def test_the_os_version_does_not_decide() -> None:
    assert rank(
        Platform("windows", "amd64", "", "10.0.1"), Platform("windows", "amd64", "", "10.0.2")
    )

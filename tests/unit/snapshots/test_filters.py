from __future__ import annotations

from dataclasses import replace

import pytest

from layerstore.errors import InvalidArgument
from layerstore.snapshots import Info, SnapshotKind
from layerstore.snapshots.filters import parse_filters

ITEM = Info("one", "base", SnapshotKind.VIEW, {"a.b/c": "x,y", "n": "5", 'q"': "\n"}, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "name==one",
        "name == one , kind == view",
        "name!=two",
        "name~=^o",
        'name~="n.$"',
        "name~=/^(one|two)$/",
        "name~=|o.e|",
        'labels."a.b/c"=="x,y"',
        'labels.a."b/c"=="x,y"',
        "labels.n",
        "labels.n==5",
        r'labels."q\""=="\n"',
        r'labels."q\""=="\x0a"',
        r'labels."q\""=="\012"',
        r'labels."q\""=="\u000a"',
        "labels.none!=5",
        "unknown!=x",
        "parent",
        "parent==base",
        'parent!=""',
        "labels.none~=^$",
    ],
)
def test_what_matches(text: str) -> None:
    assert parse_filters([text])(ITEM)


@pytest.mark.parametrize(
    "text",
    [
        "name==two",
        "kind==View",
        "kind==active",
        "unknown",
        "unknown==one",
        "labels",
        "labels.none",
        "name==one,kind==active",
        "name~=^n",
        "name.more==one",
    ],
)
def test_what_does_not_match(text: str) -> None:
    assert not parse_filters([text])(ITEM)


@pytest.mark.parametrize(
    "text",
    [
        *("==x", "name==", "name=one", "name==one,", "name==one kind==view", ",name", "name..x"),
        *('name=="open', "name==a\"b", "labels.", "name~=(", "1name", r'name=="\q"'),
    ],
)  # fmt: skip
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(InvalidArgument, match="filter"):
        parse_filters([text])


def test_a_bottom_layer_has_an_empty_parent() -> None:
    """containerd looks for what a remote snapshotter has made by `parent==""`, among others."""
    bottom = replace(ITEM, parent="")
    assert parse_filters(['parent==""'])(bottom)
    assert not parse_filters(['parent!=""'])(bottom)
    assert not parse_filters(['parent==""'])(ITEM)


def test_a_list_is_an_or_and_an_empty_one_everything() -> None:
    assert parse_filters(["name==two", "name==one"])(ITEM)
    assert not parse_filters(["name==two", "name==three"])(ITEM)
    assert parse_filters([])(ITEM)

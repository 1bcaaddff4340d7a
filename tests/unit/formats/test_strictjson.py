from __future__ import annotations

import pytest

from layerstore.errors import MalformedInput
from layerstore.formats.strictjson import Place, open_document, parse_json


def test_a_place_names_the_path_to_what_is_wrong() -> None:
    root = open_document(b'{"a": [{"b": {"c": 1}}]}', 100, "doc")
    with pytest.raises(MalformedInput, match=r"^doc: a\[0\].b.c: must be a string, is a number$"):
        root.sequence("a", lambda place: place.at("b").text("c"))


def test_absent_and_null_are_the_same() -> None:
    for data in (b"{}", b'{"x": null}'):
        root = open_document(data, 100, "doc")
        assert not root.has("x")
        assert root.text("x") == ""
        assert root.flag("x") is False
        assert root.member("x") is None
        assert root.texts("x") == {}
        assert root.sequence("x", Place.as_text) == ()


def test_a_flag_is_a_boolean_and_nothing_that_is_true() -> None:
    root = open_document(b'{"yes": true, "one": 1}', 100, "doc")
    assert root.flag("yes") is True
    with pytest.raises(MalformedInput, match="one: must be true or false"):
        root.flag("one")


def test_any_json_value_may_stand_at_the_top() -> None:
    assert parse_json(b"[1, 2.5, null]", 100, "doc") == [1, 2.5, None]


def test_the_limit_is_inclusive() -> None:
    assert parse_json(b"[]", 2, "doc") == []
    with pytest.raises(MalformedInput):
        parse_json(b"[] ", 2, "doc")

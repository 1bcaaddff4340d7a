from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from layerstore.errors import InvalidArgument
from layerstore.reference import parse_reference, path_part_from


@given(st.text(max_size=300))
def test_a_path_part_made_of_any_text_is_valid_or_empty(text: str) -> None:
    part = path_part_from(text)
    if part and len(part) < 64:
        assert parse_reference(f"h.io/{part}:t").path == part


@given(st.text(st.sampled_from("ab1.:/@_-[]LATEST"), min_size=1, max_size=60))
def test_every_accepted_reference_is_read_back_from_both_its_forms(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidArgument:
        return
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar()) == reference

from __future__ import annotations

import pytest

from layerstore.errors import InvalidArgument
from layerstore.reference import is_tag, parse_reference

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("python", "docker.io/library/python:latest", "python:latest"),
        ("python:3.12", "docker.io/library/python:3.12", "python:3.12"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("docker.io/python:3", "docker.io/library/python:3", "python:3"),
        ("index.docker.io/user/app:1", "docker.io/user/app:1", "user/app:1"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("host:5000/x/y:t", "host:5000/x/y:t", "host:5000/x/y:t"),
        ("[fe80::1]:80/x:t", "[fe80::1]:80/x:t", "[fe80::1]:80/x:t"),
        ("Host/x", "Host/x:latest", "Host/x:latest"),
        ("a.b/c", "a.b/c:latest", "a.b/c:latest"),
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        ("library/x/y", "docker.io/library/x/y:latest", "library/x/y:latest"),
        (f"python@{DIGEST}", f"docker.io/library/python@{DIGEST}", f"python@{DIGEST}"),
        (f"x:1@{DIGEST}", f"docker.io/library/x:1@{DIGEST}", f"x:1@{DIGEST}"),
        ("a__b/c--d/e.f_g:A_B.c-d", "docker.io/a__b/c--d/e.f_g:A_B.c-d", "a__b/c--d/e.f_g:A_B.c-d"),
    ],
)
def test_short_names_are_completed_as_docker_does(text: str, full: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == full
    assert reference.familiar() == familiar
    assert parse_reference(full) == parse_reference(familiar) == reference


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("Python", "lower case; try 'library/python'"),
        ("user/App:1", "lower case"),
        ("x:", "not a tag"),
        ("x:.hidden", "not a tag"),
        ("x:" + "t" * 129, "not a tag"),
        ("x:t\n", "not a tag"),
        ("x@sha256:12", "not a sha256 digest"),
        ("x@", "not a sha256 digest"),
        ("a" * 64, "image ID"),
        ("https://host/x", "leave out https://"),
        ("docker.io/", "missing"),
        ("/x", "not a repository"),
        ("a//b", "not a repository"),
        ("a___b", "not a repository"),
        ("-a", "not a repository"),
        ("h/a..b/c", "not a repository"),
        ("a..b/../c", "not a registry"),
        ("x y", "not a repository"),
        ("ü", "not a repository"),
        ("ho_st:5000/x", "not a registry"),
        ("x/" + "a" * 245, "longer than 255"),
        ("a" * 2000, "too long"),
    ],
)
def test_a_bad_reference_is_refused_and_the_message_says_why(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        parse_reference(text)


def test_longest_allowed_name_and_tag() -> None:
    name = "h.io/" + "a" * 250
    assert str(parse_reference(f"{name}:{'t' * 128}")) == f"{name}:{'t' * 128}"
    with pytest.raises(InvalidArgument):
        parse_reference(name + "a")


def test_with_tag_drops_the_digest() -> None:
    reference = parse_reference(f"x:1@{DIGEST}")
    assert str(reference.with_tag("2")) == "docker.io/library/x:2"
    assert reference.name == "docker.io/library/x"
    with pytest.raises(InvalidArgument):
        reference.with_tag("no tag")


def test_is_tag() -> None:
    assert is_tag("latest")
    assert not is_tag("a/b")
    assert not is_tag("latest\n")

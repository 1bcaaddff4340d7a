from __future__ import annotations

import json
from dataclasses import replace

import pytest

from layerstore.digest import Digest
from layerstore.errors import MalformedInput, NotFound, Unsupported
from layerstore.formats import oci

A, B, C = (Digest("sha256:" + x * 64) for x in "abc")


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


def descriptor(
    media_type: str = oci.OCI_LAYER_GZIP, digest: str = A, **fields: object
) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": 7, **fields}


def manifest(**fields: object) -> dict[str, object]:
    document = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "config": descriptor(oci.OCI_CONFIG, B),
        "layers": [descriptor()],
    }
    return {key: value for key, value in {**document, **fields}.items() if value is not ...}


def index(*manifests: dict[str, object], **fields: object) -> dict[str, object]:
    return {"schemaVersion": 2, "manifests": list(manifests), **fields}


def entry(platform: str, digest: str = A, **fields: object) -> dict[str, object]:
    os, architecture, *variant = platform.split("/")
    value = {"os": os, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
    return descriptor(oci.OCI_MANIFEST, digest, platform=value, **fields)


def test_a_manifest_is_read_whole() -> None:
    document = manifest(
        annotations={"k": "v"}, subject=descriptor(oci.OCI_MANIFEST, C), unknown=[1.5, None]
    )
    parsed = oci.parse_document(dump(document), None, "m")
    assert isinstance(parsed, oci.Manifest)
    assert parsed.config == oci.Descriptor(oci.OCI_CONFIG, B, 7)
    assert parsed.layers == (oci.Descriptor(oci.OCI_LAYER_GZIP, A, 7),)
    assert parsed.annotations == {"k": "v"}
    assert parsed.subject is not None
    assert parsed.subject.digest == C
    assert oci.is_image_manifest(parsed)


def test_a_config_is_read_whole() -> None:
    document = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "created": "2024-01-01T00:00:00Z",
        "author": "me",
        "config": {"Env": ["A=1"], "Labels": None},
        "rootfs": {"type": "layers", "diff_ids": [A, B]},
        "history": [{"created_by": "x", "empty_layer": True}, {}],
    }
    config = oci.parse_config(dump(document), "c")
    assert config.diff_ids == (A, B)
    assert str(config.platform) == "linux/arm64/v8"
    assert config.history == (
        oci.HistoryEntry(created_by="x", empty_layer=True),
        oci.HistoryEntry(),
    )
    assert config.runtime["Env"] == ["A=1"]
    assert (config.created, config.author) == ("2024-01-01T00:00:00Z", "me")
    with pytest.raises(TypeError):
        config.runtime["Env"] = []  # type: ignore[index]  # that is the point


def test_an_image_from_scratch_has_null_where_lists_could_be() -> None:
    config = oci.parse_config(
        dump({"rootfs": {"type": "layers", "diff_ids": None}, "history": None}), "c"
    )
    assert config.diff_ids == ()
    assert config.runtime == {}
    parsed = oci.parse_manifest(dump(manifest(layers=None)), "m")
    assert parsed.layers == ()
    assert oci.parse_index(dump({"schemaVersion": 2, "manifests": None}), "i").manifests == ()


@pytest.mark.parametrize(
    ("document", "served_as", "kind"),
    [
        (manifest(), None, oci.Manifest),
        (manifest(mediaType=...), None, oci.Manifest),
        (manifest(mediaType=...), oci.DOCKER_MANIFEST, oci.Manifest),
        (manifest(mediaType="application/unknown"), None, oci.Manifest),
        (index(mediaType=oci.DOCKER_INDEX), None, oci.Index),
        (index(), None, oci.Index),
        (index(), oci.OCI_INDEX, oci.Index),
        (index(mediaType=oci.OCI_INDEX), oci.OCI_MANIFEST, oci.Index),
    ],
)
def test_own_media_type_decides_then_the_served_one_then_the_shape(
    document: dict[str, object], served_as: str | None, kind: type
) -> None:
    assert isinstance(oci.parse_document(dump(document), served_as, "d"), kind)


def test_media_type_of_a_manifest_without_one_follows_its_config() -> None:
    docker = manifest(mediaType=..., config=descriptor(oci.DOCKER_CONFIG, B))
    assert oci.parse_manifest(dump(docker), "m").media_type == oci.DOCKER_MANIFEST
    assert oci.parse_manifest(dump(manifest(mediaType=...)), "m").media_type == oci.OCI_MANIFEST


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (dump(manifest(manifests=[])), "also an index"),
        (dump(index(layers=[descriptor()])), "also a manifest"),
        (dump(index(config=descriptor())), "also a manifest"),
        (dump(manifest(mediaType=oci.OCI_INDEX)), "also a manifest"),
        (dump({"schemaVersion": 2}), "neither"),
        (dump([]), "must be an object, is an array"),
        (dump(manifest(config=...)), "config is missing"),
        (dump(manifest(layers={})), "layers: must be an array, is an object"),
        (dump(manifest(layers=[descriptor(), 1])), r"layers\[1\]: must be an object, is a number"),
        (
            dump(manifest(layers=[descriptor(digest="sha256:12")])),
            r"layers\[0\].digest: not a sha256",
        ),
        (dump(manifest(layers=[descriptor(digest="../../etc/passwd")])), "not a sha256 digest"),
        (dump(manifest(layers=[descriptor(size=-1)])), r"layers\[0\].size: -1 is not a size"),
        (dump(manifest(layers=[descriptor(size=1 << 63)])), "is not a size"),
        (dump(manifest(layers=[descriptor(size=True)])), "must be an integer, is a boolean"),
        (dump(manifest(layers=[descriptor(size=7.0)])), "must be an integer, is a number"),
        (dump(manifest(layers=[descriptor(size=None)])), "must be an integer, is missing"),
        (dump(manifest(annotations={"a": 1})), "annotations.a: must be a string"),
        (dump(manifest(config=descriptor(platform="linux"))), "config.platform: must be an object"),
        (dump(manifest(mediaType=2)), "mediaType: must be a string"),
        (b"", "not acceptable JSON"),
        (b"{", "not acceptable JSON"),
        (b'{"layers": [], "layers": []}', "'layers' occurs twice"),
        (b'{"x": {"a": 1, "a": 2}}', "'a' occurs twice"),
        (b'{"x": NaN}', "NaN is not JSON"),
        (b'{"x": ' + b"9" * 21 + b"}", "integer of 21 digits"),
        (b'{"x": ' + b"9" * 100_000 + b"}", "integer of 100000 digits"),
        (b'{"x": "\\ud800"}', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b'{"x": "\xff"}', "not UTF-8"),
        ('{"x": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested too deeply"),
        (b" " * (oci.MANIFEST_LIMIT + 1), "are allowed"),
    ],
)
def test_hostile_documents_are_malformed_and_the_message_says_where(data: bytes, says: str) -> None:
    with pytest.raises(MalformedInput, match=says) as caught:
        oci.parse_document(data, None, "the source")
    assert str(caught.value).startswith("the source")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"rootfs": {"type": "squash"}},
        {"rootfs": {"diff_ids": ["x"]}},
        {"rootfs": {}, "history": [[]]},
    ],
)
def test_what_is_no_image_config_is_malformed(document: object) -> None:
    with pytest.raises(MalformedInput):
        oci.parse_config(dump(document), "c")


def test_paired_surrogates_are_plain_text() -> None:
    parsed = oci.parse_manifest(dump(manifest(annotations={"k": "\U0001f600"})), "m")
    assert parsed.annotations == {"k": "\U0001f600"}


def test_docker_schema_1_is_unsupported() -> None:
    signed = {"schemaVersion": 1, "name": "x", "fsLayers": []}
    with pytest.raises(Unsupported):
        oci.parse_document(dump(signed), None, "m")
    with pytest.raises(Unsupported):
        oci.parse_document(
            dump({"name": "x"}), "application/vnd.docker.distribution.manifest.v1+prettyjws", "m"
        )


def test_an_attestation_is_a_manifest_but_no_image() -> None:
    statement = descriptor(
        "application/vnd.in-toto+json", annotations={"in-toto.io/predicate-type": "x"}
    )
    parsed = oci.parse_manifest(dump(manifest(layers=[statement])), "m")
    assert not oci.is_image_manifest(parsed)
    artifact = oci.parse_manifest(
        dump(manifest(config=descriptor("application/vnd.oci.empty.v1+json"))), "m"
    )
    assert not oci.is_image_manifest(artifact)


@pytest.mark.parametrize(
    ("media_type", "layer", "foreign"),
    [
        (oci.OCI_LAYER, True, False),
        (oci.OCI_LAYER_ZSTD, True, False),
        (oci.DOCKER_LAYER_GZIP, True, False),
        (oci.DOCKER_FOREIGN_LAYER_GZIP, True, True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True, True),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", True, False),
        ("application/vnd.in-toto+json", False, False),
        (oci.OCI_CONFIG, False, False),
    ],
)
def test_layers_are_known_by_their_type(media_type: str, layer: bool, foreign: bool) -> None:
    value = oci.Descriptor(media_type, A, 1)
    assert oci.is_layer(value) is layer
    assert oci.is_foreign_layer(value) is foreign


@pytest.mark.parametrize(
    ("want", "there", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/x86_64", ["linux/amd64"], 0),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], 1),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/aarch64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], 2),
        ("linux/arm/v6", ["linux/arm/v5", "linux/arm/v7"], 0),
        ("linux/arm/v8", ["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/amd64/v3", ["linux/amd64/v4", "linux/amd64/v2", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64"], 1),
        ("linux/ppc64le", ["linux/ppc64le/power8", "linux/s390x"], 0),
        ("linux/arm/v10", ["linux/arm/v9", "linux/arm/v10"], 1),
    ],
)
def test_the_best_variant_that_runs_is_selected(want: str, there: list[str], chosen: int) -> None:
    entries = [entry(p, "sha256:" + f"{i:064x}") for i, p in enumerate(there)]
    parsed = oci.parse_index(dump(index(*entries)), "i")
    assert oci.select_platform(parsed, oci.parse_platform(want)) is parsed.manifests[chosen]


@pytest.mark.parametrize(
    ("want", "there"),
    [
        ("linux/arm/v6", ["linux/arm/v7"]),
        ("linux/amd64", ["linux/arm64", "linux/amd64/v2"]),
        ("windows/amd64", ["linux/amd64"]),
        ("linux/amd64", ["unknown/unknown"]),
        ("linux/amd64", []),
    ],
)
def test_when_nothing_runs_the_error_lists_what_there_is(want: str, there: list[str]) -> None:
    parsed = oci.parse_index(dump(index(*map(entry, there))), "i")
    with pytest.raises(NotFound) as caught:
        oci.select_platform(parsed, oci.parse_platform(want))
    assert all(p in str(caught.value) for p in there if "unknown" not in p)


def test_attestations_are_never_selected() -> None:
    note = {"vnd.docker.reference.type": "attestation-manifest"}
    parsed = oci.parse_index(
        dump(index(entry("linux/amd64", A, annotations=note), entry("linux/amd64", B))), "i"
    )
    assert oci.select_platform(parsed, oci.parse_platform("linux/amd64")).digest == B


def test_an_entry_without_platform_is_taken_only_when_alone() -> None:
    plain = descriptor(oci.OCI_MANIFEST)
    attestation = entry("unknown/unknown", B)
    want = oci.parse_platform("linux/amd64")
    assert (
        oci.select_platform(oci.parse_index(dump(index(plain, attestation)), "i"), want).digest == A
    )
    for others in ([descriptor(oci.OCI_MANIFEST, C)], [entry("linux/arm64", C)]):
        with pytest.raises(NotFound):
            oci.select_platform(oci.parse_index(dump(index(plain, *others)), "i"), want)


def test_encoded_documents_are_read_back_and_do_not_depend_on_order_of_annotations() -> None:
    layer = oci.Descriptor(oci.OCI_LAYER_ZSTD, A, 9, {"b": "2", "a": "ü"}, urls=("u",))
    config = oci.Descriptor(oci.OCI_CONFIG, B, 1, artifact_type="t")
    data = oci.encode_manifest(config, [layer], {"y": "1", "x": "2"})
    assert data == oci.encode_manifest(
        config, [replace(layer, annotations={"a": "ü", "b": "2"})], {"x": "2", "y": "1"}
    )
    parsed = oci.parse_document(data, None, "m")
    assert parsed == oci.Manifest(oci.OCI_MANIFEST, config, (layer,), {"x": "2", "y": "1"})
    entries = [
        oci.Descriptor(oci.OCI_MANIFEST, C, 3, platform=oci.Platform("linux", "arm", "v7", "1.2"))
    ]
    assert oci.parse_document(oci.encode_index(entries), None, "i") == oci.Index(
        oci.OCI_INDEX, tuple(entries)
    )
    assert b'"mediaType":"' + oci.OCI_INDEX.encode() in oci.encode_index(entries)


def test_extending_an_index_replaces_names_and_keeps_all_else() -> None:
    old = index(
        descriptor(oci.OCI_MANIFEST, A, annotations={oci.ANNOTATION_REF_NAME: "1"}, data="e30="),
        descriptor(oci.OCI_MANIFEST, B, annotations={oci.ANNOTATION_REF_NAME: "2"}),
        descriptor(oci.OCI_MANIFEST, C),
        other="kept",
    )
    fresh = [
        oci.Descriptor(oci.OCI_MANIFEST, C, 5, {oci.ANNOTATION_REF_NAME: "2"}),
        oci.Descriptor(oci.OCI_MANIFEST, C, 5),
    ]
    data = oci.extend_index(dump(old), fresh, "index.json")
    parsed = oci.parse_index(data, "i")
    assert [(d.digest, d.annotations.get(oci.ANNOTATION_REF_NAME)) for d in parsed.manifests] == [
        (A, "1"), (C, "2"), (C, None),
    ]  # fmt: skip
    assert json.loads(data)["other"] == "kept"
    assert json.loads(data)["manifests"][0]["data"] == "e30="

from __future__ import annotations

import gzip
import io
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstore.archives import DockerArchive, open_archive
from layerstore.digest import digest_of
from layerstore.errors import LayerstoreError
from layerstore.formats import oci
from tests.support.archive_builders import (
    docker_archive,
    layer_tar,
    oci_layout,
    tar_of,
    write_folder,
)

if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.archives import ImageArchive

LAYER = layer_tar({"a": b"x"})
ARCHIVES = [
    docker_archive([LAYER], style="old"),
    docker_archive([LAYER], style="new"),
    docker_archive([LAYER], style="combined"),
    tar_of(oci_layout([LAYER])),
    gzip.compress(tar_of(oci_layout([LAYER]))),
]
each_size = st.sampled_from([1, 2, 8, 600])
quick = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def use(archive: ImageArchive) -> None:
    """Read all that the archive promises."""
    if isinstance(archive, DockerArchive):
        for image in archive.images():
            for name in image.layers:
                with archive.open_member(name)[0] as reader:
                    reader.read()
        return
    for root in archive.roots():
        data = archive.read_blob(root.descriptor, oci.MANIFEST_LIMIT)
        assert digest_of(data) == root.descriptor.digest
        document = oci.parse_document(data, root.descriptor.media_type, "root")
        if isinstance(document, oci.Manifest):
            oci.parse_config(archive.read_blob(document.config, oci.CONFIG_LIMIT), "config")


@given(st.sampled_from(ARCHIVES), st.data())
@quick
def test_a_damaged_archive_is_refused_with_our_errors_or_used(
    tmp_path: Path, good: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(good)))
    patch = data.draw(st.binary(max_size=12))
    drop = data.draw(each_size)
    damaged = good[:at] + patch + good[at + drop :]
    try:
        with open_archive(io.BytesIO(damaged), tmp_path) as archive:
            use(archive)
    except LayerstoreError as error:
        assert str(error)  # noqa: PT017  # any of them is right; another exception fails the test


@given(st.binary(max_size=2000), st.booleans())
@quick
def test_noise_is_never_an_archive(tmp_path: Path, noise: bytes, packed: bool) -> None:
    data = gzip.compress(noise) if packed else noise
    with pytest.raises(LayerstoreError):
        open_archive(io.BytesIO(data), tmp_path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just("sha256:" + "0" * 64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "manifests",
                    "layers",
                    "config",
                    "digest",
                    "size",
                    "mediaType",
                    "platform",
                    "annotations",
                    "rootfs",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(json_values, st.sampled_from(["index.json", "oci-layout", "manifest.json"]))
@quick
def test_documents_of_any_shape_are_refused_or_read(
    tmp_path: Path, document: object, name: str
) -> None:
    files = oci_layout([LAYER]) | {name: json.dumps(document).encode()}
    folder = write_folder(tmp_path / "layout", files)
    for source in (folder, io.BytesIO(tar_of(files))):
        try:
            with open_archive(source, tmp_path) as archive:
                use(archive)
        except LayerstoreError as error:
            assert str(error)  # noqa: PT017  # as above
    for parse in (oci.parse_manifest, oci.parse_index, oci.parse_config):
        try:
            parse(files[name], "document")
        except LayerstoreError as error:
            assert str(error).startswith("document")  # noqa: PT017  # as above

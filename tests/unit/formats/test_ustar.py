"""A plain header is the one that tarfile writes, and there is none where tarfile needs more than one block."""

from __future__ import annotations

import tarfile

from hypothesis import example, given
from hypothesis import strategies as st

from layerstore.formats.ustar import plain_header

_KINDS = (b"0", b"1", b"2", b"3", b"4", b"5", b"6")
_NAMES = st.text(st.sampled_from("ab/. é\udcff"), min_size=1, max_size=110)
_EDGES = st.sampled_from([0, 1, 8**7 - 1, 8**7, 8**11 - 1, 8**11, -1])
_NUMBERS = _EDGES | st.integers(-5, 8**12)


@given(
    _NAMES, _NAMES | st.just(""), st.sampled_from(_KINDS), st.integers(0, 0o177777), *[_NUMBERS] * 4
)
@example("n" * 100, "", b"0", 0o4755, 0, 0, 0, 0)
@example("n" * 100, "", b"5", 0o755, 0, 0, 0, 0)
@example("n" * 99, "l" * 100, b"2", 0o777, 8**7 - 1, 8**7 - 1, 8**11 - 1, 8**11 - 1)
def test_a_plain_header_is_tarfiles(
    name: str, link: str, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int
) -> None:
    info = tarfile.TarInfo(name)
    info.linkname, info.type, info.mode = link, kind, mode
    info.uid, info.gid, info.size, info.mtime = uid, gid, size, mtime
    want = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    is_device = kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    if is_device or len(want) > tarfile.BLOCKSIZE:
        assert plain_header(info) is None
    else:
        assert plain_header(info) == want

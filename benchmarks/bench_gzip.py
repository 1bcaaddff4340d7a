"""Which compressed layers come out exactly from a recipe, how large is it, how fast is it made and joined?

Unit: recipe in per cent of the blob; MB of tar a second of processor, one thread. Baseline: the compressed blob kept
beside its tar (100 %), and Python's zlib decompressing it. Blobs are made by the real programs, of one tar of this
machine's files, and are those of a corpus.

    python -m benchmarks.bench_gzip [--corpus DIR] [--size MB] [--json FILE]

An encoder whose program is absent is left out and named. Each blob is split, joined and compared byte for byte.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.daemons import daemon, registry
from benchmarks.measure import commit, machine
from layerstore.formats.gzipsplit import Joiner, NotSplit, split_gzip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__: list[str] = []

_GO = Path(__file__).parents[1] / "tests" / "data" / "gzip_go.go"
_JAVA = """import java.util.zip.GZIPOutputStream;
public class Encode { public static void main(String[] a) throws Exception {
    try (var out = new GZIPOutputStream(System.out)) { System.in.transferTo(out); } } }
"""
_FOLDERS = ("/usr/bin", "/usr/lib/python3", "/usr/share/doc", "/usr/share/perl")
_MEMBER = 4_000_000  # larger files are left out, so that one program is not all of the tar


@dataclass(frozen=True, slots=True)
class Row:
    """One blob. MB are of the tar; `reason` is empty for one that comes out exactly."""

    encoder: str
    tar: int
    blob: int
    model: str = ""
    recipe: int = 0
    split_mb_s: float = 0.0
    join_mb_s: float = 0.0
    gunzip_mb_s: float = 0.0
    reason: str = ""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code is 1 if a blob that was split did not come out."""
    parser = argparse.ArgumentParser(
        prog="bench_gzip", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help="a folder of OCI layouts, or one with oci/")
    parser.add_argument("--size", type=int, default=24, metavar="MB", help="of the tar")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory(prefix="gzip-") as name:
        folder = Path(name)
        tar = _tar(options.size * 1_000_000)
        for encoder, encode in _encoders(folder).items():
            try:
                rows.append(_row(encoder, encode(tar)))
            except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
                print(f"{encoder}: not here: {str(error)[:200]}", file=sys.stderr)
                continue
            _print_row(rows[-1])
    corpus = [_row("corpus", blob) for blob in _corpus_blobs(options.corpus)]
    if corpus:
        _print_row(_total(corpus))
    document = {
        "machine": machine(),
        "commit": commit(Path(__file__).parent),
        "encoders": [asdict(row) for row in rows],
        "corpus": [asdict(row) for row in corpus],
    }
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(row.reason == "other bytes" for row in (*rows, *corpus)))


def _row(encoder: str, blob: bytes) -> Row:
    started = time.thread_time()
    tar = _gunzip(blob)
    gunzipped = time.thread_time()
    try:
        recipe = split_gzip(io.BytesIO(blob))
    except NotSplit as error:
        return Row(encoder, len(tar), len(blob), reason=str(error))
    split = time.thread_time()
    joiner, hasher, shared = Joiner(recipe), hashlib.sha256(), 0
    for index, span in enumerate(joiner.spans):
        part = bytearray(joiner.join(index, tar[span.offset : span.offset + span.size]))
        part[0] |= shared
        shared = part.pop() if joiner.first_bits[index + 1] & 7 else 0
        hasher.update(part)
    joined = time.thread_time()
    megabytes = len(tar) / 1e6
    return Row(
        encoder,
        len(tar),
        len(blob),
        str(recipe.model),
        recipe.size,
        megabytes / (split - gunzipped),
        megabytes / (joined - split),
        megabytes / (gunzipped - started),
        "" if hasher.digest() == hashlib.sha256(blob).digest() else "other bytes",
    )


def _gunzip(blob: bytes) -> bytes:
    parts, rest = [], blob
    while rest:
        decoder = zlib.decompressobj(31)
        parts.append(decoder.decompress(rest))
        rest = decoder.unused_data
    return b"".join(parts)


def _total(rows: Sequence[Row]) -> Row:
    """All blobs of a corpus as one; speeds are of the sums."""
    exact = [row for row in rows if not row.reason]
    tar = sum(row.tar for row in exact)

    def speed(of: Callable[[Row], float]) -> float:
        return tar / sum(row.tar / of(row) for row in exact)

    return Row(
        f"corpus, {len(exact)} of {len(rows)} exact",
        tar,
        sum(row.blob for row in exact),
        ", ".join(sorted({row.model for row in exact})),
        sum(row.recipe for row in exact),
        speed(lambda row: row.split_mb_s),
        speed(lambda row: row.join_mb_s),
        speed(lambda row: row.gunzip_mb_s),
        "; ".join(sorted({row.reason for row in rows if row.reason})),
    )


def _print_row(row: Row) -> None:
    outcome = row.model if row.recipe else f"kept: {row.reason}"
    print(
        f"| {row.encoder} | {row.tar / 1e6:.1f} | {row.blob / 1e6:.2f} | {outcome} | "
        f"{100 * row.recipe / row.blob:.4f} | {row.split_mb_s:.0f} | {row.join_mb_s:.0f} | "
        f"{row.gunzip_mb_s:.0f} |",
        flush=True,
    )


def _tar(size: int) -> bytes:
    """Files of this machine, in equal shares of each folder."""
    out = b""
    for folder in filter(Path.is_dir, map(Path, _FOLDERS)):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink() and path.stat().st_size < _MEMBER:
                    tar.add(path, str(path).lstrip("/"), recursive=False)
                if stream.tell() > size // len(_FOLDERS):
                    break
        out += stream.getvalue()
    return out[:size]


def _encoders(folder: Path) -> dict[str, Callable[[bytes], bytes]]:
    found: dict[str, Callable[[bytes], bytes]] = {
        f"Python gzip {level}": lambda tar, level=level: gzip.compress(tar, level, mtime=0)  # type: ignore[misc]
        for level in (6, 9)
    }
    found |= {f"GNU gzip -{n}": _piped("gzip", f"-{n}", "-c") for n in (1, 6, 9)}
    found |= {f"pigz -{n}": _piped("pigz", f"-{n}", "-c") for n in (6, 9)}
    found |= {f"Go compress/gzip {n}": _go(folder, str(n)) for n in (1, -1, 9)}
    found["Java GZIPOutputStream"] = _java(folder)
    found["skopeo copy (pgzip)"] = lambda tar: _skopeo(folder, tar)
    found["buildah push (pgzip)"] = lambda tar: _buildah(folder, tar)
    found["umoci add-layer (pgzip)"] = lambda tar: _umoci(folder, tar)
    found["dockerd push (Go)"] = lambda tar: _dockerd(folder, tar)
    return found


def _run(*words: str, data: bytes | None = None) -> bytes:
    done = subprocess.run(words, input=data, capture_output=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr.decode(errors='replace')[-300:]}")
    return done.stdout


def _piped(*words: str) -> Callable[[bytes], bytes]:
    return lambda tar: _run(*words, data=tar)


def _go(folder: Path, level: str) -> Callable[[bytes], bytes]:
    def encode(tar: bytes) -> bytes:
        program = folder / "encode"
        if not program.exists():
            _run("go", "build", "-o", str(program), str(_GO))
        return _run(str(program), level, data=tar)

    return encode


def _java(folder: Path) -> Callable[[bytes], bytes]:
    def encode(tar: bytes) -> bytes:
        (folder / "Encode.java").write_text(_JAVA)
        return _run("java", str(folder / "Encode.java"), data=tar)

    return encode


def _skopeo(folder: Path, tar: bytes) -> bytes:
    archive = _docker_archive(folder, tar)
    _run("skopeo", "--insecure-policy", "copy", f"docker-archive:{archive}", f"oci:{folder}/s:1")
    return _largest(folder / "s" / "blobs" / "sha256")


def _buildah(folder: Path, tar: bytes) -> bytes:
    archive = _docker_archive(folder, tar)
    store = ("--root", f"{folder}/b/root", "--runroot", f"{folder}/b/run")
    words = ("buildah", *store, "--storage-driver", "vfs")
    name = _run(*words, "pull", "-q", f"docker-archive:{archive}").decode().strip()
    _run(*words, "push", "-q", name, f"oci:{folder}/bo:1")
    shutil.rmtree(folder / "b", ignore_errors=True)
    return _largest(folder / "bo" / "blobs" / "sha256")


def _umoci(folder: Path, tar: bytes) -> bytes:
    (folder / "layer.tar").write_bytes(tar)
    _run("umoci", "init", "--layout", f"{folder}/u")
    _run("umoci", "new", "--image", f"{folder}/u:1")
    _run("umoci", "raw", "add-layer", "--image", f"{folder}/u:1", f"{folder}/layer.tar")
    return _largest(folder / "u" / "blobs" / "sha256")


def _dockerd(folder: Path, tar: bytes) -> bytes:
    archive, below, beside = _docker_archive(folder, tar), folder / "d", folder / "r"
    below.mkdir()
    beside.mkdir()
    with daemon("dockerd", below), registry(beside, beside / "store") as (_, address):
        docker = ("docker", "--host", f"unix://{below}/d.sock")
        _run(*docker, "load", "-q", "-i", str(archive))
        _run(*docker, "tag", "bench/gzip:1", f"{address}/bench:1")
        _run(*docker, "push", "-q", f"{address}/bench:1")
        return _largest(beside / "store")


def _docker_archive(folder: Path, tar: bytes) -> Path:
    """An image of one layer. The tar may end in a file that is cut: dockerd would not take it, so it ends before."""
    whole = _whole(tar)
    target = folder / "image.tar"
    diff_id = f"sha256:{hashlib.sha256(whole).hexdigest()}"
    config = {
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }  # fmt: skip
    text = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": ["bench/gzip:1"], "Layers": ["l/layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        for name, data in (
            (config_name, text),
            ("l/layer.tar", whole),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target


def _whole(tar: bytes) -> bytes:
    """The members of a tar that are all there."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar), ignore_zeros=True) as source,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for member in _members(source):
            if member.offset_data + member.size <= len(tar) and member.isfile():
                target.addfile(member, source.extractfile(member))
    return out.getvalue()


def _members(source: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from source
    except tarfile.ReadError:
        return


def _largest(folder: Path) -> bytes:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return max(files, key=lambda path: path.stat().st_size).read_bytes()


def _corpus_blobs(folder: Path | None) -> Iterator[bytes]:
    """Each gzip blob of the layouts below a folder, once."""
    seen: set[str] = set()
    for path in sorted(folder.glob("**/blobs/sha256/*")) if folder else ():
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        if is_gzip and path.name not in seen:
            seen.add(path.name)
            yield path.read_bytes()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""How fast are the kernels on one core, and what would the obvious alternatives be?

Unit: GB/s of input (10**9 bytes a second; best of several rounds). Input: 16 MiB of seeded noise, which
cuts like real payload; 4096 spans of up to 4 KiB for small files; a tar of 20,000 headers, whose unit is
bytes of tar walked over. Baselines: memcpy, the `blake3` package on one thread, SHA-256, the NumPy twin.

    pytest benchmarks/bench_kernels.py                            a table; GB/s in extra_info
    LAYERSTORE_KERNELS=pure python -m benchmarks.bench_kernels    one JSON line per result
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import struct
import sys
import tarfile
import time
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import blake3
import pytest

from layerstore import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 1 << 24
RULE = (8192, 32768, 131072, 16, 14)
ROUNDS = 7


class Case(NamedTuple):
    """A call, and how many bytes of input it works through."""

    call: Callable[[], object]
    size: int


@cache
def cases() -> dict[str, Case]:
    """Everything measured, by name: `<kernel>-<level>/<question>` or `baseline/<program>`."""
    noise = hashlib.shake_128(b"layerstore bench").digest(SIZE)
    whole = struct.pack("<QQ", 0, SIZE)
    pairs = [(4096 * i, 1 + 37 * i % 4096) for i in range(SIZE // 4096)]
    small = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    small_size = sum(size for _, size in pairs)
    tar = headers(20_000)

    def kernel_cases(kernel: Any, level: str) -> dict[str, Case]:
        def at_level(call: Callable[[], object]) -> Callable[[], object]:
            def run() -> object:
                if hasattr(kernel, "set_simd"):
                    kernel.set_simd(level)
                return call()

            return run

        calls = {
            "cut": (lambda: kernel.cut(noise, *RULE), SIZE),
            "cut_hash": (lambda: kernel.cut_hash(noise, whole, *RULE, False), SIZE),
            "cut_hash_small": (lambda: kernel.cut_hash(noise, small, *RULE, False), small_size),
            "hash_many_one": (lambda: kernel.hash_many(noise, whole), SIZE),
            "hash_many_small": (lambda: kernel.hash_many(noise, small), small_size),
            "tar_scan": (lambda: kernel.tar_scan(tar, 0), len(tar)),
        }
        return {name: Case(at_level(call), size) for name, (call, size) in calls.items()}

    found = {
        "baseline/memcpy": Case(lambda: bytearray(noise), SIZE),
        "baseline/blake3_package": Case(lambda: blake3.blake3(noise).digest(), SIZE),
        "baseline/blake3_package_small": Case(
            lambda: [blake3.blake3(noise[at : at + size]).digest() for at, size in pairs],
            small_size,
        ),
        "baseline/sha256": Case(lambda: hashlib.sha256(noise).digest(), SIZE),
        "baseline/tarfile": Case(lambda: list_members(tar), len(tar)),
    }
    for kernel, level in available():
        label = f"native-{level}" if hasattr(kernel, "set_simd") else level
        found |= {f"{label}/{name}": case for name, case in kernel_cases(kernel, level).items()}
    return found


def available() -> list[tuple[Any, str]]:
    """The native kernel at each level this machine has, unless `pure` was asked for, and the twin."""
    found: list[tuple[Any, str]] = []
    if kernels.NAME == "native":
        native: Any = kernels._load("native")[1]  # noqa: SLF001 - both kernels in one process
        best = native.simd()
        for level in ("portable", "avx2", "avx512"):
            found.append((native, level))
            if level == best:
                break
    pure: Any = kernels._load("pure")[1]  # noqa: SLF001
    return [*found, (pure, "pure")]


def headers(count: int) -> bytes:
    """A tar of `count` files of 0 to 3 KiB."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"usr/lib/some/where/file-{number}")
            member.size = number * 7 % 3072
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return raw.getvalue()


def list_members(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmembers()


@pytest.mark.parametrize("name", cases())
def test_throughput(benchmark: Any, name: str) -> None:
    case = cases()[name]
    benchmark.group = name.partition("/")[2]
    benchmark.pedantic(case.call, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["GB/s"] = round(case.size / benchmark.stats.stats.min / 1e9, 3)


def main() -> None:
    for name, case in cases().items():
        case.call()
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            case.call()
            times.append(time.perf_counter() - start)
        times.sort()
        line = {
            "bench": "kernels",
            "case": name,
            "gb_per_s": round(case.size / times[0] / 1e9, 3),
            "median_gb_per_s": round(case.size / times[len(times) // 2] / 1e9, 3),
            "bytes": case.size,
            "rounds": ROUNDS,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

# The C kernels (native/module.c). Documented in layerstore/kernels.py; the twin is layerstore/_pure.py.
from _typeshed import ReadableBuffer

ABI: int
GEAR: tuple[int, ...]

def simd() -> str: ...
def set_simd(level: str, /) -> None: ...
def cut_hash(
    data: ReadableBuffer,
    spans: ReadableBuffer,
    min_size: int,
    normal_size: int,
    max_size: int,
    strict_bits: int,
    loose_bits: int,
    last_is_open: bool,
    /,
) -> tuple[bytes, bytes, bytes]: ...
def cut(
    data: ReadableBuffer,
    min_size: int,
    normal_size: int,
    max_size: int,
    strict_bits: int,
    loose_bits: int,
    /,
) -> bytes: ...
def hash_many(data: ReadableBuffer, spans: ReadableBuffer, /) -> bytes: ...
def blake3(data: ReadableBuffer, /) -> bytes: ...
def tar_scan(data: ReadableBuffer, offset: int, /) -> tuple[bytes, int, int]: ...
def gzip_split(
    data: ReadableBuffer,
    bit: int,
    is_last: bool,
    state: int,
    history: ReadableBuffer,
    position: int,
    wanted: int,
    family: int,
    level: int,
    block: int,
    header: ReadableBuffer,
    /,
) -> tuple[int, int, int, int, bytes, int, bytes]: ...
def gzip_join(
    recipe: ReadableBuffer,
    text: ReadableBuffer,
    start: int,
    end: int,
    position: int,
    family: int,
    level: int,
    block: int,
    header: ReadableBuffer,
    first_bit: int,
    bit_size: int,
    /,
) -> bytes: ...

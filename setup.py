"""The optional native extension: an experimental table in pyproject.toml otherwise, so it stands here.

A compiler error leaves a pure-Python install (`optional=True`); set LAYERSTORE_NATIVE=require to make it an
error instead, or LAYERSTORE_NATIVE=skip to leave the extension out. LAYERSTORE_SANITIZE=1 builds with ASan and UBSan.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

request = os.environ.get("LAYERSTORE_NATIVE", "auto")
sanitize = (
    ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
    if os.environ.get("LAYERSTORE_SANITIZE")
    else []
)
native = Extension(
    "layerstore._native",
    sources=sorted(str(path) for path in Path("native").glob("*.c")),
    depends=sorted(str(path) for path in Path("native").glob("*.h")),
    extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", *sanitize],
    extra_link_args=sanitize,
    optional=request != "require",
)
setup(ext_modules=[] if request == "skip" else [native])

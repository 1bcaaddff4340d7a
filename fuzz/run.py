"""Run a fuzz target for a while: `python -m fuzz.run tar --seconds 60`. Needs the package `atheris`.

The corpus is kept below `--corpus` (default: a temporary folder). An input that breaks a target is written to the
current folder, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped,unused-ignore]  # not a dependency: see README.md

TARGETS = ("tar", "archive")


def main() -> None:
    """Parse the arguments; never returns."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()
    with atheris.instrument_imports(include=["layerstore"]):
        target = importlib.import_module(f"fuzz.fuzz_{options.target}")
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in target.seeds().items():
        (corpus / f"seed {name}").write_bytes(data)
    limits = [
        f"-max_total_time={options.seconds}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-max_len=24000",
    ]
    atheris.Setup(["fuzz", str(corpus), *limits, "-print_final_stats=1"], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

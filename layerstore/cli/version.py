"""`layerstore version`: what to put into a bug report."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from layerstore.cli.output import format_option, print_json, print_text

__all__ = ["own_version", "version_verb"]

_LIBRARIES = ("blake3", "click", "isal", "lmdb", "numpy", "rich", "zstandard")
_NOT_INSTALLED = "not installed"


@click.command("version", short_help="Show versions, kernels and formats.")
@format_option()
def version_verb(form: str) -> None:
    """Show versions of layerstore, its store format, its kernels and the libraries it uses."""
    from layerstore import kernels
    from layerstore.store.layout import VERSION

    found = {
        "layerstore": own_version(),
        "store_format": VERSION,
        "kernels": kernels.NAME,
        "simd": kernels.simd(),
        "kernel_abi": kernels.ABI,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libraries": {name: _version_of(name) for name in _LIBRARIES},
    }
    if form == "json":
        print_json(found)
        return
    print_text(f"layerstore     {found['layerstore']}")
    print_text(f"store format   {VERSION}")
    print_text(f"kernels        {kernels.NAME} ({kernels.simd()}), ABI {kernels.ABI}")
    print_text(f"python         {found['python']}")
    print_text(f"machine        {found['machine']}")
    for name in _LIBRARIES:
        print_text(f"{name:<14} {_version_of(name)}")


def own_version() -> str:
    """The version of the installed package; a source tree that is not installed has none."""
    return _version_of("layerstore")


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _NOT_INSTALLED

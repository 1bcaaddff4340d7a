"""The comparison as a Markdown table and as a picture (SVG): two bars for each program, disk and ingest time."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["write_markdown", "write_svg"]

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("disk_bytes", "disk MB", lambda size: f"{size / 1e6:,.0f}"),
    ("ingest_s", "ingest s", lambda seconds: f"{seconds:.1f}"),
    ("one_more_bytes", "one more MB", lambda size: f"{size / 1e6:.2f}"),
    ("one_more_s", "one more s", lambda seconds: f"{seconds:.2f}"),
    ("root_s", "root s", lambda seconds: f"{seconds:.2f}"),
    ("again_s", "again s", lambda seconds: f"{seconds:.2f}"),
    ("peak_rss_bytes", "memory MB", lambda size: f"{size / 1e6:.0f}"),
)
_ROW, _LABEL, _BAR, _GAP = 22, 130, 280, 90  # pixels
_STYLE = """text { font: 12px system-ui, sans-serif; fill: #333 } .head { font-weight: 600 }
  .bar { fill: #9db4c8 } .ours { fill: #d9622b }
  @media (prefers-color-scheme: dark) { text { fill: #ddd } .bar { fill: #5d7488 } }"""


def write_markdown(document: Mapping[str, Any]) -> str:
    """What was measured, the table in the order of disk, then versions, commands and who is absent."""
    context, box = document["context"], document["context"]["machine"]
    results = [result for result in document["results"] if "failed" not in result]
    lines = [
        f"{context['corpus']}: {context['images']} images, {context['unique_layers']} layers; "
        f"tars {_mb(context['tar_bytes'])} MB, gzip {_mb(context['gzip_bytes'])} MB, "
        f"as overlay2 keeps them {_mb(context['unpacked_bytes'])} MB. One more: {context['one_more']}.",
        "",
        f"{box['cpu']}, {box['cores']} cores, Linux {box['kernel']}; load average "
        f"{box['load_average']} to {box.get('load_average_end', '?')}; commit {context['commit']}.",
        "",
        "| program | from | " + " | ".join(title for _, title, _ in _COLUMNS) + " |",
        "|---|---|" + "---:|" * len(_COLUMNS),
    ]
    for result in sorted(results, key=lambda result: float(result["disk_bytes"])):
        cells = [write(result[key]) if key in result else "" for key, _, write in _COLUMNS]
        lines.append(f"| {result['name']} | {result['source']} | {' | '.join(cells)} |")
    lines += ["", "Versions and commands:", ""]
    for result in results:
        note = f" ({result['note']})" if result["note"] else ""
        lines.append(f"- **{result['name']}**, {result['version']}{note}")
        for name, commands in result["commands"].items():
            lines += [f"  - {name}: `{command}`" for command in commands]
    lines += [f"- **{one['name']}** failed: {one['failed']}" for one in _failed(document)]
    lines += [
        f"- **{one['name']}** was not measured: {one['reason']}" for one in document["absent"]
    ]
    return "\n".join(lines) + "\n"


def write_svg(document: Mapping[str, Any]) -> str:
    """Bars of disk and of ingest time, the smallest store first."""
    results = [result for result in document["results"] if "failed" not in result]
    results.sort(key=lambda result: float(result["disk_bytes"]))
    height = _ROW * (len(results) + 2)
    width = _LABEL + 2 * (_BAR + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<style>{_STYLE}</style>",
    ]
    for row, result in enumerate(results):
        parts.append(f'<text x="0" y="{_ROW * (row + 2) - 7}">{escape(result["name"])}</text>')
    columns = (("disk_bytes", "disk, MB", 1e6, 0), ("ingest_s", "ingest, seconds", 1, 1))
    for column, (key, title, unit, digits) in enumerate(columns):
        left = _LABEL + column * (_BAR + _GAP)
        parts.append(f'<text class="head" x="{left}" y="{_ROW - 7}">{title}</text>')
        parts += _bars(results, key, left, unit, digits)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bars(
    results: Sequence[Mapping[str, Any]], key: str, left: int, unit: float, digits: int
) -> list[str]:
    most = max((float(result[key]) for result in results), default=0.0) or 1.0
    parts = []
    for row, result in enumerate(results):
        length = max(1.0, _BAR * result[key] / most)
        kind = "ours" if result["name"].startswith("layerstore") else "bar"
        top = _ROW * (row + 1)
        parts += [
            f'<rect class="{kind}" x="{left}" y="{top + 3}" width="{length:.1f}" height="{_ROW - 6}"/>',
            f'<text x="{left + length + 6:.1f}" y="{top + 15}">{result[key] / unit:,.{digits}f}</text>',
        ]
    return parts


def _failed(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [result for result in document["results"] if "failed" in result]


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"

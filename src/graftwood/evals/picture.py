"""A picture file from an SVG, where the optional converter is installed."""

from __future__ import annotations

from pathlib import Path

from graftwood.files import atomic_write


def png(svg: str, path: Path, width: int) -> bool:
    """Write `svg` as a PNG of `width` pixels; False where the extra `graftwood[report]` is not installed."""
    try:
        import vl_convert
    except ImportError:
        return False
    drawn = int(svg.split('width="', 1)[1].split('"', 1)[0])
    atomic_write(path, vl_convert.svg_to_png(svg, scale=width / drawn))
    return True

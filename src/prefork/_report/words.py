"""Numbers and texts as the page has them."""

from __future__ import annotations

import html
import re

__all__ = ["bytes_of", "count", "escape", "percent", "seconds"]

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def escape(text: str) -> str:
    """For the content and the attributes of elements. What HTML cannot hold is written as in
    Python's strings."""
    return html.escape(_UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text))


def seconds(value: float) -> str:
    """`12 µs`, `3.4 ms`, `5.6 s`, `78 s`, `1:02:03`."""
    if value >= 600:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    if value >= 1 or value == 0:
        return f"{_short(value)} s"
    return f"{_short(value * 1e3)} ms" if value >= 1e-3 else f"{_short(value * 1e6)} µs"


def bytes_of(kib: float) -> str:
    """`12 KiB`, `3.4 MiB`."""
    for unit in ("KiB", "MiB", "GiB"):
        if kib < 1000:
            return f"{_short(kib)} {unit}"
        kib /= 1024
    return f"{_short(kib)} TiB"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.1 or share == 0 else f"{share * 100:.1f} %"


def count(number: int) -> str:
    return f"{number:,}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"

"""Numbers of bytes for people."""

from __future__ import annotations


def human(n_bytes: float) -> str:
    """Returns a size with its unit: 12 B, 3.4 KiB, 56 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            digits = 1 if unit != "B" and n_bytes < 10 else 0
            return f"{n_bytes:.{digits}f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"

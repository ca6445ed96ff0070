"""What a file contains, as one digest: a name or a folder changes no address."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def file_digest(path: Path) -> bytes:
    """Returns the sha256 of a file's bytes, computed once until the file changes; raises OSError."""
    status = path.stat()
    return _digest(path, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


@lru_cache(maxsize=1 << 18)
def _digest(path: Path, inode: int, modified_ns: int, changed_ns: int, size: int) -> bytes:
    """Returns a file's sha256, kept until inode, times or size say that the file is another one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

"""What a file contains, as one digest: a name or a folder changes no address."""

from __future__ import annotations

import hashlib
from pathlib import Path

_MEMO_FILES = 8192
"""How many digests are kept: readers keep those of their own rows, so that this serves what is read twice."""
_memo: dict[tuple[int, int, int, int, int], bytes] = {}


def file_digest(path: Path) -> bytes:
    """Returns the sha256 of a file's bytes, computed once until the file changes; raises OSError."""
    status = path.stat()
    mark = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    digest = _memo.get(mark)
    if digest is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if len(_memo) >= _MEMO_FILES:
            _memo.clear()
        _memo[mark] = digest
    return digest

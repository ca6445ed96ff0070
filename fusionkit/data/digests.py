"""What a file contains, as one digest: a name or a folder changes no address."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from functools import lru_cache
from pathlib import Path

from fusionkit.store import file_digest

_MEMO_FILES = 256
"""How many digests are kept: readers keep those of their own rows, and what is read twice is so at once."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_status(path: Path) -> os.stat_result:
    """Returns what the system says of a file; OSError where there is none: a pipe may have no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    return status


def content_digest(path: Path) -> bytes:
    """Returns the sha256 of a file's bytes, computed once until the file changes; OSError if it is none."""
    status = file_status(path)
    return _digest(
        path, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    )


def tree_digest(path: Path) -> bytes:
    """Returns the sha256 of a file's bytes, or of the names and bytes of all files in a folder; OSError.

    Links to other folders are not followed: they may lead back.
    """
    if not path.is_dir():
        return content_digest(path)
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            digest.update(os.fsencode(file.relative_to(path)) + b"\0" + content_digest(file))
    return digest.digest()


def _raise(error: OSError) -> None:
    raise error


@lru_cache(_MEMO_FILES)
def _digest(path: Path, mark: tuple[int, ...]) -> bytes:
    return bytes.fromhex(file_digest(path))

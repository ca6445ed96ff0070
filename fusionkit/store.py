"""The store: content-addressed artefacts and features, as safetensors; verified, atomic, locked.

An artefact is one safetensors file with its metadata in the header. Its sha256 stands in the store's journal;
it is read only if it verifies. A file without a journal line, or with another sum, is set aside and computed
again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fusionkit.errors import FusionkitWarning, ResourceError
from fusionkit.interfaces import Tell
from fusionkit.locks import hold, in_use, is_free, users

FORMAT = 1
"""Version of the store's layout; part of every address."""


def address_of(node: Any) -> str:
    """Returns the sha256 of a JSON value, written in one canonical way."""
    text = json.dumps(node, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file beside its name, fsyncs, renames; raises ResourceError, leaves nothing half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise resource_error(path, error) from error
    finally:
        with contextlib.suppress(
            OSError
        ):  # it is gone when all went well, and never was where its folder failed
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def resource_error(path: Path, error: OSError) -> ResourceError:
    """Turns the operating system's refusal to write into a sentence."""
    hints = {
        errno.ENOSPC: "Free some space, then give the same command again: what was computed is kept.",
        errno.EFBIG: "The limit on file sizes is too low.",
        errno.EROFS: "Choose a folder that can be written, with --store or --runs.",
        errno.EACCES: "Choose a folder that can be written, with --store or --runs.",
        errno.ENOTDIR: "Choose a folder that can be written, with --store or --runs.",
    }
    hint = hints.get(error.errno or 0, "Give the same command again when that is mended.")
    return ResourceError(f"{path}: cannot be written ({error.strerror or error}). {hint}")


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Artefact:
    """What a stage left: named tensors, and metadata that says where they come from."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


class Store:
    """A folder of verified files.

    Args:
        root: The folder; made when something is first written.
        tell: Is told when one waits for another process.
        waits: Whether to wait for what another process is computing, or to raise Busy.
    """

    def __init__(self, root: Path, tell: Tell = lambda name, data: None, *, waits: bool = True) -> None:
        self.root, self.tell, self.waits = root, tell, waits
        self._journal: dict[str, set[str]] = {}
        self._journal_read = 0
        self._verified: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """Returns where a name is stored."""
        return self.root / name

    def artefact_path(self, address: str) -> Path:
        """Returns the file of an artefact."""
        return self.root / "artefacts" / f"{address}.safetensors"

    @contextlib.contextmanager
    def lock(self, address: str, what: str, *, waits: bool = False) -> Iterator[None]:
        """Holds an address: others that want to compute the same wait and say so, or get Busy.

        Args:
            address: Of what is computed.
            what: What it is, for those who wait.
            waits: Whether to wait even where this store does not.
        """
        folder = self.root / "locks"
        with contextlib.ExitStack() as stack:
            try:
                path = folder / f"{address}.lock"
                stack.enter_context(hold(path, what, self.tell, waits=waits or self.waits))
            except OSError as error:
                raise resource_error(folder, error) from error
            yield

    def _read_journal(self) -> None:
        path = self.root / "journal.jsonl"
        if not path.exists() or path.stat().st_size == self._journal_read:
            return
        try:
            with open(path, "rb") as file:
                file.seek(self._journal_read)
                tail = file.read()
        except OSError as error:  # a folder in its place, or no right to read it
            raise resource_error(path, error) from error
        whole = tail.rfind(b"\n") + 1  # the last line may still be being written
        for line in tail[:whole].splitlines():
            try:
                entry = json.loads(line)
                self._note(entry["name"], entry["sha256"])
            except (ValueError, KeyError, TypeError):
                continue  # a torn line: its file has no sum, so it is computed again
        self._journal_read += whole

    def _note(self, name: str, digest: str) -> None:
        # every sum that was written counts: a crash may leave the journal one write ahead of the file
        self._journal.setdefault(name, set()).add(digest)

    def _append_journal(self, name: str, digest: str, size: int) -> None:
        path = self.root / "journal.jsonl"
        # a leading newline ends a line that a crash has torn
        entry = {"name": name, "sha256": digest, "bytes": size, "time": round(time.time())}
        try:
            with open(path, "ab") as file:
                file.write(f"\n{json.dumps(entry)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise resource_error(path, error) from error
        self._note(name, digest)

    def put(self, name: str, data: bytes) -> None:
        """Writes a file under a name and its sum into the journal."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise resource_error(path, error) from error
        self._append_journal(name, digest, len(data))
        write_atomic(path, data)
        self._verified[name] = digest

    def verify(self, name: str, *, anew: bool = False) -> bool:
        """Says whether a file is there and is what was written; a broken one is set aside, with a warning.

        Args:
            name: The file.
            anew: Whether to look again at one that has verified before, since others may have replaced it.
        """
        path = self.root / name
        if not path.exists():
            self._verified.pop(name, None)
            return False
        if name in self._verified and not anew:
            return True
        self._read_journal()
        try:
            # a pipe would never end
            digest = file_digest(path) if path.is_file() else ""
        except FileNotFoundError:
            return False  # pruned, or set aside by another process, just now
        if digest in self._journal.get(name, ()):
            self._verified[name] = digest
            with contextlib.suppress(OSError):  # only pruning asks when a file was last used
                os.utime(path)
            return True
        self._set_aside(path)
        return False

    def _set_aside(self, path: Path) -> None:
        aside = self.root / "broken" / f"{path.name}.{secrets.token_hex(3)}"
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)
        except FileNotFoundError:
            return  # another process set it aside first
        except OSError as error:
            raise resource_error(path, error) from error
        text = f"{path}: not what was written; set aside in broken/ and computed again."
        warnings.warn(text, FusionkitWarning, stacklevel=2)

    def digest(self, address: str) -> str:
        """Returns the sha256 of an artefact's file; `has` must have said that it verifies."""
        return self._verified[f"artefacts/{address}.safetensors"]

    def has(self, address: str) -> bool:
        """Says whether an artefact is there and verifies."""
        return self.verify(f"artefacts/{address}.safetensors")

    def save(self, address: str, artefact: Artefact) -> None:
        """Writes an artefact."""
        data = to_bytes(artefact)
        self.put(f"artefacts/{address}.safetensors", data)

    def load(self, address: str) -> Artefact | None:
        """Returns an artefact, or None where it is not there or does not verify."""
        return read_artefact(self.artefact_path(address)) if self.has(address) else None

    def metadata(self, address: str) -> Mapping[str, Any]:
        """Returns an artefact's metadata, from its header alone; `has` must have said that it verifies."""
        return _peek(self.artefact_path(address))


def to_bytes(artefact: Artefact) -> bytes:
    """Returns an artefact as safetensors, metadata in the header."""
    # a copy each: safetensors refuses tensors that share memory, as tied weights do
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in artefact.tensors.items()
    }
    return save(tensors, metadata={"fusionkit": json.dumps(dict(artefact.metadata), sort_keys=True)})


def read_artefact(path: Path) -> Artefact:
    """Reads an artefact whose sum has been checked."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get("fusionkit", "{}"))
        return Artefact({name: file.get_tensor(name) for name in file.keys()}, metadata)


@dataclass(frozen=True)
class StoreEntry:
    """One file of the store, for `fusionkit store list`."""

    kind: str
    name: str
    size: int
    modified: float
    metadata: Mapping[str, Any]


def list_entries(root: Path) -> list[StoreEntry]:
    """Returns every artefact, feature file, checkpoint, audit and broken file, newest first."""
    entries = []
    for kind in ("artefacts", "features", "checkpoints", "audits", "broken", "sources"):
        for path in sorted((root / kind).rglob("*")):
            if not path.is_file() or path.name.startswith("."):
                continue
            stat = path.stat()
            metadata = _peek(path) if path.suffix == ".safetensors" else {}
            entries.append(
                StoreEntry(kind, str(path.relative_to(root / kind)), stat.st_size, stat.st_mtime, metadata)
            )
    return sorted(entries, key=lambda entry: -entry.modified)


def _peek(path: Path) -> Mapping[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            node = json.loads((file.metadata() or {}).get("fusionkit", "{}"))
            return node if isinstance(node, dict) else {}
    except Exception:
        return {"state": "unreadable"}


@contextlib.contextmanager
def using(root: Path) -> Iterator[None]:
    """Marks a store as used by this process, for `prune`; ResourceError where it cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(in_use(root / "locks"))
        except OSError as error:
            raise resource_error(root / "locks", error) from error
        yield


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Args:
        kinds: How many files of each kind went, and how many bytes they had.
        users: The running processes that use the store, in words; what they use stays.
    """

    kinds: Mapping[str, tuple[int, int]]
    users: tuple[str, ...]

    @property
    def files(self) -> int:
        """How many files went."""
        return sum(count for count, _ in self.kinds.values())

    @property
    def size(self) -> int:
        """How many bytes they had."""
        return sum(size for _, size in self.kinds.values())


KEPT_FOR_USERS = ("sources", "checkpoints")
"""What a running process may come back to without having used it so far."""
CLOCK_SECONDS = 60.0
"""How far the clocks of files and of machines may be apart."""


def prune(
    root: Path, *, older_than_days: float, kinds: Collection[str] = (), dry_run: bool = False
) -> Pruned:
    """Deletes files that were not used for so long, broken files, stale locks and temporary files.

    Args:
        root: The store.
        older_than_days: For how long.
        kinds: Only these folders of the store; by default all.
        dry_run: Deletes nothing, and returns what would go.
    """
    holders = users(root / "locks")
    limit = time.time() - older_than_days * 86400
    limit = min([limit, *(holder.since - CLOCK_SECONDS for holder in holders)])
    gone: dict[str, tuple[int, int]] = {}
    for path in sorted(root.rglob("*")) if root.exists() else []:
        inside = path.relative_to(root).parts[0]
        if kinds and inside not in kinds:
            continue
        try:
            status = path.stat()
            if not path.is_file() or path.name == "journal.jsonl" or (holders and inside in KEPT_FOR_USERS):
                continue
            if _is_prunable(path, inside, status.st_mtime, limit):
                if not dry_run:
                    path.unlink()
                count, size = gone.get(inside, (0, 0))
                gone[inside] = count + 1, size + status.st_size
        except FileNotFoundError:
            continue  # another process was quicker
    return Pruned(gone, tuple(holder.describe() for holder in holders))


def _is_prunable(path: Path, inside: str, used: float, limit: float) -> bool:
    if inside == "broken":
        return True
    if inside != "locks" and path.suffix != ".tmp":
        return used < limit
    # what is younger than an hour may belong to a running process, and so may an old lock
    lock = path.with_suffix(".lock")
    return time.time() - used > 3600 and (inside != "locks" or not lock.exists() or is_free(lock))

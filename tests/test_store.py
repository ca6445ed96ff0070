from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionkit.errors import FusionkitWarning, ResourceError
from fusionkit.store import Artefact, Store, address_of, list_entries, prune, using, write_atomic

ARTEFACT = Artefact({"head.weight": torch.arange(6.0).reshape(2, 3)}, {"verb": "train", "parts": ["head"]})
ADDRESS = "a" * 64

# addresses


def test_an_address_is_the_sha256_of_canonical_json():
    import hashlib

    node = {"b": [1, "é"], "a": None}
    assert address_of(node) == hashlib.sha256('{"a":null,"b":[1,"é"]}'.encode()).hexdigest()


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none(), max_size=5))
def test_an_address_does_not_depend_on_the_order_of_keys(node):
    assert address_of(node) == address_of(dict(reversed(node.items())))


@given(st.lists(st.integers(), max_size=4), st.lists(st.integers(), max_size=4))
def test_different_values_have_different_addresses(one, other):
    assert (address_of({"rows": one}) == address_of({"rows": other})) == (one == other)


def test_a_number_that_is_no_json_has_no_address():
    with pytest.raises(ValueError, match="JSON compliant"):
        address_of({"rate": float("nan")})


# atomic writes


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def refuse(monkeypatch, code: int) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fusionkit.store.os.fsync", fail)


def test_a_write_replaces_the_file(tmp_path):
    write_atomic(tmp_path / "deep" / "x", b"one")
    write_atomic(tmp_path / "deep" / "x", b"two")
    assert (tmp_path / "deep" / "x").read_bytes() == b"two"
    assert files_in(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            errno.ENOSPC,
            "(No space left on device). Free some space, then give the same command again: what was computed "
            "is kept.",
        ),
        (
            errno.EROFS,
            "(Read-only file system). Choose a folder that can be written, with --store or --runs.",
        ),
        (errno.EACCES, "(Permission denied). Choose a folder that can be written, with --store or --runs."),
        (errno.EFBIG, "(File too large). The limit on file sizes is too low."),
        (errno.EIO, "(Input/output error). Give the same command again when that is mended."),
    ],
)
def test_a_refused_write_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch, code, text):
    path = tmp_path / "x"
    write_atomic(path, b"old")
    refuse(monkeypatch, code)
    with pytest.raises(ResourceError) as error:
        write_atomic(path, b"new")
    assert str(error.value) == f"{path}: cannot be written {text}"
    assert error.value.exit_code == 8
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["x"]


def test_a_file_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    write_atomic(tmp_path / "x", b"old")

    def fail(source: Path, target: Path) -> None:
        assert source.read_bytes() == b"new", "whole before it is renamed"
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("fusionkit.store.os.replace", fail)
    with pytest.raises(ResourceError, match="Permission denied"):
        write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert files_in(tmp_path) == ["x"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    write_atomic(tmp_path / "x", b"old")

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusionkit.store.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert files_in(tmp_path) == ["x"]


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError) as error:
        write_atomic(tmp_path / "file" / "deep" / "x", b"new")
    assert str(error.value).startswith(
        f"{tmp_path / 'file' / 'deep' / 'x'}: cannot be written (Not a directory)."
    )


def test_a_full_disk_stops_the_store_and_what_it_holds_stays_whole(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save(ADDRESS, ARTEFACT)
    refuse(monkeypatch, errno.ENOSPC)
    with pytest.raises(ResourceError, match="No space left on device"):
        store.save("b" * 64, ARTEFACT)
    monkeypatch.undo()
    fresh = Store(tmp_path)
    assert fresh.has(ADDRESS)
    assert not fresh.has("b" * 64)


def test_a_store_that_cannot_be_locked_is_one_sentence(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    with (
        pytest.raises(ResourceError, match=r"store/locks: cannot be written \(Not a directory\)"),
        Store(tmp_path / "store").lock(ADDRESS, "toy"),
    ):
        pass


# artefacts


def test_an_artefact_comes_back_as_it_was(tmp_path):
    tensors = {
        "scalar": torch.tensor(7),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "view": torch.arange(9.0).reshape(3, 3).T,
    }
    Store(tmp_path).save(ADDRESS, Artefact(tensors, {"history": [{"loss": 0.1}], "inf": float("inf")}))
    found = Store(tmp_path).load(ADDRESS)
    assert found is not None
    assert found.metadata == {"history": [{"loss": 0.1}], "inf": float("inf")}
    assert set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_tied_weights_are_kept_twice(tmp_path):
    weight = torch.ones(3)
    store = Store(tmp_path)
    store.save(ADDRESS, Artefact({"up": weight, "down": weight}, {}))
    found = store.load(ADDRESS)
    assert found is not None
    assert torch.equal(found.tensors["up"], found.tensors["down"])


def test_the_digest_of_an_artefact_is_its_files_sha256(tmp_path):
    import hashlib

    Store(tmp_path).save(ADDRESS, ARTEFACT)
    store = Store(tmp_path)
    assert store.has(ADDRESS)
    assert store.digest(ADDRESS) == hashlib.sha256(store.artefact_path(ADDRESS).read_bytes()).hexdigest()


def test_what_is_not_there_is_none(tmp_path):
    store = Store(tmp_path / "nowhere")
    assert not store.has(ADDRESS)
    assert store.load(ADDRESS) is None
    assert not (tmp_path / "nowhere").exists()


def test_an_artefact_that_was_deleted_is_not_there_even_where_it_was_written(tmp_path):
    store = Store(tmp_path)
    store.save(ADDRESS, ARTEFACT)
    store.artefact_path(ADDRESS).unlink()
    assert store.load(ADDRESS) is None


def broken_warning(store: Store) -> str:
    return f"{store.artefact_path(ADDRESS)}: not what was written; set aside in broken/ and computed again."


def test_a_flipped_byte_is_set_aside_with_one_warning(tmp_path):
    Store(tmp_path).save(ADDRESS, ARTEFACT)
    store = Store(tmp_path)
    path = store.artefact_path(ADDRESS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert store.load(ADDRESS) is None
        assert store.load(ADDRESS) is None
    assert [str(warning.message) for warning in caught] == [broken_warning(store)]
    assert not path.exists()
    (aside,) = (tmp_path / "broken").iterdir()
    assert aside.read_bytes() == bytes(data)
    store.save(ADDRESS, ARTEFACT)
    assert Store(tmp_path).has(ADDRESS)


@pytest.mark.parametrize("n_bytes", [0, 7, 40])
def test_a_truncated_artefact_is_set_aside(tmp_path, n_bytes):
    store = Store(tmp_path)
    store.save(ADDRESS, ARTEFACT)
    path = store.artefact_path(ADDRESS)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.warns(UserWarning, match="not what was written"):
        assert Store(tmp_path).load(ADDRESS) is None


def test_a_file_without_a_journal_line_is_not_trusted(tmp_path):
    Store(tmp_path / "other").save(ADDRESS, ARTEFACT)
    store = Store(tmp_path / "store")
    store.artefact_path(ADDRESS).parent.mkdir(parents=True)
    (tmp_path / "other" / "artefacts" / f"{ADDRESS}.safetensors").rename(store.artefact_path(ADDRESS))
    with pytest.warns(UserWarning, match="not what was written"):
        assert not store.has(ADDRESS)


def test_one_artefact_is_not_taken_for_another(tmp_path):
    store = Store(tmp_path)
    store.save(ADDRESS, ARTEFACT)
    store.artefact_path(ADDRESS).rename(store.artefact_path("b" * 64))
    with pytest.warns(UserWarning, match="not what was written"):
        assert not Store(tmp_path).has("b" * 64)


# the journal


@pytest.mark.parametrize("torn", [b'{"name": "artefacts/x", "sha2', b'{"name": 3}\n', b"\xff\xfe\n", b"[]\n"])
def test_a_torn_line_spoils_no_other(tmp_path, torn):
    Store(tmp_path).save(ADDRESS, ARTEFACT)
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(torn)
    store = Store(tmp_path)
    assert store.has(ADDRESS)
    store.save("b" * 64, ARTEFACT)
    again = Store(tmp_path)
    assert again.has(ADDRESS)
    assert again.has("b" * 64)


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path):
    writer, reader = Store(tmp_path), Store(tmp_path)
    writer.save(ADDRESS, ARTEFACT)
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="not what was written"):
        assert not reader.has(ADDRESS)
    journal.write_bytes(whole)
    write_atomic(writer.artefact_path(ADDRESS), next((tmp_path / "broken").iterdir()).read_bytes())
    assert reader.has(ADDRESS)


def test_a_reader_sees_what_another_writes_later(tmp_path):
    reader = Store(tmp_path)
    assert not reader.has(ADDRESS)
    Store(tmp_path).save(ADDRESS, ARTEFACT)
    assert reader.has(ADDRESS)


def test_a_crash_between_journal_and_file_keeps_the_older_file(tmp_path, monkeypatch):
    """A checkpoint is written again and again: losing the newest must not lose the one before."""
    store = Store(tmp_path)
    store.put("checkpoints/x.safetensors", b"epoch 1")

    def crash(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusionkit.store.write_atomic", crash)
    with pytest.raises(KeyboardInterrupt):
        store.put("checkpoints/x.safetensors", b"epoch 2")
    monkeypatch.undo()
    after = Store(tmp_path)
    assert after.verify("checkpoints/x.safetensors")
    assert after.path("checkpoints/x.safetensors").read_bytes() == b"epoch 1"


# several processes


def compute_once(root: Path, log: Path, address: str) -> None:
    store = Store(root)
    with store.lock(address, "toy"):
        if not store.has(address):
            time.sleep(0.2)
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
            store.save(address, ARTEFACT)


def test_two_processes_compute_an_address_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    workers = [
        context.Process(target=compute_once, args=(tmp_path / "store", log, ADDRESS)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(log.read_text().splitlines()) == 1
    assert Store(tmp_path / "store").has(ADDRESS)


def hold(root: Path, ready: Path) -> None:
    with Store(root).lock(ADDRESS, "toy"):
        ready.touch()
        time.sleep(600)


def test_a_killed_holder_frees_its_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=hold, args=(tmp_path / "store", tmp_path / "ready"))
    holder.start()
    try:
        while not (tmp_path / "ready").exists():
            assert holder.is_alive()
            time.sleep(0.02)
    finally:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    started = time.monotonic()
    with Store(tmp_path / "store").lock(ADDRESS, "toy"):
        assert time.monotonic() - started < 5


def test_locks_of_different_addresses_do_not_wait(tmp_path):
    store = Store(tmp_path)
    with store.lock(ADDRESS, "toy"), store.lock("b" * 64, "toy"):
        pass


# listing and pruning


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def test_entries_are_listed_newest_first(tmp_path):
    store = Store(tmp_path)
    store.save(ADDRESS, ARTEFACT)
    age(store.artefact_path(ADDRESS), 1)
    store.put("features/p/q.safetensors", b"not safetensors")
    entries = list_entries(tmp_path)
    assert [(entry.kind, entry.name) for entry in entries] == [
        ("features", "p/q.safetensors"),
        ("artefacts", f"{ADDRESS}.safetensors"),
    ]
    assert entries[0].metadata == {"state": "unreadable"}
    assert entries[1].metadata == dict(ARTEFACT.metadata)
    assert entries[1].size == store.artefact_path(ADDRESS).stat().st_size
    assert list_entries(tmp_path / "nowhere") == []


def went(root, **given):
    done = prune(root, **given)
    return done.files, done.size, done.users


def test_pruning_deletes_what_is_older_and_what_is_broken(tmp_path):
    store = Store(tmp_path)
    for address, days in ((ADDRESS, 10.0), ("b" * 64, 1.0)):
        store.save(address, ARTEFACT)
        age(store.artefact_path(address), days)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x").write_bytes(b"123")
    size = store.artefact_path(ADDRESS).stat().st_size
    assert went(tmp_path, older_than_days=5) == (2, size + 3, ())
    fresh = Store(tmp_path)
    assert not fresh.has(ADDRESS)
    assert fresh.has("b" * 64)
    assert went(tmp_path, older_than_days=5) == (0, 0, ())
    assert went(tmp_path / "nowhere", older_than_days=0) == (0, 0, ())
    assert not (tmp_path / "nowhere").exists()


def test_pruning_leaves_what_a_running_process_may_hold(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "artefacts").mkdir()
    fresh_file = tmp_path / "artefacts" / ".x.1.tmp"
    stale_file = tmp_path / "artefacts" / ".y.1.tmp"
    for path in (fresh_file, stale_file):
        path.write_bytes(b"")
    age(stale_file, 1)
    with store.lock(ADDRESS, "toy"):
        age(tmp_path / "locks" / f"{ADDRESS}.lock", 1)
        prune(tmp_path, older_than_days=0)
        assert (tmp_path / "locks" / f"{ADDRESS}.lock").exists()
    assert fresh_file.exists()
    assert not stale_file.exists()
    free = tmp_path / "locks" / "free.lock"
    free.touch()
    prune(tmp_path, older_than_days=100)
    assert free.exists()
    age(free, 1)
    prune(tmp_path, older_than_days=100)
    assert not free.exists()


def test_what_was_used_yesterday_is_not_old_today(tmp_path):
    Store(tmp_path).save(ADDRESS, ARTEFACT)
    age(Store(tmp_path).artefact_path(ADDRESS), 90)
    assert Store(tmp_path).has(ADDRESS), "which is a use"
    assert prune(tmp_path, older_than_days=30).files == 0
    assert Store(tmp_path).has(ADDRESS)


def test_pruning_leaves_what_a_running_process_uses(tmp_path):
    store = Store(tmp_path)
    for address in (ADDRESS, "b" * 64):
        store.save(address, ARTEFACT)
        age(store.artefact_path(address), 9)
    for name in ("sources/toy/0.png", "checkpoints/c.safetensors"):
        store.put(name, b"x")
        age(tmp_path / name, 9)
    with using(tmp_path):
        assert Store(tmp_path).has(ADDRESS)
        done = prune(tmp_path, older_than_days=0)
        assert (done.files, len(done.users)) == (1, 1), "only what nobody has used since the process began"
        assert done.users[0].startswith(f"process {os.getpid()} on ")
        assert Store(tmp_path).has(ADDRESS)
        assert (tmp_path / "sources/toy/0.png").exists()
    assert [path.name for path in (tmp_path / "locks").iterdir()] == []
    for path in tmp_path.rglob("*.*"):
        age(path, 9)
    assert went(tmp_path, older_than_days=0) == (3, store_size(), ())


def store_size() -> int:
    from fusionkit.store import to_bytes

    return len(to_bytes(ARTEFACT)) + 2


def test_a_process_that_was_killed_uses_nothing(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "run-1-abcdef.lock").touch()
    (tmp_path / "locks" / "run-1-abcdef.json").write_text('{"pid": 1, "host": "x", "since": 0}')
    Store(tmp_path).save(ADDRESS, ARTEFACT)
    age(Store(tmp_path).artefact_path(ADDRESS), 9)
    assert prune(tmp_path, older_than_days=5).files == 1


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    with (
        pytest.raises(ResourceError, match=r"store/locks: cannot be written \(Not a directory\)"),
        using(tmp_path / "store"),
    ):
        pass


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_set_aside_like_what_is_broken(tmp_path, kind):
    artefact = Artefact({"weight": torch.ones(2)}, {})
    store = Store(tmp_path)
    store.save("a" * 64, artefact)
    path = store.artefact_path("a" * 64)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.warns(FusionkitWarning, match="set aside in broken/"):
        assert Store(tmp_path).load("a" * 64) is None
    store.save("a" * 64, artefact)
    assert Store(tmp_path).load("a" * 64) is not None

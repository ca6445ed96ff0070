"""Digests of contents: of a file, and of all files in a folder."""

import hashlib
import os

import pytest

from fusionkit.data.digests import content_digest, tree_digest


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "inner" / "vocabulary.txt").write_bytes(b"words")
    return folder


def test_a_files_digest_is_the_sha256_of_its_bytes(folder):
    expected = hashlib.sha256(b"weights").digest()
    assert content_digest(folder / "weights.bin") == tree_digest(folder / "weights.bin") == expected


def test_a_folders_digest_does_not_depend_on_where_it_lies(folder, tmp_path):
    before = tree_digest(folder)
    folder.rename(tmp_path / "elsewhere")
    assert tree_digest(tmp_path / "elsewhere") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "inner" / "vocabulary.txt").write_bytes(b"other words"),
        lambda folder: (folder / "inner" / "vocabulary.txt").rename(folder / "vocabulary.txt"),
        lambda folder: (folder / "weights.bin").unlink(),
        lambda folder: (folder / "inner" / ".hidden").write_bytes(b""),
    ],
    ids=["another content", "another place", "one less", "one more"],
)
def test_whatever_changes_in_a_folder_changes_its_digest(folder, change):
    before = tree_digest(folder)
    change(folder)
    assert tree_digest(folder) != before


def test_a_link_that_leads_back_ends(folder):
    before = tree_digest(folder)
    os.symlink(folder, folder / "inner" / "back")
    assert tree_digest(folder) == before


def test_what_is_no_file_is_an_error(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(OSError, match="it is a named pipe, not a file"):
        tree_digest(folder)
    with pytest.raises(FileNotFoundError):
        tree_digest(folder / "nothing")

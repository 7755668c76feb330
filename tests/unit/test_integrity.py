"""Checking a file against a hash."""

import hashlib

import pytest

from mm_core import NotFoundError, StorageError, UsageError, file_sha256, verify_file_integrity

pytestmark = pytest.mark.unit

DATA = bytes(range(256)) * 9000  # more than two blocks, and no multiple of one


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("form", [str, str.upper, "sha256:{}".format, " {}\n".format])
def test_the_right_hash_matches_however_it_is_written(file, form):
    """Upper case, a prefix and space around make no difference."""
    assert verify_file_integrity(file, form(hashlib.sha256(DATA).hexdigest())) is True


def test_one_flipped_bit_is_seen(file):
    """A file of the same size with one other bit does not match."""
    expected = file_sha256(file)
    file.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    assert verify_file_integrity(str(file), expected) is False


def test_an_empty_file_has_a_hash(tmp_path):
    """Nothing is hashed as nothing."""
    (tmp_path / "empty").touch()
    assert file_sha256(tmp_path / "empty") == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("hash_", ["", "abc", "md5:" + "0" * 64, "0" * 63 + "g", "0" * 65])
def test_what_is_no_sha256_is_an_error(file, hash_):
    """A malformed hash is the caller's mistake, and is never taken for a mismatch."""
    with pytest.raises(UsageError):
        verify_file_integrity(file, hash_)


def test_a_missing_file_is_not_a_mismatch(tmp_path):
    """A missing file, and a folder, are errors of their own."""
    with pytest.raises(NotFoundError, match="nothing-here"):
        verify_file_integrity(tmp_path / "nothing-here", "0" * 64)
    with pytest.raises(StorageError):
        verify_file_integrity(tmp_path, "0" * 64)

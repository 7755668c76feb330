"""Names from outside are safe as keys in a bucket and as paths on any disk."""

import os
import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mm_core import InvalidNameError, check_path
from mm_core.names import (
    MAX_PATH_BYTES,
    check_alias,
    check_model_id,
    check_paths,
    check_version,
    fold,
)

pytestmark = pytest.mark.unit

# Names made of what is dangerous are more telling than names made of anything.
PIECES = ["..", ".", "/", "\\", "a", "B", "é", "e\u0301", " ", ":", "C:", "CON", "nul", "\0", "\n", "~", "%2e",
          "%2f", "\u202e", "\u2215", "ß", "ſ", "-", "_", "?", "*", "$", "`", "com1", ".txt", "İ", "\ud800", "v1"]  # fmt: skip
dangerous = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
names = st.one_of(dangerous, st.text(max_size=30))
thorough = settings(max_examples=400, derandomize=True, deadline=None)


def accepted(check, name):
    try:
        return check(name)
    except InvalidNameError:
        return None


@thorough
@given(names)
def test_an_accepted_path_stays_within_its_folder(name):
    """However the disk looks at it, the file is below the root, and under the very name."""
    path = accepted(check_path, name)
    assume(path is not None)
    assert path == name
    joined = os.path.normpath(os.path.join("/models/m", path))
    assert joined == f"/models/m/{path}"
    import ntpath

    windows = ntpath.normpath(ntpath.join("C:\\root", path))
    assert windows.startswith("C:\\root\\")
    assert windows.removeprefix("C:\\root\\") == path.replace("/", "\\")


@thorough
@given(names)
def test_an_accepted_path_is_visible_and_printable_as_bytes(name):
    """No control, direction or line character hides in it, and it has a UTF-8 form."""
    path = accepted(check_path, name)
    assume(path is not None)
    assert len(path.encode()) <= MAX_PATH_BYTES
    hidden = {unicodedata.category(c) for c in path.replace("\u200c", "").replace("\u200d", "")}
    assert not hidden & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@thorough
@given(names)
def test_ids_versions_and_aliases_are_paths_as_well(name):
    """What is accepted is in NFC, is accepted again unchanged, and is a safe path."""
    for check in (check_model_id, check_version, check_alias):
        good = accepted(check, name)
        if good is None:
            continue
        assert good == unicodedata.normalize("NFC", good) == check(good) == check_path(good)
        assert "/" not in good or check is check_model_id
        assert not good.startswith((".", "-", "/"))
        assert not set(good) & set("@:#?%&= ")


@thorough
@given(names, names)
def test_two_names_that_a_disk_takes_for_one_fold_to_one(a, b):
    """Case and Unicode form make no difference to `fold`."""
    assume("\ud800" not in a)
    for other in (unicodedata.normalize("NFD", a), unicodedata.normalize("NFC", a)):
        assert fold(other) == fold(a)
    if a.isascii():
        assert fold(a.upper()) == fold(a.lower())
    if fold(a) != fold(b):
        assert a != b


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "..", "a/../b", "./a", "a/./b", "a//b", "a/", "a\\b", "C:/x", "c:x", "a\0", "a\nb",
     "a\x7f", "a\u2028b", "x\u202egnp.exe", "\ufeffa", "a.", "a ", "b/a. /c", "CON", "con.txt", "a/NUL", "nul .txt",
     "COM1", "lpt9.log", "com¹", "a<b", "a|b", 'a"b', "a*b", "a?b", "w?versionId=abc", "a:stream", "\ud800",
     "a" * 256, "a/" * 450 + "aa", "é" * 128],
)  # fmt: skip
def test_dangerous_paths_are_refused(path):
    """Traversal, absolute paths, devices, streams, invisible characters, over-long names."""
    with pytest.raises(InvalidNameError):
        check_path(path)


@pytest.mark.parametrize(
    "path",
    ["config.json", ".gitattributes", "1_Pooling/config.json", "onnx/model_O4.onnx", "a b (1).txt", "模型/权重.bin",
     "model-00001-of-00002.safetensors", "..a", "a..b", "...a", "console.txt", "a%2e%2e/b", "~", "-rf", "$HOME",
     "می\u200cخواهم.txt", "a" * 255],
)  # fmt: skip
def test_ordinary_paths_are_accepted(path):
    """What real repositories hold is fine, and is not changed."""
    assert check_path(path) == path


@pytest.mark.parametrize("model_id", ["", "/", "a/", "/a", "a//b", "../a", "a/..", ".mm", "a/.b", "-a", "a b",
                                      "a@b", "a:b", "a\\b", "a/con", "a.", "_a", "a?", "x" * 201])  # fmt: skip
def test_bad_model_ids(model_id):
    """An id is segments of letters, digits and a few marks, and never hides."""
    with pytest.raises(InvalidNameError):
        check_model_id(model_id)


@pytest.mark.parametrize("model_id", ["a", "org/name", "a/b/c", "gpt-2.5_x+y", "日本/モデル", "0"])
def test_good_model_ids(model_id):
    """With or without an organisation, in any script."""
    assert check_model_id(model_id) == model_id


def test_an_alias_can_never_hide_a_commit():
    """40 hex digits are a version, never an alias."""
    commit = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    assert check_version(commit) == commit
    with pytest.raises(InvalidNameError):
        check_alias(commit)
    assert check_alias(commit[:-1]) == commit[:-1]


@pytest.mark.parametrize(
    ("paths", "case_blind", "ok"),
    [
        (["a", "b/a"], True, True),
        (["a", "a"], False, False),
        (["a", "a/b"], False, False),
        (["a/b", "a"], False, False),
        (["a", "a-b", "a/b"], False, False),
        (["A", "a"], False, True),
        (["A", "a"], True, False),
        (["A", "a/b"], True, False),
        (["A/x", "a/y"], True, True),
        (["\u00e9", "e\u0301"], False, True),
        (["\u00e9", "e\u0301"], True, False),
        (["x", "../x"], False, False),
    ],
)
def test_paths_that_cannot_stand_side_by_side(paths, case_blind, ok):
    """Twice, file and folder at once, or one name to this disk."""
    if ok:
        check_paths(paths, case_blind=case_blind)
    else:
        with pytest.raises(InvalidNameError):
            check_paths(paths, case_blind=case_blind)

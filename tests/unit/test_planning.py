"""make_plan: a pure function from what exists to what must be done."""

from __future__ import annotations

import pytest

from mm_core import (
    Action,
    InvalidNameError,
    ModelType,
    NotFoundError,
    RemoteFile,
    Request,
    Snapshot,
    UsageError,
)
from mm_core.planning import make_plan

pytestmark = pytest.mark.unit

SHA = "a" * 64


def snapshot(*files: RemoteFile, revision: str | None = "rev1") -> Snapshot:
    return Snapshot(source="x://m", revision=revision, files=files, model_id="org/m")


def plan_of(*files: RemoteFile, **options):
    request = options.pop("request", Request(url="x://m"))
    shot = options.pop("snapshot", None) or snapshot(*files)
    options = {"present": {}, "known": {}} | options
    return make_plan(request, shot, **options)


def test_new_files_are_fetched_under_their_real_names():
    """A file that is nowhere is fetched to models/<id>/<version>/<path>."""
    plan = plan_of(RemoteFile(path="a/b.bin", size=5, sha256=SHA))
    assert [(f.key, f.action) for f in plan.files] == [("models/org/m/rev1/a/b.bin", Action.FETCH)]
    assert plan.bytes_to(Action.FETCH) == 5


def test_a_file_with_a_known_hash_and_the_right_size_is_present():
    """What an earlier attempt left is kept if it can be checked."""
    key = "models/org/m/rev1/a"
    plan = plan_of(RemoteFile(path="a", size=5, git_sha1="b" * 40), present={key: 5})
    assert plan.files[0].action is Action.PRESENT


@pytest.mark.parametrize(
    "file", [RemoteFile(path="a", size=5), RemoteFile(path="a", size=4, sha256=SHA)]
)
def test_a_file_that_cannot_be_checked_or_has_another_size_is_fetched_again(file):
    """Without a stated hash, or with another size, nothing is taken for granted."""
    plan = plan_of(file, present={"models/org/m/rev1/a": 5})
    assert plan.files[0].action is Action.FETCH


def test_equal_bytes_elsewhere_are_copied():
    """A file whose sha256 stands in another version is copied within the store."""
    plan = plan_of(RemoteFile(path="a", size=5, sha256=SHA), known={SHA: "models/org/m/rev0/a"})
    assert plan.files[0].action is Action.COPY
    assert plan.files[0].copy_from == "models/org/m/rev0/a"


def test_the_callers_names_win():
    """--as, --version and --type override what the source suggests."""
    request = Request(url="x://m", model_id="my/own", version="v1", model_type=ModelType.FILL_MASK)
    plan = plan_of(RemoteFile(path="a"), request=request)
    assert (plan.model_id, plan.version, plan.model_type) == ("my/own", "v1", ModelType.FILL_MASK)


def test_no_fixed_revision_is_an_error_that_names_the_flag():
    """A source without revision needs --version."""
    with pytest.raises(UsageError) as caught:
        plan_of(snapshot=snapshot(RemoteFile(path="a"), revision=None))
    assert "--version" in caught.value.hint


def test_no_file_is_an_error():
    """Patterns that leave nothing are a mistake, not an empty model."""
    with pytest.raises(NotFoundError):
        plan_of(snapshot=snapshot())


def test_names_are_checked_for_the_sink_that_will_hold_them():
    """Two names that differ by case are fine, except on a sink that ignores case."""
    files = (RemoteFile(path="README.md"), RemoteFile(path="readme.md"))
    assert len(plan_of(*files).files) == 2
    with pytest.raises(InvalidNameError, match=r"readme\.md"):
        plan_of(*files, case_blind=True)


@pytest.mark.parametrize("path", ["../escape.txt", "/etc/passwd", "C:\\x", "a\\b", "a/../../b"])
def test_evil_paths_are_refused_and_named(path):
    """A plan never holds a path that could leave its folder."""
    with pytest.raises(InvalidNameError) as caught:
        plan_of(RemoteFile(path=path))
    assert repr(path)[1:-1] in str(caught.value)

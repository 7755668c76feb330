"""The error tree."""

import copy
import inspect
import pickle
import re

import pytest

from mm_core import exceptions
from mm_core.exceptions import MMError

pytestmark = pytest.mark.unit

ERRORS = [e for _, e in inspect.getmembers(exceptions, inspect.isclass) if issubclass(e, MMError)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_each_error_carries_message_and_hint(error):
    """What happened and what to do next; both survive copying and another process."""
    made = error("it failed", hint="do this")
    for one in (made, copy.copy(made), pickle.loads(pickle.dumps(made))):
        assert (str(one), one.message, one.hint) == ("it failed", "it failed", "do this")


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_the_drawing_is_the_tree(error):
    """The docstring draws each error with its exit code, under its parent."""
    drawn = re.search(rf"{error.__name__}\b[^\n\d]*(\d+) ", exceptions.__doc__)
    assert drawn is not None
    assert int(drawn[1]) == error.exit_code
    for builtin in re.findall(r"\((\w+)\)", drawn.group()):
        assert issubclass(error, getattr(__import__("builtins"), builtin))


def test_codes_are_unique():
    """A program can tell every error by its code."""
    codes = [e.code for e in ERRORS]
    assert len(set(codes)) == len(codes)


def test_extra_facts_survive_another_process():
    """What some errors carry beside the message is pickled, too."""
    unknown = exceptions.CommitUnknownError("x", operation_ids=("a",))
    assert pickle.loads(pickle.dumps(unknown)).operation_ids == ("a",)
    wait = exceptions.TransientError("x", retry_after=3.0)
    assert pickle.loads(pickle.dumps(wait)).retry_after == 3.0
    partial = exceptions.PartialError("x", errors={"m": wait})
    assert pickle.loads(pickle.dumps(partial)).errors["m"].retry_after == 3.0

"""Run one test of a suite against something that is wrong on purpose."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from mm_core import MMError

CAUGHT = (AssertionError, pytest.fail.Exception, MMError)
"""How a suite says that something is wrong."""


def methods_of(suite: type) -> set[str]:
    """The names of the tests in a suite."""
    return {name for name in dir(suite) if name.startswith("test_")}


def run_test(suite: type, test: str, given: dict[str, Any]) -> None:
    """One test of `suite`, with what is `given` in place of fixtures and parameters."""
    method = getattr(suite(), test)
    method(**{name: given[name] for name in inspect.signature(method).parameters})

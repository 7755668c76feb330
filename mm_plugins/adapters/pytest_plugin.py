"""The fixture `mm_model`, in every run of pytest where Model Manager is installed.

Nothing of Model Manager is imported before a test asks for a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from mm_core import MMError


class ModelGetter(Protocol):
    """What the fixture `mm_model` is."""

    def __call__(self, reference: str, backend: str | None = None) -> Path:
        """The folder with the verified files of a stored version, which no test may change."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the settings of the fixture."""
    parser.addini("mm_backend", "The backend of mm_model, by name or URL; else the default one")
    parser.addini("mm_unreachable", "When a backend cannot be reached: fail (default) or skip")


@pytest.fixture(scope="session")
def mm_model(pytestconfig: pytest.Config) -> ModelGetter:
    """A stored version as a folder on this machine: ``mm_model("embed/minilm@prod")``.

    Each is looked for once in a run. What is wrong fails the test in the words of `mm`.
    """
    default: str = pytestconfig.getini("mm_backend")
    unreachable: str = pytestconfig.getini("mm_unreachable") or "fail"
    if unreachable not in ("fail", "skip"):
        raise pytest.UsageError(f"mm_unreachable is {unreachable!r}: it can be fail or skip")
    known: dict[tuple[str, str], Path | MMError] = {}

    def get(reference: str, backend: str | None = None) -> Path:
        asked = reference, backend or default
        if asked not in known:
            known[asked] = _look(*asked)
        found = known[asked]
        if isinstance(found, Exception):
            _end(reference, found, may_skip=unreachable == "skip")
        return found

    return get


def _look(reference: str, backend: str) -> Path | MMError:
    from mm_core import MMError
    from mm_plugins.adapters._local import local_path

    try:
        return local_path(reference, backend or None)
    except MMError as error:
        return error


def _end(reference: str, error: MMError, *, may_skip: bool) -> NoReturn:
    from mm_core import TransientError
    from mm_plugins.adapters._local import in_words

    text = f"mm_model {reference}: {in_words(error)}"
    if may_skip and isinstance(error, TransientError):
        pytest.skip(text)
    pytest.fail(text, pytrace=False)

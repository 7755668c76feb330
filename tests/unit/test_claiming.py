"""A claim is given back when a pull ends badly, and nobody waits long for that."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from mm_core import CancelledError, StorageError, TransientError
from mm_core.claiming import abandoned_on_error

pytestmark = pytest.mark.unit


class Registry:
    """Notes what is abandoned; `go` lets it answer."""

    def __init__(self, *, answers: bool = True) -> None:
        self.go = threading.Event()
        self.reasons: list[str] = []
        if answers:
            self.go.set()

    def abandon(self, claim, reason):
        self.go.wait(30)
        self.reasons.append(reason)


def claim_on_m(*, lost: bool = False):
    claim = SimpleNamespace(model_id="m", version="v", lost=threading.Event())
    if lost:
        claim.lost.set()
    return claim


@pytest.mark.parametrize("error", [StorageError("full"), CancelledError("full"), OSError("full")])
def test_any_error_gives_the_claim_back(error):
    """The error goes on as it was, and the registry knows the reason."""
    registry = Registry()
    with pytest.raises(type(error)), abandoned_on_error(registry, claim_on_m()):
        raise error
    assert registry.reasons == ["full"]


def test_a_lost_claim_is_told_instead_of_the_stop_it_caused():
    """The user did not stop it, the store did."""
    with (
        pytest.raises(TransientError, match="claim"),
        abandoned_on_error(Registry(), claim_on_m(lost=True)),
    ):
        raise CancelledError("stopped")


def test_an_interrupted_user_waits_for_no_dead_store():
    """Ctrl-C comes back at once; a store that does answer is told."""
    dead = Registry(answers=False)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), abandoned_on_error(dead, claim_on_m()):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 1
    dead.go.set()
    alive = Registry()
    with pytest.raises(KeyboardInterrupt), abandoned_on_error(alive, claim_on_m()):
        raise KeyboardInterrupt
    assert alive.reasons == ["KeyboardInterrupt"]

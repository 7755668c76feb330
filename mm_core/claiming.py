"""A pull's claim on a version: waited for, and given back when the pull ends badly."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from mm_core.exceptions import CancelledError, MMError, TransientError
from mm_core.redaction import redact
from mm_core.registry import Claim, ModelRegistry
from mm_core.schemas import ModelEntry, Plan, TransferEvent

HASTE = 0.3
"""Seconds that an interrupted pull takes to tell the registry of its end."""


def begin(
    registry: ModelRegistry,
    plan: Plan,
    *,
    wait: bool,
    on_event: Callable[[TransferEvent], None],
    cancelled: threading.Event,
) -> Claim | ModelEntry:
    """`ModelRegistry.begin` for what `plan` would make; waiting is an event."""

    def on_wait(*_: object) -> None:
        message = f"{plan.model_id} {plan.version} is in the hands of another process; waiting"
        on_event(TransferEvent(kind="waiting", model_id=plan.model_id, message=message))

    return registry.begin(
        plan.model_id,
        plan.version,
        model_type=plan.model_type,
        source=plan.snapshot.source,
        wait=wait,
        on_wait=on_wait,
        cancelled=cancelled,
    )


@contextlib.contextmanager
def abandoned_on_error(registry: ModelRegistry, claim: Claim) -> Iterator[None]:
    """Give `claim` back if what is done under it fails; the first error is the one to tell.

    Where the claim was lost meanwhile, that is said, as a `TransientError`. A user
    who interrupts does not wait for a store that does not answer: the claim of a
    process that has ended is taken over.
    """
    try:
        yield
    except BaseException as error:
        reason = redact(str(error)) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            _give_back_in_haste(registry, claim, reason)
        else:
            _give_back(registry, claim, reason)
        if isinstance(error, CancelledError) and claim.lost.is_set():
            raise TransientError(
                f"the backend was out of reach for so long that the claim on {claim.model_id} "
                f"{claim.version} is lost; another process may be fetching it now",
                hint="pull again: what is stored is found",
            ) from error
        raise


def _give_back(registry: ModelRegistry, claim: Claim, reason: str) -> None:
    with contextlib.suppress(MMError):
        registry.abandon(claim, reason)


def _give_back_in_haste(registry: ModelRegistry, claim: Claim, reason: str) -> None:
    work = threading.Thread(target=_give_back, args=(registry, claim, reason), daemon=True)
    work.start()
    work.join(HASTE)

"""How old, or how new, a model may be."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from pydantic import Field

from mm_core import (
    Finding,
    Plan,
    PluginConfig,
    Policy,
    PolicyContext,
    Seconds,
    Snapshot,
    hookimpl,
    parse_rfc3339,
)
from mm_plugins.policies._missing import OnMissing, missing


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy about age."""
    return [AgePolicy]


class AgePolicy(Policy):
    """How long ago the model was last changed at its source, by the source's own word."""

    type = "age"

    class Config(PluginConfig):
        """The settings; what is absent has no limit."""

        max: Seconds | None = Field(default=None, description="Not longer ago, such as 365d")
        min: Seconds | None = Field(
            default=None, description="At least so long ago: a quarantine for new uploads"
        )
        on_missing: OnMissing = Field(
            default="deny", description="What to do where it is not stated: allow, warn or deny"
        )

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterator[Finding]:
        """It is too old, too new, or not stated."""
        changed = last_change(plan.snapshot)
        if changed is None:
            message = f"{plan.snapshot.source} does not state when it was last changed"
            allow = "set on_missing to warn or allow, for this set"
            finding = Finding(rule="age.on_missing", message=message, allow=allow)
            yield from missing(self.config.on_missing, finding)
            return
        age, least, most = (context.now - changed).total_seconds(), self.config.min, self.config.max
        told = f"it was last changed at {changed:%Y-%m-%d %H:%M} UTC"
        if most is not None and age > most:
            message = f"{told}, and {_in_words(most)} ago is the longest"
            yield Finding(rule="age.max", message=message, allow="raise max")
        if least is not None and age < least:
            message = f"{told}, and only what has stood for {_in_words(least)} may enter"
            allow = f"wait {_in_words(least - age)}, or lower min"
            yield Finding(rule="age.min", message=message, allow=allow)


def last_change(snapshot: Snapshot) -> datetime | None:
    """The fact ``last_modified``, if it is a time with a zone."""
    try:
        found = parse_rfc3339(str(snapshot.facts.get("last_modified")))
    except ValueError:
        return None
    return None if found.tzinfo is None else found.astimezone(timezone.utc)


def _in_words(seconds: float) -> str:
    """A time as it is set: ``30d``, ``12h``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g}{unit}"
    return f"{seconds:.3g}s"

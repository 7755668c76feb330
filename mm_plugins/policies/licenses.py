"""Which licences a model may have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from pydantic import Field, field_validator

from mm_core import (
    Finding,
    Names,
    Plan,
    PluginConfig,
    Policy,
    PolicyContext,
    Snapshot,
    hookimpl,
)
from mm_plugins.policies._missing import OnMissing, missing
from mm_plugins.policies._spdx import Group, License, parse

_UNKNOWN = ("", "unknown", "none", "noassertion")


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy about licences."""
    return [LicensePolicy]


class LicensePolicy(Policy):
    """What a source states as the licence, against two lists.

    A licence is an id of SPDX or of the Hub, of any case. Where several are joined by
    AND all must be allowed, and by OR one. ``other`` with a name of its own on the
    Hub is ``other:NAME``. What cannot be read as an expression counts as not stated,
    and is at least warned of.
    """

    type = "licenses"

    class Config(PluginConfig):
        """The settings: names, or globs of them."""

        allow: Names | None = Field(default=None, description="Only these; all if absent")
        deny: Names = Field(default_factory=list, description="Never these, even if allowed")
        on_missing: OnMissing = Field(
            default="deny", description="What to do where none is stated: allow, warn or deny"
        )

        @field_validator("allow", "deny")
        @classmethod
        def _one_by_one(cls, names: list[str] | None) -> list[str] | None:
            for name in names or ():
                if re.search(r"(?i)\s(and|or)\s", name):
                    raise ValueError(f"{name!r} is an expression: list its licences one by one")
            return names

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterator[Finding]:
        """What is stated is not allowed, or nothing is."""
        stated = (plan.snapshot.license or "").strip()
        if stated.lower() in _UNKNOWN:
            yield from self._missing("no licence is stated", self.config.on_missing)
            return
        expression = parse(stated)
        if expression is None:
            how: OnMissing = "deny" if self.config.on_missing == "deny" else "warn"
            yield from self._missing(f"{stated!r} cannot be read as licences", how)
        elif not expression.holds(lambda one: self._permits(_named(one, plan.snapshot))):
            yield from self._refused(stated, expression, plan.snapshot)

    def _missing(self, message: str, how: OnMissing) -> Iterator[Finding]:
        allow = "set on_missing to warn or allow, for this set"
        return missing(how, Finding(rule="licenses.on_missing", message=message, allow=allow))

    def _refused(self, stated: str, expression: Group, snapshot: Snapshot) -> Iterator[Finding]:
        named = [_named(one, snapshot) for one in expression.licenses()]
        denied = [one.name for one in named if self._is_denied(one)]
        if denied:
            yield Finding(
                rule="licenses.deny",
                message=f"its licence is {stated!r}, and {', '.join(denied)} is denied",
                allow="take what matches off that list",
            )
            return
        others = [one.name for one in named if not self._permits(one)]
        yield Finding(
            rule="licenses.allow",
            message=f"its licence is {stated!r}, which is not among those that are allowed",
            allow=f"add {' or '.join(dict.fromkeys(others))} to that list",
        )

    def _permits(self, one: License) -> bool:
        if self._is_denied(one):
            return False
        return self.config.allow is None or _matches(one, self.config.allow)

    def _is_denied(self, one: License) -> bool:
        return _matches(one, self.config.deny)


def _matches(one: License, patterns: list[str]) -> bool:
    wanted = [" ".join(pattern.lower().split()) for pattern in patterns]
    return any(fnmatchcase(name, pattern) for name in one.spellings() for pattern in wanted)


def _named(one: License, snapshot: Snapshot) -> License:
    """``other`` with the name that the model's card gives it."""
    card = snapshot.facts.get("card")
    name = card.get("license_name") if isinstance(card, dict) else None
    if one.name != "other" or not isinstance(name, str) or not name.strip():
        return one
    return License(f"other:{'-'.join(name.lower().split())}", one.exception)

"""Where a model may come from."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from pydantic import Field

from mm_core import Finding, Names, Plan, PluginConfig, Policy, PolicyContext, hookimpl


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy about sources."""
    return [SourcesPolicy]


class SourcesPolicy(Policy):
    """Globs over the canonical URL of a source, such as ``hf://meta-llama/*``.

    A copy goes by two names: where the model first came from, and the ``mm://``
    address that it is copied by. Either may be what is allowed, and neither may be
    denied. What is denied is so in any case of its letters, since hubs differ in that.
    """

    type = "sources"

    class Config(PluginConfig):
        """The settings: globs over whole URLs, where ``*`` also matches ``/``."""

        allow: Names | None = Field(default=None, description="Only these; all if absent")
        deny: Names = Field(default_factory=list, description="Never these, even if allowed")

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterator[Finding]:
        """None of its names is allowed, or one is denied."""
        allow, names = self.config.allow, list(dict.fromkeys(_names(plan)))
        origin = plan.snapshot.source
        folded = [name.casefold() for name in names]
        for pattern in self.config.deny:
            if _any_matches(folded, pattern.casefold()):
                message = f"it comes from {origin}, and {pattern!r} is denied"
                yield Finding(rule="sources.deny", message=message, allow="take it off that list")
        if allow is not None and not any(_any_matches(names, pattern) for pattern in allow):
            yield Finding(
                rule="sources.allow",
                message=f"it comes from {origin}, which is not among what is allowed",
                allow=f"add a glob that matches {names[-1]} to that list",
            )


def _names(plan: Plan) -> Iterator[str]:
    """The source, and where it is copied from, each with its revision and without."""
    snapshot, asked = plan.snapshot, plan.request
    yield snapshot.source
    if asked is not None and asked.url.lower().startswith("mm://"):
        yield asked.url
        yield asked.url.partition("@")[0]
    yield snapshot.source.removesuffix(f"@{snapshot.revision}").partition("#")[0]


def _any_matches(names: list[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)

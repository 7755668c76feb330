"""Whether the caller must say which revision is meant."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from mm_core import Finding, Plan, PluginConfig, Policy, PolicyContext, hookimpl


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy about revisions."""
    return [RevisionPolicy]


class RevisionPolicy(Policy):
    """The caller named the fixed revision itself, not a branch, a tag, or nothing at all.

    By ``--revision``, after an ``@`` or ``#sha256=`` in the address, or as the
    version. Folders of this machine have no names that others could move.
    """

    type = "revision"

    class Config(PluginConfig):
        """The settings."""

        pinned: bool = Field(default=False, description="Whether it must be named")

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterator[Finding]:
        """It was not named."""
        source, fixed = plan.snapshot.source, plan.snapshot.revision
        if not self.config.pinned or source.startswith("file:") or is_pinned(plan):
            return
        if fixed is None:
            message = f"{source} has no fixed revision"
            allow = "add #sha256=… to the URL, if it is one"
        else:
            message = f"which revision of {source} is meant was not said"
            allow = f"pull it with --revision {fixed}"
        yield Finding(rule="revision.pinned", message=message, allow=allow)


def is_pinned(plan: Plan) -> bool:
    """Whether what was asked for can only ever be what came."""
    asked, snapshot = plan.request, plan.snapshot
    if asked is None:
        return False
    fixed = {snapshot.revision, snapshot.version} - {None}
    hashes = {file.sha256 for file in snapshot.files} if len(snapshot.files) == 1 else set()
    named = asked.url.rpartition("@")[2] if "@" in asked.url else None
    digest = asked.url.rpartition("#sha256=")[2].lower() if "#sha256=" in asked.url else None
    return (
        asked.revision in fixed
        or named in fixed
        or (asked.version is not None and asked.version == snapshot.revision)
        or (digest is not None and digest in hashes)
    )

"""Policy: the port to what may enter a backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from mm_core.configured import Configured
from mm_core.schemas import Plan
from mm_core.signatures.port import TrustedKeys

if TYPE_CHECKING:
    from mm_core.content import Content


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a policy has to say of a model.

    `rule` is the setting that says so: ``formats.deny``, or ``deny`` alone, and the
    policy's own name where it is no setting in particular. `message` says what is wrong, of
    the file `path` where it is about one. `allow` tells how whoever may decide it lets it
    in. One that is not `refused` is a warning.
    """

    rule: str
    message: str
    allow: str
    path: str | None = None
    refused: bool = True

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {
            "rule": self.rule,
            "path": self.path,
            "message": self.message,
            "allow": self.allow,
            "refused": self.refused,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a look at the bytes ended with.

    `facts` are JSON data that the manifest keeps with the version, under the
    policy's type: who looked, in which version, and what came of it.
    """

    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContext:
    """Where a plan is about to be carried out, and when.

    `backend` is the backend's name or root URL. `now` is in UTC. `trusted` are those whose
    signatures count by the section ``signing`` of ``mm.yaml``.
    """

    backend: str
    trusted: TrustedKeys = field(default_factory=TrustedKeys)
    now: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


class Policy(Configured):
    """One kind of rule about what may enter, such as ``formats`` or ``licenses``.

    A set of them stands under ``policies`` in ``mm.yaml``: each key of a set is
    the `type` of a policy, what is below it are the policy's settings. It is
    asked twice: about the plan, before a byte moves, and about the bytes, when
    all are stored and verified and none is visible. What one finds refused stops
    the pull, and nothing of it stays behind.

    One instance serves one set; it may be asked from several threads. An error
    that it raises stops the pull as well: a policy that cannot tell has failed.
    """

    reads_content: ClassVar[bool] = False
    """Whether `check_content` is to be asked."""

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterable[Finding]:
        """What is wrong with a plan, as far as names, sizes and facts tell. Reads no content."""
        return ()

    def check_content(self, plan: Plan, content: Content, context: PolicyContext) -> Checked:
        """What is wrong with the bytes. `content` has every file of the plan.

        Read as little as tells it: a model may have hundreds of GB. Never unpickle,
        import or run anything of it.
        """
        return Checked()

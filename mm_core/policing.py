"""Asking the policies that hold for a backend: all that they find, not only the first."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mm_core.backends import open_sink
from mm_core.config import Settings, build_config, is_address
from mm_core.exceptions import IntegrityError, MMError, PluginError, PolicyError
from mm_core.policy import Checked, Finding, Policy, PolicyContext
from mm_core.redaction import redact
from mm_core.schemas import Plan, canonical_json
from mm_core.signatures.keys import trusted_keys

if TYPE_CHECKING:
    from mm_core.content import Content
    from mm_core.place import Place
    from mm_core.plugins import Plugins

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

LINES = 10
"""So many findings are told one by one; all of them are in `PolicyError.findings`."""

BUILT_IN = "built in"
"""The place of a rule that no file states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One policy of the set named `set`. `backends` is where it holds, None for everywhere.

    `values` are its settings as they stand in ``mm.yaml`` at `where`, secrets masked.
    """

    set: str
    policy: Policy
    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    backends: tuple[str, ...] | None = None

    @property
    def setting(self) -> str:
        """The way to it in ``mm.yaml``: ``policies.default.formats``."""
        return f"policies.{self.set}.{self.policy.type}"

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON data."""
        return {
            "set": self.set,
            "policy": self.policy.type,
            "settings": dict(self.values),
            "backends": None if self.backends is None else list(self.backends),
            "where": self.where,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What was found, and by which setting, at which place (``mm.yaml:12``)."""

    finding: Finding
    setting: str
    where: str

    @property
    def line(self) -> str:
        """All of it, for people, on one line."""
        found = self.finding
        subject = "" if found.path is None else f"{found.path}: "
        told = f"{subject}{found.message} ({self.setting}, {self.where})"
        return _on_one_line(f"{told}; to allow it: {found.allow}" if found.allow else told)

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON data, with where its rule comes from."""
        found = self.finding.to_json()
        words = {name: redact(found[name]) for name in ("message", "allow")}
        return {**found, **words, "setting": self.setting, "where": self.where}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the policies of `backend` say of a model. `checks` are the facts of what was read.

    `unread` are the files that no policy could look into, since nobody states their size.
    """

    plan: Plan
    backend: str
    rulings: tuple[Ruling, ...]
    checks: Mapping[str, Any] = field(default_factory=dict)
    read: bool = False
    unread: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it may enter."""
        return not any(ruling.finding.refused for ruling in self.rulings)

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON data."""
        return {
            "ok": self.ok,
            "source": self.plan.snapshot.source,
            "model_id": self.plan.model_id,
            "version": self.plan.version,
            "backend": self.backend,
            "findings": [ruling.to_json() for ruling in self.rulings],
            "checks": dict(self.checks),
            "content": self.read,
            "unread": list(self.unread),
        }


class Rules:
    """All policies that the settings name, each made once. Safe among threads.

    `ConfigError` and `PluginError`, where one cannot be made, come when it is first
    asked for: nothing enters a backend unasked.
    """

    def __init__(self, settings: Settings, plugins: Plugins) -> None:
        self._settings = settings
        self._plugins = plugins
        self._lock = threading.RLock()
        self._made: tuple[Rule, ...] | None = None
        self._roots: dict[str, str | None] = {}

    def of(self, place: Place) -> tuple[Rule, ...]:
        """The rules that hold for `place`, also where it was named by its URL."""
        return tuple(rule for rule in self._all() if self._holds(rule.backends, place))

    def about_plan(self, place: Place, plan: Plan) -> list[Ruling]:
        """What is wrong with `plan`, by all rules."""
        context = self._context(place)
        rulings: list[Ruling] = []
        for rule in self.of(place):
            ask = partial(rule.policy.check_plan, plan, context)
            rulings += self._ruled(rule, _asked(rule, ask, tuple))
        return rulings

    def about_content(
        self, place: Place, plan: Plan, content: Content, rules: Sequence[Rule] | None = None
    ) -> tuple[list[Ruling], dict[str, Any]]:
        """What is wrong with the bytes, by all `rules` that look at them, and what they noted.

        The rules are those of `place`, if none are given.
        """
        context = self._context(place)
        rulings: list[Ruling] = []
        facts: dict[str, Any] = {}
        for rule in self.of(place) if rules is None else rules:
            if not rule.policy.reads_content:
                continue
            ask = partial(rule.policy.check_content, plan, content, context)
            checked = _asked(rule, ask, _as_data)
            found = checked.findings if isinstance(checked, Checked) else checked
            rulings += self._ruled(rule, found)
            if isinstance(checked, Checked) and checked.facts:
                facts[rule.policy.type] = dict(checked.facts)
        return rulings, facts

    def only(self, place: Place, *types: str) -> tuple[Rule, ...]:
        """The rules of these types that hold for `place`; with no settings where none does."""
        found = [rule for rule in self.of(place) if rule.policy.type in types]
        there = {rule.policy.type for rule in found}
        bare = (self._plugins.policy_type(type_) for type_ in types if type_ not in there)
        return (*found, *(Rule(set="scan", policy=kind(), where=BUILT_IN) for kind in bare))

    def _context(self, place: Place) -> PolicyContext:
        return PolicyContext(backend=place.name, trusted=trusted_keys(self._settings.signing))

    def _all(self) -> tuple[Rule, ...]:
        with self._lock:
            if self._made is None:
                self._made = tuple(self._rules())
            return self._made

    def _rules(self) -> Iterator[Rule]:
        shown = self._settings.to_json(plugins=self._plugins)["policies"]
        for name, values in self._settings.policy_sets.items():
            backends = values.get("backends")
            for type_ in [key for key in values if key != "backends"]:
                if name not in self._settings.policies and self._is_left_out(type_):
                    continue
                kind, path = self._plugins.policy_type(type_), ("policies", name, type_)
                yield Rule(
                    set=name,
                    policy=kind(build_config(kind.Config, values[type_], path, self._settings)),
                    where=self._where(name, type_),
                    values=shown[name][type_],
                    backends=None if backends is None else tuple(backends),
                )

    def _is_left_out(self, type_: str) -> bool:
        """Whether a policy that nobody asked for is not among the plugins, which is no fault.

        One that is broken is missed: the entry point has the type's own name.
        """
        broken = type_ in self._plugins.broken
        return not broken and type_ not in self._plugins.offered("policies")

    def _ruled(self, rule: Rule, findings: Sequence[Finding]) -> Iterator[Ruling]:
        for finding in findings:
            type_, parts = rule.policy.type, finding.rule.split(".")
            path = parts if parts[0] == type_ else [type_, *parts]
            setting = ".".join(("policies", rule.set, *path))
            where = self._where(rule.set, *path)
            yield Ruling(finding=finding, setting=setting, where=where)

    def _where(self, *path: str) -> str:
        if path[0] not in self._settings.policies:
            return BUILT_IN
        origin = self._settings.origin_near(("policies", *path))
        return BUILT_IN if origin is None else str(origin)

    # -- where a rule holds ------------------------------------------------------------

    def _holds(self, backends: Sequence[str] | None, place: Place) -> bool:
        if backends is None or place.name in backends:
            return True
        return any(self._root_of(name, place) == place.sink.root for name in backends)

    def _root_of(self, name: str, place: Place) -> str | None:
        """The root of the backend called `name`; None where it is of another kind than `place`."""
        configured = self._settings.backends.get(name)
        if configured is None and not is_address(name):
            return None
        if configured is not None and configured.type != place.sink.type:
            return None
        with self._lock:
            if name not in self._roots:
                with contextlib.closing(open_sink(self._settings, self._plugins, name)) as sink:
                    self._roots[name] = sink.root
            return self._roots[name]


def word_of_plugin(hook: str, error: PolicyError) -> Ruling:
    """What a plugin refuses that is no policy, but answers to a `hook`."""
    found = Finding(rule=hook, message=str(error), allow=error.hint or "")
    return Ruling(finding=found, setting=hook, where="a plugin")


def refuse(rulings: Sequence[Ruling], plan: Plan, backend: str) -> None:
    """Log what is only warned of; raise `PolicyError`, with all of them, if any is refused."""
    refused = [ruling for ruling in rulings if ruling.finding.refused]
    for ruling in rulings:
        if not ruling.finding.refused:
            logger.warning("%s: %s", plan.model_id, redact(ruling.line))
    if not refused:
        return
    lines = [f"  {ruling.line}" for ruling in refused[:LINES]]
    if len(refused) > LINES:
        lines.append(f"  and {len(refused) - LINES} more")
    model = f"{plan.model_id}@{plan.version}"
    raise PolicyError(
        "\n".join([f"{model} may not enter {backend}:", *lines]),
        hint="`mm policy check` tells all of it, `mm policy list` which rules hold",
        findings=[ruling.to_json() for ruling in rulings],
    )


def _asked(rule: Rule, ask: Callable[[], R], settle: Callable[[R], T]) -> T | tuple[Finding, ...]:
    """What a policy answers, as `settle` makes it; one that cannot tell has found something.

    Errors of the store, of the settings, and of who stops it all pass.
    """
    try:
        return settle(ask())
    except (IntegrityError, PluginError) as error:
        why = str(error)
    except (MMError, KeyboardInterrupt):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        logger.debug("a policy failed", extra={"policy": rule.setting}, exc_info=error)
    message = f"it cannot tell whether the model may enter: {redact(why)}"
    return (Finding(rule=rule.policy.type, message=message, allow=f"leave {rule.setting} out"),)


def _as_data(checked: Checked) -> Checked:
    canonical_json(dict(checked.facts))  # the manifest will keep them
    return checked


def _on_one_line(text: str) -> str:
    """`text` without line feeds and control characters: some of it comes from strangers."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)

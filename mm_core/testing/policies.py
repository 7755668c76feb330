"""PolicyTests: what every policy must do, whatever it is about.

Subclass it and give three fixtures: the `policy`, and two models, one that it lets in
and one that it refuses::

    class TestMyPolicy(PolicyTests):
        @pytest.fixture
        def policy(self):
            return MyPolicy(MyPolicy.Config(words=["secret"]))

        @pytest.fixture
        def allowed(self):
            return ExampleModel(files={"README.md": b"hello"})

        @pytest.fixture
        def refused(self):
            return ExampleModel(files={"README.md": b"this is secret"})

A policy that looks at bytes only when names or sizes give it reason to should have
such names in both models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from mm_core.content import Content, ContentFile
from mm_core.exceptions import TransientError
from mm_core.plugin_config import PluginConfig
from mm_core.policy import Checked, Finding, Policy, PolicyContext
from mm_core.schemas import (
    Action,
    ModelType,
    Plan,
    PlannedFile,
    RemoteFile,
    Request,
    Snapshot,
    canonical_json,
)

MOST_FACTS = 64 << 10
"""The most bytes of facts that a manifest should have to keep of one policy."""


@dataclass(frozen=True, kw_only=True)
class ExampleModel:
    """A model as policies meet it: its plan, and its bytes."""

    files: Mapping[str, bytes]
    source: str = "hf://org/name@0123456789abcdef0123456789abcdef01234567"
    revision: str | None = "0123456789abcdef0123456789abcdef01234567"
    license: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    request: Request = field(default_factory=lambda: Request(url="hf://org/name"))

    def plan(self) -> Plan:
        """The plan to store it, before a byte moves."""
        remote = tuple(
            RemoteFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in self.files.items()
        )
        prefix = "models/org/name/1/"
        return Plan(
            model_id="org/name",
            version="1",
            model_type=ModelType.OTHER,
            snapshot=Snapshot(
                source=self.source,
                revision=self.revision,
                files=remote,
                model_id="org/name",
                license=self.license,
                facts=self.facts,
            ),
            prefix=prefix,
            files=tuple(
                PlannedFile(file=file, key=prefix + file.path, action=Action.FETCH)
                for file in remote
            ),
            request=self.request,
        )

    def content(self, before_read: Callable[[], None] = lambda: None) -> Content:
        """Its bytes; `before_read` is called before each range that is read."""

        def read(data: bytes, start: int, end: int) -> Iterator[bytes]:
            before_read()
            yield data[start:end]

        listed = [
            ContentFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in self.files.items()
        ]
        return Content(listed, {path: partial(read, data) for path, data in self.files.items()})


class PolicyTests:
    """One policy. Needs the fixtures `policy`, `allowed` and `refused`."""

    @pytest.fixture
    def policy(self) -> Policy:
        raise NotImplementedError("give a fixture `policy` that returns the policy")

    @pytest.fixture
    def allowed(self) -> ExampleModel:
        raise NotImplementedError("give a fixture `allowed`: a model that it lets in")

    @pytest.fixture
    def refused(self) -> ExampleModel:
        raise NotImplementedError("give a fixture `refused`: a model that it refuses")

    def test_it_declares_itself(self, policy: Policy) -> None:
        """A type for mm.yaml, and settings that each say what they are for."""
        assert isinstance(policy, Policy)
        assert isinstance(policy.type, str)
        assert policy.type.isidentifier(), "let the type be one word, as a key of mm.yaml"
        assert issubclass(policy.Config, PluginConfig)
        for name, setting in policy.Config.model_fields.items():
            assert setting.description, f"the setting {name} has no description"

    def test_it_says_whether_it_looks_at_bytes(self, policy: Policy) -> None:
        """`reads_content` is set if, and only if, `check_content` does anything."""
        looks = type(policy).check_content is not Policy.check_content
        assert policy.reads_content == looks

    def test_it_lets_in_what_is_allowed(self, policy: Policy, allowed: ExampleModel) -> None:
        """It may warn of it, but refuses nothing."""
        assert [found for found in _findings(policy, allowed) if found.refused] == []

    def test_it_refuses_what_is_not(self, policy: Policy, refused: ExampleModel) -> None:
        """By the plan, or by the bytes."""
        assert any(found.refused for found in _findings(policy, refused))

    def test_a_finding_is_told_in_full(self, policy: Policy, refused: ExampleModel) -> None:
        """The setting that says so, the file, what is wrong, and how to allow it."""
        for found in _findings(policy, refused):
            setting = found.rule.removeprefix(f"{policy.type}.").partition(".")[0]
            assert setting in {policy.type, *policy.Config.model_fields}
            assert found.path is None or found.path in refused.files
            for words in (found.message, found.allow):
                assert words.strip()
                assert "\n" not in words

    def test_it_says_the_same_again(self, policy: Policy, refused: ExampleModel) -> None:
        """Asked once more, and from several threads at once."""
        first = _findings(policy, refused)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: _findings(policy, refused), range(8)))
        assert answers == [first] * 8

    def test_its_facts_can_be_kept(self, policy: Policy, allowed: ExampleModel) -> None:
        """They are JSON data, and small: the manifest holds them."""
        facts = _checked(policy, allowed).facts
        assert len(canonical_json(dict(facts))) <= MOST_FACTS

    def test_it_lets_nothing_in_unseen(self, policy: Policy, allowed: ExampleModel) -> None:
        """Where bytes cannot be read, it says so, or refuses: it never guesses."""
        tries: list[int] = []

        def cut() -> None:
            tries.append(1)
            raise TransientError("the line was cut")

        if not policy.reads_content:
            return
        try:
            checked = policy.check_content(allowed.plan(), allowed.content(cut), _context())
        except TransientError:
            return
        assert not tries or any(found.refused for found in checked.findings)


def _context() -> PolicyContext:
    return PolicyContext(backend="lake")


def _checked(policy: Policy, model: ExampleModel) -> Checked:
    if not policy.reads_content:
        return Checked()
    return policy.check_content(model.plan(), model.content(), _context())


def _findings(policy: Policy, model: ExampleModel) -> list[Finding]:
    plan = model.plan()
    return [*policy.check_plan(plan, _context()), *_checked(policy, model).findings]

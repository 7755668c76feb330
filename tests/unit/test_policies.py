"""The built-in policies: what each refuses, of which models, and how it is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from mm_core import (
    Checked,
    ConfigError,
    Finding,
    Plugins,
    Policy,
    PolicyContext,
    Request,
    rfc3339,
)
from mm_core.config import Settings, build_config
from mm_core.content import Content
from mm_core.testing.policies import ExampleModel, PolicyTests
from mm_plugins.policies import age, licenses, limits, revision, sources
from mm_plugins.policies._spdx import DEPTH, LENGTH, License, parse
from mm_plugins.sources._hub_facts import facts_of, license_of

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 1000}


def model(**facts) -> ExampleModel:
    return ExampleModel(files=FILES, **facts)


def made(kind, **settings) -> Policy:
    values = build_config(kind.Config, settings, ("policies", "ours", kind.type), Settings())
    return kind(values)


def found(policy: Policy, example: ExampleModel, now: datetime = NOW) -> list[Finding]:
    return list(policy.check_plan(example.plan(), PolicyContext(backend="b", now=now)))


def rules(findings: list[Finding]) -> list[str]:
    return [f"{one.rule}{'' if one.refused else ' (warning)'}" for one in findings]


def test_they_are_installed():
    """Each by an entry point that has its type's own name."""
    plugins = Plugins.discover()
    for name in ("licenses", "limits", "sources", "revision", "age"):
        assert plugins.policy_type(name).type == name
        assert [
            info.name for info in plugins.infos() if name in info.offers.get("policies", ())
        ] == [name]


class TestLicensesSuite(PolicyTests):
    @pytest.fixture
    def policy(self):
        return made(licenses.LicensePolicy, allow=["mit", "apache-2.0"])

    @pytest.fixture
    def allowed(self):
        return model(license="MIT")

    @pytest.fixture
    def refused(self):
        return model(license="cc-by-nc-4.0")


class TestLimitsSuite(PolicyTests):
    @pytest.fixture
    def policy(self):
        return made(limits.LimitsPolicy, max_size="1KiB", max_files=2, max_file_size=1000)

    @pytest.fixture
    def allowed(self):
        return model()

    @pytest.fixture
    def refused(self):
        return ExampleModel(files={"a": b"1" * 2000, "b": b"", "c": b""})


class TestSourcesSuite(PolicyTests):
    @pytest.fixture
    def policy(self):
        return made(sources.SourcesPolicy, allow=["hf://org/*"])

    @pytest.fixture
    def allowed(self):
        return model()

    @pytest.fixture
    def refused(self):
        return model(source=f"hf://other/name@{COMMIT}")


class TestRevisionSuite(PolicyTests):
    @pytest.fixture
    def policy(self):
        return made(revision.RevisionPolicy, pinned=True)

    @pytest.fixture
    def allowed(self):
        return model(request=Request(url=f"hf://org/name@{COMMIT}"))

    @pytest.fixture
    def refused(self):
        return model(request=Request(url="hf://org/name@main"))


class TestAgeSuite(PolicyTests):
    @pytest.fixture
    def policy(self):
        return made(age.AgePolicy, min="7d")

    @pytest.fixture
    def allowed(self):
        return model(facts={"last_modified": "2020-01-01T00:00:00Z"})

    @pytest.fixture
    def refused(self):
        return model(facts={"last_modified": rfc3339(datetime.now(timezone.utc))})


class TestLicenses:
    @pytest.mark.parametrize(
        ("stated", "allow", "deny", "expected"),
        [
            ("mit", ["MIT"], [], []),
            ("Apache-2.0", ["apache-2.0", "mit"], [], []),
            ("llama3.1", ["mit"], [], ["licenses.allow"]),
            ("llama3.1", ["llama*"], [], []),
            ("MIT OR GPL-3.0", ["mit"], [], []),
            ("mit and gpl-3.0", ["mit"], [], ["licenses.allow"]),
            ("MIT AND (GPL-3.0 OR Apache-2.0)", ["mit", "apache-2.0"], [], []),
            ("(MIT AND GPL-3.0) OR Apache-2.0", ["mit"], [], ["licenses.allow"]),
            ("MIT AND Apache-2.0 OR GPL-3.0", ["gpl-3.0"], [], []),
            ("GPL-2.0+", ["gpl-2.0-or-later"], [], []),
            ("GPL-2.0-or-later", ["gpl-2.0"], [], []),
            ("GPL-2.0-only", ["gpl-2.0"], [], []),
            ("GPL-2.0", ["gpl-2.0-or-later"], [], ["licenses.allow"]),
            ("GPL-2.0-only WITH Classpath-exception-2.0", ["gpl-2.0-only"], [], []),
            ("GPL-2.0 WITH Classpath-exception-2.0", ["gpl-2.0 with classpath-exception-2.0"], [], []),
            ("GPL-2.0", ["gpl-2.0 with classpath-exception-2.0"], [], ["licenses.allow"]),
            ("cc-by-nc-4.0", None, ["cc-by-nc-*"], ["licenses.deny"]),
            ("mit", None, ["cc-by-nc-*"], []),
            ("MIT OR cc-by-nc-4.0", None, ["cc-by-nc-*"], []),
            ("MIT AND cc-by-nc-4.0", None, ["cc-by-nc-*"], ["licenses.deny"]),
            ("GPL-3.0-or-later", None, ["gpl-3.0"], ["licenses.deny"]),
            ("mit", ["mit"], ["mit"], ["licenses.deny"]),
            ("mit", [], [], ["licenses.allow"]),
            ("LicenseRef-ours", ["licenseref-ours"], [], []),
            ("DocumentRef-x:LicenseRef-y", ["documentref-x:licenseref-y"], [], []),
        ],
    )  # fmt: skip
    def test_what_is_stated_is_judged(self, stated, allow, deny, expected):
        """Of any case; one of several suffices for OR, and all must be allowed for AND."""
        policy = made(licenses.LicensePolicy, allow=allow, deny=deny)
        assert rules(found(policy, model(license=stated))) == expected

    @pytest.mark.parametrize("stated", [None, "", "unknown", "NOASSERTION"])
    @pytest.mark.parametrize(
        ("how", "expected"),
        [("deny", ["licenses.on_missing"]), ("warn", ["licenses.on_missing (warning)"]), ("allow", [])],
    )  # fmt: skip
    def test_where_nothing_is_stated_the_setting_decides(self, stated, how, expected):
        """It refuses, unless it is told otherwise."""
        policy = made(licenses.LicensePolicy, deny=["gpl-*"], on_missing=how)
        assert rules(found(policy, model(license=stated))) == expected
        assert made(licenses.LicensePolicy).config.on_missing == "deny"

    @pytest.mark.parametrize(
        "stated",
        ["see LICENSE", "MIT OR", "(MIT", "MIT)", "AND MIT", "MIT WITH", "()", "a b", "MIT OR (", "<mit>",
         "MIT++", "(" * (DEPTH + 1) + "MIT" + ")" * (DEPTH + 1), "x" * (LENGTH + 1)],
    )  # fmt: skip
    def test_what_cannot_be_read_is_never_passed_over(self, stated):
        """It counts as not stated, and is warned of at least."""
        strict = made(licenses.LicensePolicy, deny=["gpl-*"])
        assert rules(found(strict, model(license=stated))) == ["licenses.on_missing"]
        for how in ("allow", "warn"):
            lenient = made(licenses.LicensePolicy, deny=["gpl-*"], on_missing=how)
            told = found(lenient, model(license=stated))
            assert rules(told) == ["licenses.on_missing (warning)"]

    def test_another_licence_goes_by_the_name_on_its_card(self):
        """The Hub's ``other`` with a ``license_name``; ``other`` alone means all of them."""
        qwen = model(license="other", facts={"card": {"license_name": "Qwen Research"}})
        for allow, expected in (
            (["other:qwen-research"], []),
            (["other"], []),
            (["qwen-research"], ["licenses.allow"]),
        ):
            assert rules(found(made(licenses.LicensePolicy, allow=allow), qwen)) == expected
        assert (
            "add other:qwen-research to"
            in found(made(licenses.LicensePolicy, allow=["mit"]), qwen)[0].allow
        )
        named_like_one = model(license="other", facts={"card": {"license_name": "mit"}})
        assert rules(found(made(licenses.LicensePolicy, allow=["mit"]), named_like_one)) == [
            "licenses.allow"
        ]

    def test_a_list_takes_no_expressions(self):
        """A slip that would never match is an error with its place."""
        with pytest.raises(ConfigError, match=r"policies\.ours\.licenses\.allow.*one by one"):
            made(licenses.LicensePolicy, allow=["MIT OR Apache-2.0"])

    def test_the_deepest_that_is_read(self):
        """The bound is far above what people write, and far below what Python bears."""
        assert parse("(" * DEPTH + "MIT" + ")" * DEPTH) is not None
        assert [one for one in parse("MIT").licenses()] == [License("mit")]

    @pytest.mark.parametrize(
        ("tags", "card", "expected"),
        [
            (["license:mit"], {"license": "mit"}, "mit"),
            ([], {"license": ["mit", "apache-2.0"]}, "mit AND apache-2.0"),
            (["license:cc-by-nc-4.0", "license:mit"], {"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0 AND mit"),
            (["license:MIT", "x"], {"license": "mit"}, "MIT"),
            ([], {}, None),
            (None, None, None),
        ],
    )  # fmt: skip
    def test_all_licences_that_a_hub_states_count(self, tags, card, expected):
        """A tag of one's own beside the card's licence hides nothing."""
        data = None if card is None else SimpleNamespace(get=card.get, to_dict=lambda: card)
        info = SimpleNamespace(tags=tags, card_data=data)
        assert license_of(info) == expected


class TestLimits:
    def test_each_limit_is_told_with_its_file(self):
        """All that is too much, not only the first."""
        policy = made(limits.LimitsPolicy, max_size="1kB", max_file_size="999B", max_files=1)
        told = found(policy, model())
        assert rules(told) == ["limits.max_files", "limits.max_size", "limits.max_file_size"]
        assert told[2].path == "model.safetensors"
        assert "1000 B" in told[2].message
        assert found(made(limits.LimitsPolicy), model()) == []

    def test_what_no_source_states_is_counted_when_it_is_stored(self):
        """Then nothing of it is asked twice where the plan had told all."""
        policy = made(limits.LimitsPolicy, max_file_size=10)
        plan = ExampleModel(files={"x": b"1" * 11}).plan()
        vague = replace(
            plan, files=tuple(replace(p, file=replace(p.file, size=None)) for p in plan.files)
        )
        content = ExampleModel(files={"x": b"1" * 11}).content()
        context = PolicyContext(backend="b")
        assert list(policy.check_plan(vague, context)) == []
        assert rules(list(policy.check_content(vague, content, context).findings)) == [
            "limits.max_file_size"
        ]
        assert policy.check_content(plan, content, context) == Checked()


class TestSources:
    @pytest.mark.parametrize(
        ("settings", "source", "expected"),
        [
            ({"allow": ["hf://org/*"]}, f"hf://org/name@{COMMIT}", []),
            ({"allow": ["hf://org/name"]}, f"hf://org/name@{COMMIT}", []),
            ({"allow": [f"hf://org/name@{COMMIT}"]}, f"hf://org/name@{COMMIT}", []),
            ({"allow": ["hf://Org/*"]}, f"hf://org/name@{COMMIT}", ["sources.allow"]),
            ({"allow": ["hf://org/*"]}, f"hf://organisation/name@{COMMIT}", ["sources.allow"]),
            ({"deny": ["hf://evil/*"]}, f"hf://Evil/name@{COMMIT}", ["sources.deny"]),
            ({"deny": ["hf://evil/*"]}, f"hf://org/name@{COMMIT}", []),
            ({"allow": ["*"], "deny": ["https://*"]}, "https://a.example/x.bin#sha256=" + "0" * 64, ["sources.deny"]),
            ({"allow": ["https://a.example/*.onnx"]}, "https://a.example/x.onnx#sha256=" + "0" * 64, []),
            ({"allow": []}, "file:///home/me/model", ["sources.allow"]),
        ],
    )  # fmt: skip
    def test_the_canonical_url_is_judged(self, settings, source, expected):
        """With its revision and without; what is denied is so in any case."""
        assert (
            rules(found(made(sources.SourcesPolicy, **settings), model(source=source))) == expected
        )

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"allow": ["hf://org/*"]}, []),
            ({"allow": ["mm://staging/*"]}, []),
            ({"allow": ["mm://other/*", "hf://other/*"]}, ["sources.allow"]),
            ({"deny": ["hf://org/*"], "allow": ["mm://staging/*"]}, ["sources.deny"]),
            ({"deny": ["mm://staging/*"], "allow": ["hf://org/*"]}, ["sources.deny"]),
        ],
    )
    def test_a_copy_goes_by_two_names(self, settings, expected):
        """Where it first came from, and the backend that it is copied from."""
        copy = model(request=Request(url="mm://staging/org/name@1"))
        assert rules(found(made(sources.SourcesPolicy, **settings), copy)) == expected

    def test_only_an_address_in_a_backend_is_a_second_name(self):
        """What a caller writes as any other address counts for nothing."""
        told = model(source="hf://evil/x", request=Request(url="hf://org/../evil/x"))
        assert rules(found(made(sources.SourcesPolicy, allow=["hf://org/*"]), told)) == [
            "sources.allow"
        ]


class TestRevision:
    @pytest.mark.parametrize(
        ("asked", "pinned"),
        [
            (Request(url="hf://org/name"), False),
            (Request(url="hf://org/name@main"), False),
            (Request(url="hf://org/name", revision="v1.0"), False),
            (Request(url="hf://org/name", revision=COMMIT[:12]), False),
            (Request(url="hf://org/name", version="1"), False),
            (Request(url=f"hf://org/name@{COMMIT}"), True),
            (Request(url="hf://org/name", revision=COMMIT), True),
            (Request(url="hf://org/name", version=COMMIT), True),
            (None, False),
        ],
    )
    def test_the_caller_must_name_the_fixed_one(self, asked, pinned):
        """A branch, a tag, a part of a commit, or nothing is not enough."""
        told = found(made(revision.RevisionPolicy, pinned=True), model(request=asked))
        assert rules(told) == ([] if pinned else ["revision.pinned"])
        assert pinned or COMMIT in told[0].allow
        assert found(made(revision.RevisionPolicy), model(request=asked)) == []

    def test_a_url_is_named_by_the_hash_of_its_file(self):
        """The whole sha256, of any case."""
        policy, only = made(revision.RevisionPolicy, pinned=True), {"x.bin": b"1"}
        url = "https://a.example/x.bin"
        plan = ExampleModel(files=only, source=url).plan()
        sha256 = plan.snapshot.files[0].sha256
        for asked, expected in (
            (url, 1),
            (f"{url}#sha256={sha256.upper()}", 0),
            (f"{url}#sha256={'0' * 64}", 1),
        ):
            example = ExampleModel(files=only, source=url, request=Request(url=asked))
            assert len(found(policy, example)) == expected

    def test_a_version_in_a_backend_never_moves(self):
        """Named exactly; by an alias it does."""
        policy = made(revision.RevisionPolicy, pinned=True)
        for url, expected in (
            ("mm://lake/org/name@v7", 0),
            ("mm://lake/org/name:prod", 1),
            ("mm://lake/org/name", 1),
        ):
            plan = model(request=Request(url=url)).plan()
            plan = replace(plan, snapshot=replace(plan.snapshot, version="v7"))
            assert len(list(policy.check_plan(plan, PolicyContext(backend="b")))) == expected

    def test_a_folder_of_this_machine_has_no_name_that_moves(self):
        """What one has in one's own hands may be pushed."""
        mine = model(source="file:///home/me/model", request=Request(url="/home/me/model"))
        assert found(made(revision.RevisionPolicy, pinned=True), mine) == []

    def test_a_source_without_revisions_is_told_what_helps(self):
        """There is none to be named."""
        vague = model(revision=None, request=Request(url="https://a.example/x", version="1"))
        (told,) = found(made(revision.RevisionPolicy, pinned=True), vague)
        assert "#sha256=" in told.allow


class TestAge:
    @pytest.mark.parametrize(
        ("settings", "days", "expected"),
        [
            ({"min": "7d"}, 6.9, ["age.min"]),
            ({"min": "7d"}, 7.1, []),
            ({"min": "7d"}, -3, ["age.min"]),
            ({"max": "365d"}, 366, ["age.max"]),
            ({"max": "365d"}, 364, []),
            ({"min": "7d", "max": "365d"}, 30, []),
            ({}, 4000, []),
        ],
    )
    def test_the_last_change_is_judged(self, settings, days, expected):
        """By the source's word and our clock; what lies in the future is new."""
        changed = rfc3339(NOW - timedelta(days=days))
        policy = made(age.AgePolicy, **settings)
        assert rules(found(policy, model(facts={"last_modified": changed}))) == expected

    def test_it_is_told_how_long_to_wait(self):
        """In the unit that it is set in."""
        changed = rfc3339(NOW - timedelta(days=5))
        (told,) = found(made(age.AgePolicy, min="7d"), model(facts={"last_modified": changed}))
        assert told.allow == "wait 2d, or lower min"
        assert "2026-05-27 00:00 UTC" in told.message

    @pytest.mark.parametrize("stated", [None, "", "yesterday", "2026-05-01T00:00:00", 7, {}])
    @pytest.mark.parametrize(
        ("how", "expected"),
        [("deny", ["age.on_missing"]), ("warn", ["age.on_missing (warning)"]), ("allow", [])],
    )
    def test_where_nothing_is_stated_the_setting_decides(self, stated, how, expected):
        """A time without a zone is none."""
        policy = made(age.AgePolicy, min="7d", on_missing=how)
        assert rules(found(policy, model(facts={"last_modified": stated}))) == expected

    def test_a_hub_states_it(self):
        """It is a fact like any other, and kept with the version."""
        info = SimpleNamespace(
            tags=(), card_data=None, library_name=None, gated=False, last_modified=NOW
        )
        assert facts_of(info, "main")["last_modified"] == "2026-06-01T00:00:00Z"


# -- the suite itself can fail ----------------------------------------------------------------


class Right(Policy):
    """Refuses files that begin with ``x``."""

    type = "right"
    reads_content = True

    def check_content(self, plan, content, context):
        refused = [file.path for file in content.files if content.open(file.path).read(1) == b"x"]
        found = [
            Finding(rule="right", path=path, message="it begins with x", allow="begin with y")
            for path in refused
        ]
        return Checked(findings=tuple(found))


class Silent(Right):
    reads_content = False


class Lax(Right):
    def check_content(self, plan, content, context):
        super().check_content(plan, content, context)
        return Checked()


class Harsh(Right):
    def check_plan(self, plan, context):
        yield Finding(rule="right", message="no", allow="never")


class Terse(Right):
    def check_content(self, plan, content, context):
        checked = super().check_content(plan, content, context)
        return Checked(findings=tuple(replace(f, allow=" ") for f in checked.findings))


class Lost(Right):
    def check_content(self, plan, content, context):
        checked = super().check_content(plan, content, context)
        return Checked(findings=tuple(replace(f, path="nowhere") for f in checked.findings))


class Moody(Right):
    calls = 0

    def check_content(self, plan, content, context):
        self.calls += 1
        checked = super().check_content(plan, content, context)
        return checked if self.calls % 2 else replace(checked, findings=checked.findings * 2)


class Greedy(Right):
    def check_content(self, plan, content, context):
        return replace(super().check_content(plan, content, context), facts={"all": "x" * 70_000})


class Hopeful(Right):
    def check_content(self, plan, content, context):
        try:
            return super().check_content(plan, content, context)
        except Exception:
            return Checked()


class Nameless(Right):
    type = "no name"


@pytest.mark.parametrize(
    ("wrong", "caught_by"),
    [
        (Silent, "test_it_says_whether_it_looks_at_bytes"),
        (Lax, "test_it_refuses_what_is_not"),
        (Harsh, "test_it_lets_in_what_is_allowed"),
        (Terse, "test_a_finding_is_told_in_full"),
        (Lost, "test_a_finding_is_told_in_full"),
        (Moody, "test_it_says_the_same_again"),
        (Greedy, "test_its_facts_can_be_kept"),
        (Hopeful, "test_it_lets_nothing_in_unseen"),
        (Nameless, "test_it_declares_itself"),
    ],
)
def test_a_wrong_policy_is_caught(wrong, caught_by):
    """By the test that is there for it; the right one passes them all."""
    models = {
        "allowed": ExampleModel(files={"a": b"y"}),
        "refused": ExampleModel(files={"a": b"x"}),
    }
    for name in [name for name in vars(PolicyTests) if name.startswith("test_")]:
        run(name, Right(), models)
    with pytest.raises(AssertionError):
        run(caught_by, wrong(), models)


def run(name: str, policy: Policy, models) -> None:
    test = getattr(PolicyTests(), name)
    wanted = test.__code__.co_varnames[1 : test.__code__.co_argcount]
    test(**{key: value for key, value in {"policy": policy, **models}.items() if key in wanted})


def test_content_of_an_example_is_read_in_ranges():
    """As that of a real model."""
    content = ExampleModel(files={"a": b"0123456789"}).content()
    assert isinstance(content, Content)
    with content.open("a") as file:
        file.seek(4)
        assert file.read(3) == b"456"

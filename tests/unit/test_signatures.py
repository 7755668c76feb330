"""Signatures over versions: whoever trusts some keys is told of every file that is not as it was signed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mm_core import (
    ConfigError,
    ConflictError,
    ModelManager,
    NotFoundError,
    Plugins,
    PolicyError,
    SignatureError,
    SigningKey,
    Statement,
    TrustedKeys,
    UsageError,
    load_settings,
)
from mm_core.cli import main
from mm_core.collecting import collect, make_gc_plan
from mm_core.config import build_config
from mm_core.registry.layout import SIGNATURE_PREFIX
from mm_core.signatures.checking import differences
from mm_core.signatures.shelf import kept
from mm_core.sink import read_bytes
from mm_core.testing.signing import Certified, Person, Validity
from mm_core.upkeep.backup import backup, restore
from mm_core.upkeep.check import check
from mm_core.upkeep.repair import repair
from mm_plugins.policies import signature as signature_policy
from mm_plugins.policies.signature import SignaturePolicy
from mm_plugins.sign import openssf
from mm_plugins.sign.openssf import OpenSsfSigner
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder, registry

pytestmark = pytest.mark.unit

BUILT_IN = (local, memory, folder, registry, openssf, signature_policy)
FILES = {
    ".gitattributes": b"*.bin filter=lfs",
    "a-b/x": b"1",
    "a/b": b"2",
    "config.json": b"{}",
    "model.bin": b"w" * 1000,
}


@pytest.fixture
def alice(tmp_path):
    return Person(tmp_path, "alice")


@pytest.fixture
def bob(tmp_path):
    return Person(tmp_path, "bob")


def make(path, files=FILES):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def mine(tmp_path):
    return make(tmp_path / "mine")


def settings_of(tmp_path, **sections):
    backends = {
        name: {"type": "local", "root": str(tmp_path / name), "fsync": False}
        for name in ("lake", "dr")
    }
    defaults = {"backend": "lake"}
    policies = {"default": {}}
    return load_settings(
        overrides={"defaults": defaults, "backends": backends, "policies": policies, **sections}
    )


def manager_with(tmp_path, **sections):
    return ModelManager(settings_of(tmp_path, **sections), plugins=Plugins(BUILT_IN))


@pytest.fixture
def manager(tmp_path):
    with manager_with(tmp_path) as made:
        yield made


@pytest.fixture
def signed(manager, mine, alice):
    """A version that Alice has signed."""
    entry = manager.push(mine, "org/m", version="1").entry
    manager.sign("org/m", key=alice.key)
    return entry


def reason(manager, *people, roots=(), reference="org/m"):
    """Why no signature counts, if these people are trusted; None if one does."""
    (found,) = manager.verify_signatures(
        reference, public_keys=[person.public for person in people], certificate_roots=roots
    )
    return found.reason


def bundle_of(manager, entry, backend=None):
    (only,) = kept(manager.sink(backend), entry.manifest)
    return only


class TestKeys:
    def test_a_signed_version_is_known_by_its_key(self, manager, signed, alice):
        """Whoever trusts Alice is told that she has signed it, and that nothing is left uncovered."""
        (found,) = manager.verify_signatures("org/m", public_keys=[alice.public])
        (one,) = found.signatures
        assert (found.ok, one.signer.kind, one.uncovered) == (True, "key", ())

    def test_another_key_does_not_count(self, manager, signed, alice, bob):
        """Bob is named as not the one who has signed, and it suffices that one of several has."""
        assert "is not trusted" in reason(manager, bob)
        assert reason(manager, bob, alice) is None

    def test_each_curve_signs(self, manager, signed, tmp_path):
        """P-384 and P-521 sign as well, each with its own hash."""
        for curve in (ec.SECP384R1(), ec.SECP521R1()):
            person = Person(tmp_path, curve.name, curve=curve)
            manager.sign("org/m", key=person.key)
            assert reason(manager, person) is None

    def test_signing_twice_makes_one_signature(self, manager, signed, alice, bob):
        """The same key signs once; another's stands beside it, and both count."""
        again = manager.sign("org/m", key=alice.key)
        other = manager.sign("org/m", key=bob.key)
        assert (again.made, other.made) == (False, True)
        assert len(kept(manager.sink(), signed.manifest)) == 2
        assert reason(manager, alice) is None is reason(manager, bob)

    def test_a_forged_signature_keeps_nobody_from_signing(self, manager, mine, alice, bob):
        """What only claims to be Alice's is no reason not to let her sign."""
        entry = manager.push(mine, "org/m", version="1").entry
        manager.sign("org/m", key=bob.key)
        forged = json.loads(bundle_of(manager, entry).data)
        hint = json.loads(OpenSsfSigner().sign(Statement(name="", files={}), key_of(alice)))
        forged["verificationMaterial"] = hint["verificationMaterial"]
        manager.attach_signature("org/m", json.dumps(forged).encode())
        assert "forged" in reason(manager, alice)
        assert manager.sign("org/m", key=alice.key).made
        assert reason(manager, alice) is None

    def test_a_password_opens_a_key(self, manager, mine, tmp_path):
        """Without it, and with a wrong one, the error says so, and never tells it."""
        person = Person(tmp_path, "carol", password="open sesame")
        manager.push(mine, "org/m", version="1")
        with pytest.raises(ConfigError, match="has a password"):
            manager.sign("org/m", key=person.key)
        with pytest.raises(ConfigError, match="password is another") as wrong:
            manager.sign("org/m", key=person.key, password="open barley")
        assert "barley" not in str(wrong.value)
        manager.sign("org/m", key=person.key, password="open sesame")
        assert reason(manager, person) is None

    @pytest.mark.parametrize("content", ["nothing", "ed25519", "public", None])
    def test_what_is_no_key_is_refused(self, manager, mine, alice, tmp_path, content):
        """A file that is no key, one of another kind, a public one, and none: each is told."""
        manager.push(mine, "org/m", version="1")
        file = tmp_path / "other.pem"
        if content == "ed25519":
            private = ed25519.Ed25519PrivateKey.generate()
            file.write_bytes(
                private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
        elif content is not None:
            file.write_bytes(alice.public.read_bytes() if content == "public" else b"nothing")
        with pytest.raises(ConfigError, match="other.pem"):
            manager.sign("org/m", key=file)

    def test_nobody_named_is_a_mistake(self, manager, signed):
        """Verifying without any key, and signing without one, say which setting is missing."""
        with pytest.raises(ConfigError, match="whose signatures count"):
            manager.verify_signatures("org/m")
        with pytest.raises(ConfigError, match="which key signs"):
            manager.sign("org/m")

    def test_what_is_not_there_cannot_be_signed(self, manager, mine, alice):
        """Neither an unknown version, nor one that was only registered."""
        from mm_core import ModelEntry

        manager.registry().add_model(ModelEntry(model_id="r", version="1", path=mine))
        for reference in ("unknown", "r"):
            with pytest.raises(NotFoundError):
                manager.sign(reference, key=alice.key)


def key_of(person):
    return SigningKey(file=person.key)


class TestFiles:
    """Alice has signed; then the version is made anew with other files, and her bundle comes along."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"model.bin": b"x" * 1000}, "model.bin is not what was signed"),
            ({"model.bin": None}, "model.bin is signed and missing"),
            ({"extra.bin": b"!"}, "extra.bin was not signed"),
            ({".gitattributes": b"other"}, ".gitattributes is not what was signed"),
            ({"model.bin": None, "extra.bin": b"!"}, "is signed and missing; extra.bin was not"),
        ],
    )
    def test_another_set_of_files_is_told(self, manager, signed, mine, alice, change, words):
        """A changed byte, a missing file and an extra one are told by name, those of git included."""
        data = bundle_of(manager, signed).data
        for name, content in change.items():
            if content is None:
                (mine / name).unlink()
            else:
                (mine / name).write_bytes(content)
        other = manager.push(mine, "org/m", version="2").entry
        with pytest.raises(SignatureError, match=words):
            manager.attach_signature("org/m@2", data)
        manager.sink().create(f"{SIGNATURE_PREFIX}{other.manifest}/{'0' * 12}.json", data)
        assert words in reason(manager, alice, reference="org/m@2")

    def test_a_changed_statement_is_forged(self, manager, signed, alice):
        """Whoever writes other digests into a bundle has broken its signature."""
        document = json.loads(bundle_of(manager, signed).data)
        payload = base64.b64decode(document["dsseEnvelope"]["payload"])
        payload = payload.replace(b"org/m@1", b"org/n@1")
        document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        trusted = TrustedKeys(public_keys=(alice.public,))
        with pytest.raises(SignatureError, match="changed, or forged"):
            OpenSsfSigner().verify(json.dumps(document).encode(), trusted)

    def test_what_the_signer_left_out_is_uncovered(self):
        """It is no difference, and is told; what git keeps beside a model is not worth a word."""
        statement = Statement(name="m", files={"a": "1"}, left_out=("docs", "README.md"))
        files = {"a": "1", "docs/x": "2", "README.md": "3", ".gitignore": "4", "m.sig": "5"}
        differ = differences(statement, files, bundle="m.sig")
        assert not differ
        assert differ.uncovered == ("README.md", "docs/x")
        assert differences(statement, {**files, "docsx": "6"}).unsigned == ("docsx", "m.sig")


class TestCertificates:
    @pytest.fixture
    def root(self, tmp_path):
        return Certified(tmp_path, "root", authority=True)

    @pytest.fixture
    def between(self, tmp_path, root):
        return Certified(tmp_path, "between", issuer=root, authority=True)

    def sign(self, manager, mine, person, chain=()):
        manager.push(mine, "org/m", version="1")
        manager.sign("org/m", key=person.key, certificate=person.certificate, chain=chain)

    def test_a_chain_leads_to_the_root(self, manager, mine, tmp_path, root, between):
        """By way of what the bundle holds; the signer is called by name."""
        leaf = Certified(tmp_path, "leaf", issuer=between)
        self.sign(manager, mine, leaf, [between.certificate])
        (found,) = manager.verify_signatures("org/m", certificate_roots=[root.certificate])
        assert found.signatures[0].signer.subject == "CN=leaf"
        assert not manager.sign("org/m", key=leaf.key, certificate=leaf.certificate).made

    def test_another_root_stands_for_nobody(self, manager, mine, tmp_path, root, alice):
        """Nor does a root of the same name, or a public key."""
        leaf = Certified(tmp_path, "leaf", issuer=root)
        self.sign(manager, mine, leaf)
        (tmp_path / "other").mkdir()
        other = Certified(tmp_path / "other", "root", authority=True)
        assert "leads to no trusted root" in reason(manager, roots=[other.certificate])
        assert "no root is trusted" in reason(manager, alice)

    def test_a_chain_with_a_hole_is_refused(self, manager, mine, tmp_path, root, between):
        """Where the one between is not in the bundle, nothing leads to the root."""
        self.sign(manager, mine, Certified(tmp_path, "leaf", issuer=between))
        assert "leads to no trusted root" in reason(manager, roots=[root.certificate])

    @pytest.mark.parametrize("who", ["leaf", "between"])
    def test_an_expired_certificate_is_refused(
        self, manager, mine, tmp_path, root, who, monkeypatch
    ):
        """Whichever on the way it is: nothing tells that the signature was made before."""
        gone = Validity(start=-20, end=-10)
        middle = Certified(
            tmp_path, "middle", issuer=root, authority=True,
            validity=gone if who == "between" else None,
        )  # fmt: skip
        leaf = Certified(tmp_path, "leaf", issuer=middle, validity=gone if who == "leaf" else None)
        if who == "leaf":
            with pytest.raises(ConfigError, match="has expired"):
                self.sign(manager, mine, leaf, [middle.certificate])
            from mm_plugins.sign import _chain

            monkeypatch.setattr(_chain, "refuse_unusable", lambda _: None)
            self.sign(manager, mine, leaf, [middle.certificate])
            monkeypatch.undo()
            assert "has expired" in reason(manager, roots=[root.certificate])
        else:
            self.sign(manager, mine, leaf, [middle.certificate])
            assert "leads to no trusted root" in reason(manager, roots=[root.certificate])

    def test_only_an_authority_issues(self, manager, mine, tmp_path, root):
        """A leaf that issues another leaf, and an authority beyond its depth, stand for nobody."""
        leaf = Certified(tmp_path, "leaf", issuer=root)
        self.sign(manager, mine, Certified(tmp_path, "mallory", issuer=leaf), [leaf.certificate])
        assert "leads to no trusted root" in reason(manager, roots=[root.certificate])

    def test_an_authority_ends_at_its_depth(self, manager, mine, tmp_path, root):
        """One that may issue leaves alone has issued an authority: what that one issues is refused."""
        flat = Certified(tmp_path, "flat", issuer=root, authority=True, depth=0)
        deep = Certified(tmp_path, "deep", issuer=flat, authority=True)
        leaf = Certified(tmp_path, "leaf", issuer=deep)
        self.sign(manager, mine, leaf, [deep.certificate, flat.certificate])
        assert "leads to no trusted root" in reason(manager, roots=[root.certificate])

    def test_a_certificate_that_may_not_sign_is_refused(self, manager, mine, tmp_path, root):
        """One for another use cannot even be signed with."""
        leaf = Certified(tmp_path, "leaf", issuer=root, signs=False)
        with pytest.raises(ConfigError, match="not for signing"):
            self.sign(manager, mine, leaf)

    def test_a_certificate_of_another_key_is_refused(self, manager, mine, tmp_path, root, alice):
        """The key and the certificate must go together."""
        leaf = Certified(tmp_path, "leaf", issuer=root)
        manager.push(mine, "org/m", version="1")
        with pytest.raises(ConfigError, match="is not that of the key"):
            manager.sign("org/m", key=alice.key, certificate=leaf.certificate)


class TestHostileBundles:
    DEEP = b"[" * 100_000

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.update(dsseEnvelope=None),
            lambda d: d["dsseEnvelope"].update(signatures=[]),
            lambda d: d["dsseEnvelope"].update(payload="not base64!"),
            lambda d: d["dsseEnvelope"].update(payload=base64.b64encode(b"[" * 99_999).decode()),
            lambda d: d["dsseEnvelope"].update(payloadType="text/plain"),
            lambda d: d["verificationMaterial"].clear(),
            lambda d: d["verificationMaterial"].update(publicKey={"hint": ["x"]}),
            lambda d: d["verificationMaterial"].update(certificate={}),
            lambda d: d["verificationMaterial"].update(
                x509CertificateChain={"certificates": [{"rawBytes": "AAAA"}]}
            ),
            lambda d: d["verificationMaterial"].update(x509CertificateChain={"certificates": []}),
            lambda d: d.update(mediaType="application/vnd.dev.sigstore.bundle.v9+json"),
        ],
    )  # fmt: skip
    def test_a_broken_bundle_is_told_and_nothing_else(self, manager, signed, alice, change):
        """Whatever is wrong with one, it is a `SignatureError`, and other signatures count."""
        document = json.loads(bundle_of(manager, signed).data)
        change(document)
        data = json.dumps(document).encode()
        trusted = TrustedKeys(public_keys=(alice.public,))
        with pytest.raises(SignatureError):
            OpenSsfSigner().verify(data, trusted)
        manager.sink().create(f"{SIGNATURE_PREFIX}{signed.manifest}/{'0' * 12}.json", data)
        (found,) = manager.verify_signatures("org/m", public_keys=[alice.public])
        assert found.ok
        assert [one.state.value for one in found.signatures].count("invalid") == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda s: s.update(predicateType="other"),
            lambda s: s["predicate"]["serialization"].update(method="shards"),
            lambda s: s["predicate"]["serialization"].update(hash_type="blake2"),
            lambda s: s["predicate"]["resources"].pop(),
            lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
            lambda s: s["predicate"]["resources"][0].update(digest="../../etc"),
            lambda s: s["predicate"]["resources"][0].update(name=["a"]),
            lambda s: s["predicate"].update(resources=None),
            lambda s: s.update(subject=[]),
        ],
    )
    def test_a_statement_that_is_not_sound_is_refused(self, change):
        """Also where it was signed: it must be consistent, by files, and with sha256."""
        from mm_plugins.sign._statement import payload_of, statement_in

        files = {"a": "0" * 64, "b": "1" * 64}
        statement = json.loads(payload_of(Statement(name="m", files=files)))
        change(statement)
        with pytest.raises(SignatureError):
            statement_in(json.dumps(statement).encode())

    def test_what_is_no_bundle_is_known_for_none(self):
        """Neither another program's signature nor deep JSON is taken for one, and nothing is raised."""
        for data in (b"", b"-----BEGIN PGP SIGNATURE-----", b"{}", b'{"mediaType": 1}', self.DEEP):
            assert not OpenSsfSigner.answers(data)


class TestElsewhere:
    def test_a_bundle_among_the_files_counts(self, manager, signed, tmp_path, alice):
        """A folder with a `model.sig` is pushed: its own file is the signature over the others."""
        got = manager.get("org/m", output=tmp_path / "out")
        assert got.signature == got.path / "model.sig"
        manager.push(got.path, "org/n", version="1")
        (found,) = manager.verify_signatures("org/n", public_keys=[alice.public])
        assert [one.place for one in found.signatures if one.state.value == "valid"] == [
            "model.sig"
        ]
        (got.path / "extra.bin").write_bytes(b"!")
        manager.push(got.path, "org/n", version="2")
        assert "extra.bin was not signed" in reason(manager, alice, reference="org/n@2")

    def test_get_puts_one_beside_the_files_and_replaces_none(self, manager, signed, tmp_path, bob):
        """A second get into the same folder is fine, and leaves the file as it is; so does a foreign one."""
        out = tmp_path / "out"
        first = manager.get("org/m", output=out).signature.read_bytes()
        manager.sign("org/m", key=bob.key)
        assert manager.get("org/m", output=out).signature.read_bytes() == first
        (out / "other.sig").write_bytes(b"x")
        with pytest.raises(ConflictError):
            manager.get("org/m", output=out)

    def test_an_unsigned_version_has_none(self, manager, mine, tmp_path):
        """Then `mm get` writes no file, and verify says that it is not signed."""
        manager.push(mine, "org/m", version="1")
        got = manager.get("org/m", output=tmp_path / "out")
        assert got.signature is None
        assert not (got.path / "model.sig").exists()

    def test_copies_are_signed(self, manager, signed, alice):
        """The signature goes along with a copy, whose manifest is another."""
        (copy,) = [manager.copy("org/m", source="lake", to="dr").versions]
        assert copy[0].outcome.value == "copied"
        there = manager.registry("dr").resolve("org/m")
        assert there.manifest != signed.manifest
        (found,) = manager.verify_signatures("org/m", backend="dr", public_keys=[alice.public])
        assert found.ok

    def test_a_part_of_the_files_is_not_signed(self, manager, signed, caplog):
        """A copy of some of the files leaves the signature behind, and says why."""
        manager.pull("mm://lake/org/m", to="dr", include=["*.bin"])
        there = manager.registry("dr").resolve("org/m")
        assert kept(manager.sink("dr"), there.manifest) == []
        assert "is signed and missing" in caplog.text

    def test_replication_brings_later_signatures(self, manager, mine, alice, bob):
        """What was signed after it was copied is signed in the replica, too, by each signer once."""
        manager.push(mine, "org/m", version="1")
        manager.replicate(source="lake", to="dr")
        for person in (alice, bob):
            manager.sign("org/m", key=person.key)
            assert manager.replicate(source="lake", to="dr").failed == {}
            (found,) = manager.verify_signatures("org/m", backend="dr", public_keys=[person.public])
            assert found.ok
        there = manager.registry("dr").resolve("org/m")
        assert len(kept(manager.sink("dr"), there.manifest)) == 2


class TestUpkeep:
    def signatures(self, manager):
        return [stored.key for stored in manager.sink().list(SIGNATURE_PREFIX)]

    def test_a_collection_leaves_what_is_offered(self, manager, signed):
        """The signature of an AVAILABLE version is no litter, however old."""
        registry = manager.registry()
        collect(registry, make_gc_plan(registry, grace=0))
        assert len(self.signatures(manager)) == 1

    def test_a_collection_takes_the_signatures_of_what_it_sweeps(self, manager, signed):
        """With the files of a removed version goes what is signed of it, and the plan says so."""
        manager.remove("org/m")
        registry = manager.registry()
        plan = make_gc_plan(registry, grace=0)
        assert self.signatures(manager)[0] in [stored.key for stored in plan.objects]
        collect(registry, plan)
        assert self.signatures(manager) == []

    def test_a_collection_takes_nobodys_signatures(self, manager, signed, mine, alice):
        """What another program left when it swept goes; what is somebody's again meanwhile stays."""
        (data,) = [one.data for one in kept(manager.sink(), signed.manifest)]
        stray = f"{SIGNATURE_PREFIX}{'0' * 64}/{'0' * 12}.json"
        manager.sink().create(stray, data)
        registry = manager.registry()
        plan = make_gc_plan(registry, grace=0)
        assert stray in [stored.key for stored in plan.litter]
        collect(registry, plan)
        assert self.signatures(manager) != []
        assert stray not in self.signatures(manager)

    def test_check_and_repair_know_signatures(self, manager, signed, alice):
        """A damaged one is a finding that a repair sets aside; one of no version is a note."""
        key = bundle_of(manager, signed).place
        good = read_bytes(manager.sink(), key)
        assert check(manager.sink()).findings == ()
        manager.sink().put(key, good[:-1])
        manager.sink().create(f"{SIGNATURE_PREFIX}{'0' * 64}/{'0' * 12}.json", good)
        codes = {finding.code for finding in check(manager.sink()).findings}
        assert codes == {"signature_damaged", "orphan"}
        repair(manager.sink())
        assert [f.code for f in check(manager.sink()).findings if f.key == key] == []
        assert reason(manager, alice) == "it is not signed"

    def test_a_backup_holds_signatures(self, manager, signed, tmp_path, alice):
        """And a restore brings them back where they were lost."""
        file = tmp_path / "lake.mmbackup"
        backup(manager.sink(), file)
        manager.sink().delete(self.signatures(manager))
        assert reason(manager, alice) == "it is not signed"
        restore(manager.sink(), file)
        assert reason(manager, alice) is None


class TestPolicy:
    def policies(self, person=None, **more):
        keys = {"public_keys": [str(person.public)]} if person else {}
        return {"default": {"signature": {**keys, **more}}}

    def test_what_is_not_signed_is_refused_on_the_plan(self, tmp_path, mine, alice):
        """Before a byte moves, and the error says how to have it signed first."""
        with manager_with(tmp_path, policies=self.policies(alice)) as manager:
            with pytest.raises(PolicyError, match="no signature comes with it") as refused:
                manager.plan(str(mine), model_id="org/m")
            assert "model_signing sign" in str(refused.value)

    def test_a_signed_folder_may_enter(self, tmp_path, manager, signed, alice, bob):
        """By a trusted key, over these files; who has signed is noted with the version."""
        out = manager.get("org/m", output=tmp_path / "out").path
        with manager_with(tmp_path, policies=self.policies(alice)) as strict:
            entry = strict.push(out, "org/n", to="dr").entry
            noted = strict.registry("dr").manifest(entry).checks["signature"]
            assert noted["signer"]["kind"] == "key"
            (out / "extra.bin").write_bytes(b"!")
            with pytest.raises(PolicyError, match="extra.bin was not signed"):
                strict.push(out, "org/n", version="2", to="dr")
            assert list(strict.sink("dr").list("models/org/n/2/")) == []
        (out / "extra.bin").unlink()
        with manager_with(tmp_path, policies=self.policies(bob)) as other:
            with pytest.raises(PolicyError, match="is not trusted"):
                other.push(out, "org/n", version="3", to="dr")

    def test_a_copy_of_a_signed_version_may_enter(self, tmp_path, manager, signed, mine, alice):
        """Its signature comes beside its files; that of a version without one is refused."""
        manager.push(mine, "org/plain", version="1")
        policies = {
            "strict": {"backends": ["dr"], **self.policies(alice)["default"]},
            "default": {},
        }
        with manager_with(tmp_path, policies=policies) as strict:
            assert strict.copy("org/m", source="lake", to="dr").failed == {}
            (error,) = strict.copy("org/plain", source="lake", to="dr").failed.values()
            assert isinstance(error, PolicyError)

    def test_the_section_signing_is_trusted(self, tmp_path, manager, signed, alice):
        """Keys under `signing` count for the policy; with nobody at all, that is what it says."""
        out = manager.get("org/m", output=tmp_path / "out").path
        signing = {"public_keys": [str(alice.public)]}
        with manager_with(tmp_path, policies=self.policies(), signing=signing) as strict:
            strict.push(out, "org/n", to="dr")
        with manager_with(tmp_path, policies=self.policies()) as nobody:
            with pytest.raises(PolicyError, match="nobody is trusted"):
                nobody.push(out, "org/o", to="dr")

    def test_what_need_not_be_signed_must_not_be_signed_wrongly(self, tmp_path, mine, alice, bob):
        """With `required: false`, a model without a signature enters, and one with a wrong one does not."""
        with manager_with(tmp_path, policies=self.policies(alice, required=False)) as lenient:
            lenient.push(mine, "org/m", version="1")
            lenient.sign("org/m", key=bob.key)
            out = lenient.get("org/m", output=tmp_path / "out").path
            with pytest.raises(PolicyError, match="does not count"):
                lenient.push(out, "org/m", version="2")

    def test_its_files_are_relative_to_their_settings(self, tmp_path, alice):
        """A key that mm.yaml names without a folder lies beside mm.yaml."""
        (tmp_path / "conf").mkdir()
        file = tmp_path / "conf" / "mm.yaml"
        file.write_text(
            "policies: {default: {signature: {public_keys: [a.pub, ../b.pub, /c.pub]}}}\n"
            "signing: {key_file: k.pem, public_keys: a.pub, certificate_roots: [../r.crt]}\n"
        )
        settings = load_settings(file)
        values = settings.policies["default"]["signature"]
        path = ("policies", "default", "signature")
        made = build_config(SignaturePolicy.Config, values, path, settings)
        wanted = [tmp_path / "conf/a.pub", tmp_path / "b.pub", "/c.pub"]
        assert [str(path) for path in made.public_keys] == list(map(str, wanted))
        assert settings.signing == {
            "key_file": str(tmp_path / "conf/k.pem"),
            "public_keys": [str(tmp_path / "conf/a.pub")],
            "certificate_roots": [str(tmp_path / "r.crt")],
        }


class TestCommands:
    @pytest.fixture
    def mm(self, capfd, tmp_path, monkeypatch, alice, mine):
        """Run mm in a project that trusts Alice, with her version in it: (code, document)."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mm.yaml").write_text(
            "backends: {here: {type: local, root: ./store, fsync: false}}\n"
            "policies: {default: {}}\n"
            "signing: {key_file: alice.pem, public_keys: [alice.pub]}\n"
        )

        def run(*arguments):
            code = main([*arguments, "--json"])
            out, err = capfd.readouterr()
            assert "Traceback" not in out + err
            return code, json.loads(out)

        assert run("push", str(mine), "org/m", "--version", "1")[0] == 0
        return run

    def test_sign_verify_show(self, mm):
        """With the keys in mm.yaml no command needs a flag, and all tell the same signer."""
        assert mm("verify", "org/m", "--signature")[0] == 6
        code, made = mm("sign", "org/m")
        assert (code, made["made"]) == (0, True)
        code, report = mm("verify", "org/m", "--signature")
        assert (code, report["ok"], report["signatures"][0]["ok"]) == (0, True, True)
        (shown,) = mm("show", "org/m")[1]["model"]["signatures"]
        assert (shown["state"], shown["signer"]) == ("valid", made["signer"])

    def test_another_key_ends_with_six(self, mm, bob):
        """Whose key is not the one that has signed is told so, by code and exit code."""
        mm("sign", "org/m")
        code, report = mm("verify", "org/m", "--signature", "--public-key", str(bob.public))
        assert (code, report["error"]["code"], report["ok"]) == (6, "signature", False)
        assert "not trusted" in report["error"]["message"]

    def test_a_changed_byte_ends_with_six(self, mm, tmp_path):
        """The bytes are held against the manifest that is signed; without reading them, sizes are."""
        mm("sign", "org/m")
        (tmp_path / "store/models/org/m/1/model.bin").write_bytes(b"x" * 1000)
        code, report = mm("verify", "org/m", "--signature")
        assert (code, report["error"]["code"], report["signatures"][0]["ok"]) == (
            6,
            "integrity",
            True,
        )
        assert mm("verify", "org/m", "--signature", "--no-deep")[0] == 0

    def test_all_versions_must_be_signed(self, mm, mine):
        """Without a reference each version counts, and those that are not signed are counted."""
        mm("sign", "org/m")
        (mine / "config.json").write_bytes(b"[]")
        mm("push", str(mine), "org/m", "--version", "2")
        code, report = mm("verify", "--signature", "--no-deep")
        assert (code, [one["ok"] for one in report["signatures"]]) == (6, [True, False])

    def test_a_bundle_from_elsewhere_is_kept(self, mm, tmp_path):
        """What was signed where the key is kept is attached, if it is over these files."""
        mm("sign", "org/m")
        out = tmp_path / "out"
        assert mm("get", "org/m", "-o", str(out))[1]["signature"] == str(out / "model.sig")
        shutil.rmtree(tmp_path / "store/.mm/signatures")
        assert mm("sign", "org/m", "--bundle", str(out / "model.sig"))[0] == 0
        assert mm("verify", "org/m", "--signature")[0] == 0

    def test_a_password_comes_from_a_variable(self, mm, tmp_path, monkeypatch):
        """It is named on the command line, never told; one that is not set is a mistake."""
        person = Person(tmp_path, "carol", password="correct horse")
        words = ("sign", "org/m", "--key", str(person.key), "--password-env", "CAROL")
        code, refused = mm(*words)
        assert (code, "CAROL" in refused["error"]["message"]) == (2, True)
        monkeypatch.setenv("CAROL", "correct horse")
        assert mm(*words)[0] == 0
        monkeypatch.setenv("CAROL", "wrong horse")
        code, refused = mm(*words)
        assert (code, "horse" in json.dumps(refused)) == (2, False)

    def test_options_that_say_nothing_are_refused(self, mm, alice):
        """Keys without --signature, and keys beside a bundle, are mistakes."""
        assert mm("verify", "org/m", "--public-key", str(alice.public))[0] == 2
        assert mm("sign", "org/m", "--bundle", "x", "--key", "y")[0] == 2
        assert mm("sign", "org/m", "--bundle", "absent")[0] == 2


def test_settings_of_signatures_are_checked(tmp_path):
    """A misspelt key of `signing` is an error with its line, and no password is ever shown."""
    file = tmp_path / "mm.yaml"
    file.write_text("signing: {key_fil: x}\n")
    with pytest.raises(ConfigError, match="mm.yaml:1: signing.key_fil is not a setting"):
        load_settings(file)
    file.write_text("signing: {key_file: x, password: hunter22}\n")
    assert "hunter22" not in json.dumps(load_settings(file).to_json())
    assert "hunter22" not in repr(load_settings(file))


def test_without_the_library_the_extra_is_named(tmp_path, manager, signed, alice):
    """Where `cryptography` is not installed, the error says what to install, and looking still works."""
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from mm_core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    root = str(tmp_path / "lake")
    run = [sys.executable, "-c", code, "--backend", root]
    words = ["verify", "org/m", "--signature", "--public-key", str(alice.public)]
    refused = subprocess.run([*run, *words], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "model-manager[sign]" in refused.stderr
    shown = subprocess.run([*run, "show", "org/m"], capture_output=True, text=True)
    assert (shown.returncode, "unverified" in shown.stdout) == (0, True)


def test_usage_errors_are_no_tracebacks():
    """Errors of signatures are integrity errors, and those of keys are mistakes of configuration."""
    assert SignatureError.exit_code == 6
    assert issubclass(ConfigError, UsageError)

"""Any sequence of what three clients may do to one store, with faults and deaths in the middle of it.

After every step the store must say what the plain rules of the storage format say, to a client that
comes new and to one that was there. Nothing here waits: time is a number. MM_MACHINE_EXAMPLES and
MM_MACHINE_STEPS ask for more.
"""

import dataclasses
import os
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import mm_core.registry.begin
import mm_core.registry.chain
import mm_core.registry.claims
import mm_core.registry.deadline
import mm_core.registry.opening
import mm_core.registry.saving
from mm_core.exceptions import (
    CommitUnknownError,
    ConflictError,
    NotFoundError,
    TransientError,
)
from mm_core.names import version_prefix
from mm_core.registry import Claim, ModelRegistry
from mm_core.schemas import ModelEntry, ModelStatus, sha256_hex
from mm_core.sink import read_bytes
from mm_core.testing.plain import PlainRegistry, rows_of
from mm_core.testing.registry import FaultySink, manifest_for, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

EXAMPLES = int(os.environ.get("MM_MACHINE_EXAMPLES", "200"))
STEPS = int(os.environ.get("MM_MACHINE_STEPS", "50"))

CLIENTS = 3
TIMEOUT = 3600.0
"""Of a claim. No heartbeat is due before a test is over: beats are rules, too."""

CONTENT = b"hello"
RIVAL = "org/rival"
MODELS = ("org/m", "org/M", "org/m/1")
VERSIONS = ("1", "2")
ALIASES = ("prod", "Prod", "latest")

clients = st.integers(0, CLIENTS - 1)
names = st.tuples(st.sampled_from(MODELS), st.sampled_from(VERSIONS))
aliases = st.sampled_from(ALIASES)

# What happens to the calls of a client to its store, one after the other. `rival`: somebody else
# commits just before. `away`: from there on to all.
passing = st.sampled_from(["ok", "ok", "ok", "cut", "lost", "rival"])
ending = st.sampled_from(["ok", "ok", "ok", "ok", "die before", "die after", "away", "away after"])
scripts = st.one_of(
    st.just(()),
    st.builds(lambda first, last: (*first, last), st.lists(passing, max_size=7), ending),
)


class Killed(BaseException):
    """The process ends here."""


class Clock:
    """Stands for the module `time` in waits, and for the store's clock."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def moment(self):
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self.now)


class Store(FaultySink):
    """A client's way to the store: it does what `script` says, and tells times of `clock`."""

    def __init__(self, inner, clock, written):
        super().__init__(inner, rate=0, seed=0)
        self.clock, self.written = clock, written
        self.script, self.dead = [], False
        self.rival = lambda: None

    def put(self, key, data):
        self._try(lambda: self.write_now(key, data))

    def write_now(self, key, data):
        self.inner.put(key, data)
        self.written[key] = self.clock.moment()

    def stat(self, key):
        found = super().stat(key)
        return found and dataclasses.replace(found, modified=self.written.get(key, found.modified))

    def _try(self, action):
        with self._lock:
            fate = "ok"
            if self.script:
                fate = self.script[0] if "away" in self.script[0] else self.script.pop(0)
        if self.dead or fate == "die before":
            self.dead = True
            raise Killed
        if fate == "rival":
            self.rival()
        if fate in ("cut", "away"):
            raise TransientError("the request was cut")
        result = action()
        if fate == "die after":
            self.dead = True
            raise Killed
        if fate in ("lost", "away after"):
            raise TransientError("the answer was lost")
        return result


class Client:
    """One process: its registry, and the claims that it holds."""

    def __init__(self, machine):
        self.process = uuid.uuid4().hex
        self.sink = Store(machine.memory, machine.clock, machine.written)
        self.sink.rival = machine.rival
        self.registry = ModelRegistry(self.sink, claim_timeout=TIMEOUT)
        self.claims = []


class RegistryMachine(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.patched = pytest.MonkeyPatch()
        self.clock, self.written, self.dead = Clock(), {}, set()
        self.memory = MemorySink(MemorySink.Config(root=f"memory://{uuid.uuid4().hex}"))
        self.plain = PlainRegistry()
        """What the rules say of what was asked for."""
        self.log = PlainRegistry()
        """What the rules say of what is in the log."""
        self.calling = None
        self.owners, self.asked = {}, {}
        """By claim: the process that began it; the alias that its `add` was asked for."""
        patch = self.patched.setattr
        patch(mm_core.registry.deadline, "time", self.clock)
        for module in (mm_core.registry.chain, mm_core.registry.opening):
            patch(module, "at_once", lambda work, items: [work(item) for item in items])
        patch(mm_core.registry.opening, "_WINDOW", 12)
        patch(mm_core.registry.saving, "INTERVAL", 4)
        patch(mm_core.registry.saving, "_LEAST_BYTES", 3_000)
        patch(mm_core.registry.begin, "this_process", lambda: {"process": self.calling.process})
        patch(
            mm_core.registry.claims,
            "is_dead",
            lambda owner: bool(owner) and owner["process"] in self.dead,
        )
        self.clients = [Client(self) for _ in range(CLIENTS)]
        self.witness = ModelRegistry(self.memory)
        self.other = ModelRegistry(self.memory)

    def rival(self):
        """A commit of somebody who has nothing to do with all this, but takes the next number."""
        assert self.other.add_model(registered(RIVAL, uuid.uuid4().hex))

    def teardown(self):
        for client in getattr(self, "clients", ()):
            for claim in client.claims:
                claim.close()
        if hasattr(self, "patched"):
            self.patched.undo()

    # -- what is asked for, and what must come of it

    def ask(self, number, script, operations, action, *, may_refuse=False):
        """Let a client do `action`, which means `operations`; what it returned, or None.

        Done or refused as the rules say; or not known, or not survived, and then done whole or not at
        all.
        """
        client = self.calling = self.clients[number]
        client.sink.script = list(script)
        result, told = None, "done"
        try:
            result = action(client)
        except Killed:
            told = "dead"
        except (CommitUnknownError, TransientError):
            told = "unknown" if script[-1:] in (("away",), ("away after",)) else "failed"
        except (ConflictError, NotFoundError):
            told = "refused"
        client.sink.script = []
        commits = self.follow()
        mine = [done for done in commits if done[0]["model_id"] != RIVAL]
        landed = len(mine)
        expected = self.plain.allows(operations) if operations else None
        assert told != "failed", "a fault that passed is not for the caller"
        if told == "done" and operations:
            assert expected, operations
            assert landed == 1
        elif told == "refused":
            assert not expected or (script and may_refuse), operations
            assert landed == 0
        else:
            assert landed <= (1 if expected else 0)
        assert landed == 0 or [shape(o) for o in mine[0]] == [shape(o) for o in operations]
        for done in commits:
            self.plain.apply(operations if done in mine else done)
        if told == "dead":
            self.bury(number)
        return result

    def follow(self):
        """The operations of the commits that came, each as the rules allow."""
        commits = []
        while True:
            key = f".mm/log/{self.log.seq + 1:012d}.json"
            if self.memory.stat(key) is None:
                return commits
            commits.append(self.log.commit(read_bytes(self.memory, key)))

    def bury(self, number):
        client = self.clients[number]
        self.dead.add(client.process)
        for claim in client.claims:
            claim.close()
        self.clients[number] = Client(self)

    def state_of(self, name):
        return self.plain.versions.get(name)

    def is_stale(self, claim):
        """Whether an open claim may be taken over by somebody who does not wait."""
        if self.owners[claim] in self.dead:
            return True
        key = f".mm/claims/{claim}"
        if self.memory.stat(key) is None:
            return False
        return self.clock.moment() - self.written[key] > timedelta(seconds=TIMEOUT)

    # -- a pull

    @rule(number=clients, name=names, script=scripts)
    def begin(self, number, name, script):
        model, version = name
        found = self.state_of(name)
        begin = {"op": "begin", "model_id": model, "version": version, "claim": "?"}
        operations = [begin]
        if found is not None and found.status == "AVAILABLE":
            operations = []
        elif found is not None and found.status == "DOWNLOADING" and found.claim:
            if self.is_stale(found.claim):
                abandon = {"op": "abandon", "model_id": model, "version": version}
                operations = [{**abandon, "claim": found.claim}, begin]
        client = self.clients[number]

        def action(client):
            begun = client.registry.begin(model, version, wait=False)
            if isinstance(begun, Claim):
                client.claims.append(begun)
            return begun

        # A fault while the heartbeat is looked at: it is not taken over this time.
        begun = self.ask(number, script, operations, action, may_refuse=len(operations) > 1)
        if not operations:
            assert begun is None or isinstance(begun, ModelEntry)
        held = self.log.versions.get(name)
        if held and held.claim:
            self.plain.versions[name].claim = held.claim  # its id is the client's to choose
            self.owners.setdefault(held.claim, client.process)

    @precondition(lambda self: any(client.claims for client in self.clients))
    @rule(data=st.data(), script=scripts, alias=st.none() | aliases)
    def add(self, data, script, alias):
        """Also once more, with the same aliases, for one that was done or whose outcome is not known."""
        number = data.draw(st.sampled_from([n for n, c in enumerate(self.clients) if c.claims]))
        claim = data.draw(st.sampled_from(self.clients[number].claims))
        alias = self.asked.setdefault(claim.id, alias)
        named = {"model_id": claim.model_id, "version": claim.version}
        manifest = manifest_for(claim)
        add = {**named, "op": "add", "claim": claim.id, "manifest": sha256_hex(manifest.to_bytes())}
        given = [{**named, "op": "alias", "alias": alias}] if alias else []
        self.memory.put(f"{claim.prefix}model.bin", CONTENT)
        done = f"{claim.id}-add" in self.log.ids
        self.ask(
            number,
            script,
            [] if done else [add, *given],
            lambda client: client.registry.add(claim, manifest, aliases=[alias] if alias else []),
        )

    @precondition(lambda self: any(client.claims for client in self.clients))
    @rule(data=st.data(), script=scripts)
    def abandon(self, data, script):
        number = data.draw(st.sampled_from([n for n, c in enumerate(self.clients) if c.claims]))
        claim = data.draw(st.sampled_from(self.clients[number].claims))
        found = self.state_of((claim.model_id, claim.version))
        named = {"model_id": claim.model_id, "version": claim.version, "claim": claim.id}
        open_ = found is not None and found.status == "DOWNLOADING" and found.claim == claim.id
        self.ask(
            number,
            script,
            [{**named, "op": "abandon"}] if open_ else [],
            lambda client: client.registry.abandon(claim, "enough"),
        )

    # -- changes

    @rule(number=clients, name=names, script=scripts, alias=st.none() | aliases)
    def register(self, number, name, script, alias):
        model, version = name
        entry = ModelEntry(
            model_id=model,
            version=version,
            path="s3://elsewhere",
            status=ModelStatus.AVAILABLE,
            aliases=(alias,) if alias else (),
        )
        named = {"model_id": model, "version": version}
        given = [{**named, "op": "alias", "alias": alias}] if alias else []
        operations = [{**named, "op": "register", "status": "AVAILABLE"}, *given]
        found = self.state_of(name)
        there = found is not None and found.status != "DELETED"
        added = self.ask(
            number,
            script,
            [] if there else operations,
            lambda client: client.registry.add_model(entry),
        )
        assert added in (None, not there)

    @rule(
        number=clients,
        name=names,
        script=scripts,
        status=st.sampled_from(["AVAILABLE", "FAILED", "DOWNLOADING", "DELETED"]),
    )
    def status(self, number, name, script, status):
        model, version = name
        operation = {"op": "status", "model_id": model, "version": version, "status": status}
        self.ask(
            number,
            script,
            [operation] if self.state_of(name) else [],
            lambda client: client.registry.update_model_status(
                model, ModelStatus(status), version=version
            ),
        )

    @rule(number=clients, name=names, script=scripts)
    def remove(self, number, name, script):
        operation = {"op": "remove", "model_id": name[0], "version": name[1]}
        self.ask(number, script, [operation], lambda client: client.registry.remove(*name))

    @rule(number=clients, name=names, script=scripts)
    def sweep(self, number, name, script):
        operation = {"op": "sweep", "model_id": name[0], "version": name[1]}
        self.ask(number, script, [operation], lambda client: client.registry.sweep(*name))

    @rule(number=clients, name=names, script=scripts)
    def swept(self, number, name, script):
        """The files go first; whoever dies in between leaves the rest to the next."""
        operation = {"op": "swept", "model_id": name[0], "version": name[1]}
        found = self.state_of(name)
        if found is not None and found.status == "SWEEPING":
            prefix = version_prefix(*name)
            self.memory.delete([stored.key for stored in self.memory.list(prefix)])
        self.ask(number, script, [operation], lambda client: client.registry.swept(*name))

    @rule(
        number=clients,
        name=names,
        script=scripts,
        alias=aliases,
        expect=st.sampled_from([..., None, *VERSIONS]),
    )
    def set_alias(self, number, name, script, alias, expect):
        operation = {"op": "alias", "model_id": name[0], "version": name[1], "alias": alias}
        if expect is not ...:
            operation["expect"] = expect or ""
        self.ask(
            number,
            script,
            [operation],
            lambda client: client.registry.set_alias(name[0], alias, name[1], expect=expect),
        )

    @rule(number=clients, model=st.sampled_from(MODELS), script=scripts, alias=aliases)
    def remove_alias(self, number, model, script, alias):
        operation = {"op": "unalias", "model_id": model, "alias": alias}
        self.ask(
            number,
            script,
            [operation],
            lambda client: client.registry.remove_alias(model, alias),
        )

    # -- what happens without being asked for

    @rule(number=clients)
    def crash(self, number):
        self.bury(number)

    @rule(seconds=st.sampled_from([TIMEOUT / 8, TIMEOUT * 2]), beating=st.sets(clients))
    def time_passes(self, seconds, beating):
        """Some clients' heartbeats go on; the others are stalled, and may wake up again."""
        self.clock.now += seconds
        for number in beating:
            for claim in self.clients[number].claims:
                key = f".mm/claims/{claim.id}"
                if self.memory.stat(key) is not None:
                    self.clients[number].sink.write_now(key, b"alive")

    # -- what must be true after each step

    @invariant()
    def a_fresh_client_and_an_old_one_see_what_the_rules_say(self):
        if not hasattr(self, "plain"):
            return
        expected = self.plain.rows()
        assert self.log.rows() == expected
        fresh = ModelRegistry(self.memory)
        assert rows_of(fresh) == expected
        self.witness.refresh()
        assert self.witness._log.known == fresh._log.known
        for model in MODELS:
            best = self.plain.best(model)
            found = fresh.get_model_cached(model)
            offered = found.version if found and found.status is ModelStatus.AVAILABLE else None
            assert offered == best

    @invariant()
    def what_is_offered_is_whole(self):
        if not hasattr(self, "plain"):
            return
        for (model, version), found in self.plain.versions.items():
            if found.status == "AVAILABLE" and not found.elsewhere:
                assert (
                    read_bytes(self.memory, f"{version_prefix(model, version)}model.bin") == CONTENT
                )


def shape(operation):
    """What the rules look at; a new claim's id is the client's to choose."""
    names = ("op", "model_id", "version", "alias", "expect", "status")
    return {name: operation[name] for name in names if name in operation}


def test_whatever_three_clients_do_the_registry_keeps_its_rules():
    """200 examples of 50 steps: after each the store says what the plain rules say."""
    run_state_machine_as_test(
        RegistryMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )

"""Any sequence of what three clients may do to one store, with faults and deaths in the middle of it.

After every step the store must say what the plain rules of the storage format say, to a client that
comes new and to one that was there. Nothing here waits: time is a number. MM_MACHINE_EXAMPLES and
MM_MACHINE_STEPS ask for more.
"""

import dataclasses
import os
import random
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
from mm_core.testing.plain import PlainRegistry, fold, rows_of
from mm_core.testing.registry import FaultySink, manifest_for, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

EXAMPLES = int(os.environ.get("MM_MACHINE_EXAMPLES", "200"))
STEPS = int(os.environ.get("MM_MACHINE_STEPS", "50"))

CLIENTS = 3
TIMEOUT = 3600.0
LONGEST_CALL = 120.0
"""Seconds that the faults of one script keep a client busy, if the last of them passes."""
"""Of a claim. No heartbeat is due before a test is over: beats are rules, too."""

CONTENT = b"hello"
RIVAL = "org/rival"
NAMES = (("org/m", "1"), ("org/m", "2"), ("org/n", "1"))
ODD_NAMES = (("org/M", "1"), ("org/m/1", "2"), ("org/m", "3"))
"""One that is spelt otherwise, one whose folder may lie in another's, and one that is seldom there."""

MODELS = ("org/m", "org/n", "org/M", "org/m/1")
ALIASES = ("prod", "Prod", "latest")
ABSENT = None

clients = st.integers(0, CLIENTS - 1)
aliases = st.sampled_from(ALIASES)
mostly = st.sampled_from([True, True, True, True, False])

PASSING = ("ok", "ok", "ok", "cut", "lost", "rival")
ENDING = ("ok", "ok", "ok", "ok", "die before", "die after", "away", "away after")
"""What happens to the calls of a client to its store. `rival`: somebody else commits just before.
`away`: from there on to all of them."""


def some_scripts(count):
    """Fates of calls, one after the other. Drawn beforehand, which is quicker, and short ones first."""
    dice = random.Random(7)
    made = {
        (*dice.choices(PASSING, k=dice.randrange(8)), dice.choice(ENDING)) for _ in range(count)
    }
    return [*[()] * (count // 2), *sorted(made, key=lambda script: (len(script), script))]


scripts = st.sampled_from(some_scripts(400))


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
        patch(mm_core.registry.opening, "_BEYOND", 2)
        patch(mm_core.registry.opening, "_WINDOW", 7)
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

    def name(self, data, *statuses):
        """Mostly a version of which the rules allow what is to be asked; else any."""
        there = {name: found.status for name, found in self.plain.versions.items()}
        fitting = [name for name in NAMES + ODD_NAMES if there.get(name) in statuses]
        if fitting and data.draw(mostly):
            return data.draw(st.sampled_from(fitting))
        return data.draw(st.sampled_from(NAMES + ODD_NAMES))

    def held(self, data):
        """A client with a claim, mostly an open one, and the claim."""
        held = [(number, claim) for number, c in enumerate(self.clients) for claim in c.claims]
        open_ = [(number, claim) for number, claim in held if self.is_open(claim)]
        return data.draw(st.sampled_from(open_ if open_ and data.draw(mostly) else held))

    def is_open(self, claim):
        found = self.state_of((claim.model_id, claim.version))
        return found is not None and found.status == "DOWNLOADING" and found.claim == claim.id

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

    def let_it_be_clear(self, claim):
        """A claim that would become stale while a client tries again is so before it begins."""
        key = f".mm/claims/{claim}"
        if self.memory.stat(key) is not None:
            left = TIMEOUT - (self.clock.moment() - self.written[key]).total_seconds()
            if 0 <= left <= LONGEST_CALL:
                self.clock.sleep(left + 1)

    # -- a pull

    @rule(number=clients, data=st.data(), script=scripts)
    def begin(self, number, data, script):
        model, version = name = self.name(data, ABSENT, "FAILED", "DELETED", "DOWNLOADING")
        found = self.state_of(name)
        begin = {"op": "begin", "model_id": model, "version": version, "claim": "?"}
        operations = [begin]
        if found is not None and found.status == "AVAILABLE":
            operations = []
        elif found is not None and found.status == "DOWNLOADING" and found.claim:
            self.let_it_be_clear(found.claim)
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
        number, claim = self.held(data)
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
        number, claim = self.held(data)
        named = {"model_id": claim.model_id, "version": claim.version, "claim": claim.id}
        self.ask(
            number,
            script,
            [{**named, "op": "abandon"}] if self.is_open(claim) else [],
            lambda client: client.registry.abandon(claim, "enough"),
        )

    # -- changes

    @rule(number=clients, data=st.data(), script=scripts, alias=st.none() | aliases)
    def register(self, number, data, script, alias):
        model, version = name = self.name(data, ABSENT, "DELETED")
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
        data=st.data(),
        script=scripts,
        what=st.sampled_from(["status", "remove", "set_alias", "set_alias", "remove_alias"]),
    )
    def change(self, number, data, script, what):
        getattr(self, what)(number, data, script)

    @rule(number=clients, data=st.data(), script=scripts, what=st.sampled_from(["sweep", "swept"]))
    def collect(self, number, data, script, what):
        getattr(self, what)(number, data, script)

    def status(self, number, data, script):
        model, version = name = self.name(data, "AVAILABLE", "FAILED", "DOWNLOADING", "DELETED")
        status = data.draw(st.sampled_from(["AVAILABLE", "FAILED", "DOWNLOADING", "DELETED"]))
        operation = {"op": "status", "model_id": model, "version": version, "status": status}
        self.ask(
            number,
            script,
            [operation] if self.state_of(name) else [],
            lambda client: client.registry.update_model_status(
                model, ModelStatus(status), version=version
            ),
        )

    def remove(self, number, data, script):
        name = self.name(data, "AVAILABLE", "FAILED")
        operation = {"op": "remove", "model_id": name[0], "version": name[1]}
        self.ask(number, script, [operation], lambda client: client.registry.remove(*name))

    def sweep(self, number, data, script):
        name = self.name(data, "DELETED", "FAILED", "SWEEPING")
        operation = {"op": "sweep", "model_id": name[0], "version": name[1]}
        self.ask(number, script, [operation], lambda client: client.registry.sweep(*name))

    def swept(self, number, data, script):
        """The files go first; whoever dies in between leaves the rest to the next."""
        name = self.name(data, "SWEEPING")
        operation = {"op": "swept", "model_id": name[0], "version": name[1]}
        found = self.state_of(name)
        if found is not None and found.status == "SWEEPING":
            prefix = version_prefix(*name)
            self.memory.delete([stored.key for stored in self.memory.list(prefix)])
        self.ask(number, script, [operation], lambda client: client.registry.swept(*name))

    def set_alias(self, number, data, script):
        name, alias = self.name(data, "AVAILABLE"), data.draw(aliases)
        held = self.plain.aliases.get((name[0], fold(alias)), (None, None))[1]
        expect = data.draw(st.sampled_from([..., held, None, "1"]))
        operation = {"op": "alias", "model_id": name[0], "version": name[1], "alias": alias}
        if expect is not ...:
            operation["expect"] = expect or ""
        self.ask(
            number,
            script,
            [operation],
            lambda client: client.registry.set_alias(name[0], alias, name[1], expect=expect),
        )

    def remove_alias(self, number, data, script):
        there = sorted((model, alias) for (model, _), (alias, _) in self.plain.aliases.items())
        choice = there if there and data.draw(mostly) else [("org/m", "prod"), ("org/x", "latest")]
        model, alias = data.draw(st.sampled_from(choice))
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


@pytest.mark.timeout(60 + 3 * EXAMPLES)
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

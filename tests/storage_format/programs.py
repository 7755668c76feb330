"""Two programs that keep to docs/storage-format.md, behind one face: Model Manager, and the second one."""

from __future__ import annotations

import gzip
import json

from storage_format import second

from mm_core.exceptions import (
    ConflictError,
    IntegrityError,
    InvalidNameError,
    NotFoundError,
    StorageError,
)
from mm_core.names import check_alias, check_model_id, check_path, check_version, fold
from mm_core.registry import Keys, ModelRegistry
from mm_core.registry.chain import parse_commits
from mm_core.registry.checkpoint import decode, encode
from mm_core.registry.history import newest_first, plan_rollback
from mm_core.registry.operations import check_folder, replay, transition
from mm_core.registry.references import find_available
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import canonical_json
from mm_plugins.sinks.local import LocalSink


def document(state):
    """A state as the examples have it: the order of versions means nothing."""
    found = json.loads(json.dumps(state))
    for model in found["models"].values():
        model["versions"].sort(key=lambda row: row["version"])
    return found


def local(root):
    return LocalSink(LocalSink.Config(root=str(root), fsync=False))


class Ours:
    """Model Manager, by the functions that it uses itself."""

    canonical = staticmethod(canonical_json)
    checks = {
        "model_ids": check_model_id,
        "versions": check_version,
        "aliases": check_alias,
        "paths": check_path,
    }

    def allows(self, kind, name):
        try:
            return self.checks[kind](name) == name
        except InvalidNameError:
            return False

    def same(self, one, other):
        return fold(one) == fold(other)

    def nests(self, one, other):
        row = {"version": other[1], "status": "FAILED", "added": [1, 0]}
        models = {other[0]: {"versions": [row], "aliases": {}}}
        state = State.from_json({"seq": 1, "head": "", "operations": [], "models": models})
        try:
            check_folder(state, *one)
        except ConflictError:
            return True
        return False

    def follow(self, found, text):
        state, sink = State.from_json(found), local("unused")
        commits = parse_commits(sink, [text.encode()], state.seq, state.head)
        return document(replay(state, [record for record, _ in commits]).to_json())

    def outcome(self, found, operations):
        state = State.from_json(found)
        before = document(state.to_json())
        try:
            transition(state, operations)
        except ConflictError:
            result = "refused"
        except NotFoundError:
            result = "not found"
        else:
            result = "done"
        assert document(state.to_json()) == before
        return result

    def resolve(self, found, reference):
        try:
            return find_available(State.from_json(found), reference)[1]["version"]
        except NotFoundError:
            return None

    def read_checkpoint(self, packed):
        return document(decode(packed).to_json())

    def checkpoint_text(self, found):
        return gzip.decompress(encode(State.from_json(found)))

    def open(self, root, trusted=()):
        try:
            registry = ModelRegistry(local(root), keys=Keys(trusted_keys=tuple(trusted)))
            return "the state", document(registry.state().to_json())
        except IntegrityError:
            return "damage", None
        except StorageError:
            return "something newer", None

    def pile(self, root, model_id, alias):
        """By asking where each number of steps back leads to."""
        sink, pile = local(root), []
        state = ModelRegistry(sink).state()
        record = state.record(model_id)
        now = record and record.aliases.get(fold(alias))
        pile = [now[1]] if now else []
        while True:
            try:
                records = newest_first(sink, state, ModelRegistry(sink)._deadline)
                steps = len(pile) + (not now)
                pile.append(plan_rollback(state, records, model_id, alias, steps=steps).version)
            except NotFoundError as error:
                if "named before" not in str(error):
                    return pile[::-1]
                pile.append(str(error).split(",")[0].rpartition("@")[2])

    def believes_commit(self, text, key):
        try:
            Trust(Keys(trusted_keys=(key,))).check_commit(json.loads(text), 1, "")
        except IntegrityError:
            return False
        return True

    def believes_checkpoint(self, text, key):
        try:
            decode(gzip.compress(text.encode()), Trust(Keys(trusted_keys=(key,))))
        except IntegrityError:
            return False
        return True


class Second:
    """The program that was written from the document alone."""

    canonical = staticmethod(second.canonical)
    checks = {
        "model_ids": second.is_model_id,
        "versions": second.is_segment,
        "aliases": second.is_alias,
        "paths": second.is_path,
    }

    def allows(self, kind, name):
        return self.checks[kind](name)

    def same(self, one, other):
        return second.fold(one) == second.fold(other)

    def nests(self, one, other):
        return second.nests("/".join(one), "/".join(other))

    def follow(self, found, text):
        state = second.State(document(found))
        state.follow(text.encode())
        return document(state.document)

    def outcome(self, found, operations):
        state = second.State(document(found))
        try:
            for place, operation in enumerate(operations):
                state.check(operation)
                state.apply(operation, [state.seq + 1, place])
        except second.Refused:
            return "refused"
        return "done"

    def resolve(self, found, reference):
        try:
            return second.State(document(found)).resolve(reference)["version"]
        except second.NotFound:
            return None

    def read_checkpoint(self, packed):
        return document(json.loads(gzip.decompress(packed)))

    def checkpoint_text(self, found):
        return second.checkpoint_text(second.State(document(found)))

    def open(self, root, trusted=()):
        try:
            reader = second.Reader(root, trusted=set(trusted) or None)
            return "the state", document(reader.refresh().document)
        except second.Damaged:
            return "damage", None
        except second.TooNew:
            return "something newer", None

    def pile(self, root, model_id, alias):
        reader = second.Reader(root)
        reader.refresh()
        return reader.pile(model_id, alias)

    def believes_commit(self, text, key):
        return second.is_commit_signed(text.encode(), {key})

    def believes_checkpoint(self, text, key):
        return second.is_checkpoint_signed(text.encode(), {key})

"""A second implementation of the storage format, which knows nothing but docs/storage-format.md.

It imports nothing of Model Manager, and nothing that does not come with Python but for
`cryptography` where signatures are looked at. It is here to prove that the document is complete:
what it does, somebody else can do. One client, one thread, and a store in a folder.
"""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import json
import os
import random
import re
import time
import unicodedata
import uuid
from pathlib import Path
from typing import Any

Json = dict[str, Any]

GENESIS = "0" * 64
REMEMBERED_OPERATIONS = 512
GAP = 8
EVERY, LARGE_COMMIT = 32, 64 << 10
SMALL_PACK, LARGE_PACK, TAIL_PACK = 128 << 10, 4 << 20, 256 << 10


class Damaged(Exception):
    """What is stored is not what was written, or nobody who is trusted has signed it."""


class Refused(Exception):
    """An operation is not allowed in the state that it met. Nothing was done."""


class NotFound(Exception):
    """A reference means nothing that could be used."""


class TooNew(Exception):
    """The store holds what only a later program understands."""


# Bytes -----------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(commit: Json) -> bytes:
    """The bytes of a commit, with its `check` worked out."""
    rest = canonical(commit)
    return b'{"check":"' + sha256(rest)[:16].encode() + b'",' + rest[1:]


def check_of(raw: bytes) -> bool | None:
    """Whether the `check` in the bytes of a commit is right; None if there is none."""
    found = re.match(rb'\{"check":"([^"]*)",', raw)
    return found and found[1].decode() == sha256(b"{" + raw[found.end() :])[:16]


def parse(raw: bytes | None, *fields: str) -> Json:
    """The document in some bytes. Raises Damaged if it is none, or has not these fields."""
    try:
        found = json.loads(raw or b"")
        if all(found[field] is not None for field in fields):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f"{raw!r:.80}")


def without(value: Json, *fields: str) -> Json:
    return {name: held for name, held in value.items() if name not in fields}


def log_key(seq: int) -> str:
    return f".mm/log/{seq:012d}.json"


# Names -----------------------------------------------------------------------------------

DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)


def fold(name: str) -> str:
    """Equal for names that are the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def is_segment(text: str) -> bool:
    letters = [unicodedata.category(char)[0] in "LN" for char in text]
    return (
        letters[:1] == [True]
        and all(letter or char in "_.+-" for letter, char in zip(letters, text, strict=True))
        and unicodedata.normalize("NFC", text) == text
        and size(text) <= 255
        and not text.endswith(".")
        and not DEVICES.fullmatch(text)
    )


def is_model_id(text: str) -> bool:
    return size(text) <= 200 and all(map(is_segment, text.split("/")))


def is_alias(text: str) -> bool:
    return is_segment(text) and not re.fullmatch("[0-9a-f]{40}", text)


def is_path(text: str) -> bool:
    return size(text) <= 900 and all(map(_is_path_segment, text.split("/")))


def _is_path_segment(text: str) -> bool:
    return (
        text not in ("", ".", "..")
        and size(text) <= 255
        and text[-1] not in ". "
        and not DEVICES.fullmatch(text)
        and not any(char in '<>:"|?*\\' or is_invisible(char) for char in text)
    )


def is_invisible(char: str) -> bool:
    category = unicodedata.category(char)
    return category in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"


def nests(one: str, other: str) -> bool:
    """Whether one of two different folders lies in the other."""
    one, other = fold(one) + "/", fold(other) + "/"
    return one != other and (one.startswith(other) or other.startswith(one))


# The state -------------------------------------------------------------------------------


class State:
    """What the operations of the log lead to. `document` is what a checkpoint holds."""

    def __init__(self, document: Json | None = None) -> None:
        self.document = document or {"head": GENESIS, "operations": [], "seq": 0, "models": {}}

    @property
    def seq(self) -> int:
        return self.document["seq"]

    @property
    def head(self) -> str:
        return self.document["head"]

    @property
    def models(self) -> dict[str, Json]:
        return self.document["models"]

    def rows(self, model_id: str) -> dict[str, Json]:
        model = self.models.get(model_id)
        return {row["version"]: row for row in model["versions"]} if model else {}

    def row(self, model_id: str, version: str) -> Json | None:
        return self.rows(model_id).get(version)

    def alias(self, model_id: str, alias: str) -> str | None:
        """The version that an alias names, under whatever spelling."""
        aliases = self.models.get(model_id, {}).get("aliases", {})
        return next((named for a, named in aliases.items() if fold(a) == fold(alias)), None)

    def resolve(self, reference: str) -> Json:
        """The row of the AVAILABLE version that a reference means. Raises NotFound."""
        model_id, mark, name = re.fullmatch(r"([^@:]*)([@:]?)(.*)", reference, re.S).groups()
        offered = {v: r for v, r in self.rows(model_id).items() if r["status"] == "AVAILABLE"}
        if not mark:
            named = self.alias(model_id, "latest")
            if named not in offered:
                named = max(offered, key=lambda version: offered[version]["added"], default=None)
        elif mark == "@" and self.row(model_id, name):
            named = name
        else:
            named = self.alias(model_id, name)
        if named not in offered:
            raise NotFound(reference)
        return offered[named]

    def has_done(self, operations: list[Json]) -> bool:
        return all(op["id"] in self.document["operations"] for op in operations)

    def check(self, op: Json) -> None:
        """Raise Refused if an operation is not allowed now."""
        row = self.row(op["model_id"], op.get("version", ""))
        CHECKS[op["op"]](self, op, row)

    def follow(self, raw: bytes) -> None:
        """Take in the next commit. Raises Damaged and TooNew; then nothing is changed."""
        commit = parse(raw, "seq", "prev", "operations")
        if (commit["seq"], commit["prev"]) != (self.seq + 1, self.head) or check_of(raw) is False:
            raise Damaged(f"commit {self.seq + 1} does not follow the one before")
        if unknown := {op["op"] for op in commit["operations"]} - CHECKS.keys():
            raise TooNew(f"commit {self.seq + 1} has the operation {unknown.pop()}")
        for place, op in enumerate(commit["operations"]):
            self.apply(op, [commit["seq"], place])
        self.document.update(seq=commit["seq"], head=sha256(raw))

    def apply(self, op: Json, at: list[int]) -> None:
        """Do one operation, which stands at place `at` of the log."""
        ids = self.document["operations"]
        ids.append(op["id"])
        del ids[:-REMEMBERED_OPERATIONS]
        kind, model_id, version = op["op"], op["model_id"], op.get("version", "")
        if kind in ("alias", "unalias"):
            self._drop_aliases(model_id, lambda alias, _: fold(alias) == fold(op["alias"]))
            if kind == "alias":
                self.models[model_id]["aliases"][op["alias"]] = version
            return
        old = self.row(model_id, version)
        if kind == "abandon" and (old or {}).get("claim") != op["claim"]:
            return
        self._put(model_id, version, None if kind == "swept" else _next_row(op, old, at))
        if kind in ("remove", "swept") or (kind, op.get("status")) == ("status", "DELETED"):
            self._drop_aliases(model_id, lambda _, named: named == version)

    def _put(self, model_id: str, version: str, row: Json | None) -> None:
        model = self.models.setdefault(model_id, {"aliases": {}, "versions": []})
        others = [other for other in model["versions"] if other["version"] != version]
        model["versions"] = others if row is None else [*others, row]
        if not model["versions"]:
            del self.models[model_id]

    def _drop_aliases(self, model_id: str, gone: Any) -> None:
        if model := self.models.get(model_id):
            model["aliases"] = {a: v for a, v in model["aliases"].items() if not gone(a, v)}


NO_ROW_FIELDS = ("op", "id", "model_id", "expect", "over")
DROPPED = {
    "add": ("owner", "timeout", "reason"),
    "status": ("claim",),
    "sweep": ("sweeper", "owner", "free"),
}
AFTERWARDS = {
    "begin": "DOWNLOADING",
    "add": "AVAILABLE",
    "abandon": "FAILED",
    "remove": "DELETED",
    "sweep": "SWEEPING",
}


def _next_row(op: Json, old: Json | None, at: list[int]) -> Json:
    kind = op["op"]
    kept = {} if kind in ("begin", "register") else without(old or {}, *DROPPED.get(kind, ()))
    row = {**kept, **without(op, *NO_ROW_FIELDS)}
    row["status"] = AFTERWARDS.get(kind) or op["status"]
    if old is None or kind in ("begin", "add", "register"):
        row["added"] = at
    if kind not in ("begin", "add", "register"):
        row["ended"] = at
    return row


# What is allowed -------------------------------------------------------------------------


def allow(condition: Any, op: Json) -> None:
    if not condition:
        raise Refused(f"{op['op']} {op['model_id']}@{op.get('version')}")


def status_of(row: Json | None) -> str | None:
    return row and row["status"]


def claim_on(row: Json | None) -> str | None:
    return row.get("claim") if row and row["status"] == "DOWNLOADING" else None


def check_spelling(state: State, op: Json) -> None:
    for model_id in state.models:
        if fold(model_id) == fold(op["model_id"]):
            allow(model_id == op["model_id"], op)
    for version in state.rows(op["model_id"]):
        allow(version == op["version"] or fold(version) != fold(op["version"]), op)


def check_folder(state: State, op: Json) -> None:
    check_spelling(state, op)
    for model_id in state.models:
        for version, row in state.rows(model_id).items():
            folders = f"{op['model_id']}/{op['version']}", f"{model_id}/{version}"
            allow("path" in row or not nests(*folders), op)


def check_begin(state: State, op: Json, row: Json | None) -> None:
    allow(status_of(row) in (None, "FAILED", "DELETED", "DOWNLOADING"), op)
    allow(claim_on(row) is None, op)
    check_folder(state, op)


def check_claim(state: State, op: Json, row: Json | None) -> None:
    allow(claim_on(row) == op["claim"], op)


def check_register(state: State, op: Json, row: Json | None) -> None:
    allow(status_of(row) in (None, "DELETED"), op)
    check_spelling(state, op)


def check_status(state: State, op: Json, row: Json | None) -> None:
    allow(row, op)
    allow(claim_on(row) is None and status_of(row) != "SWEEPING", op)
    allow(op["status"] != "AVAILABLE" or row.keys() & {"manifest", "path"}, op)


def check_remove(state: State, op: Json, row: Json | None) -> None:
    allow(row and status_of(row) not in ("DELETED", "SWEEPING"), op)
    allow(claim_on(row) is None, op)
    aliases = state.models[op["model_id"]]["aliases"].items()
    names = {alias for alias, version in aliases if version == op["version"]}
    allow(names <= set(op.get("expect", names)), op)


def check_sweep(state: State, op: Json, row: Json | None) -> None:
    allow(status_of(row) in (None, "FAILED", "DELETED", "SWEEPING"), op)
    check_sweeper(op, row)
    ended = (row or {}).get("ended", [])
    allow(op.get("expect", ended) == ended, op)
    if row is None:
        check_folder(state, op)


def check_sweeper(op: Json, row: Json | None) -> None:
    sweeper = row.get("sweeper") if row and row["status"] == "SWEEPING" else None
    allow(sweeper is None or sweeper in (op.get("sweeper"), op.get("over")), op)


def check_swept(state: State, op: Json, row: Json | None) -> None:
    allow(row, op)
    allow(status_of(row) == "SWEEPING", op)
    check_sweeper(op, row)


def check_alias(state: State, op: Json, row: Json | None) -> None:
    allow(status_of(row) == "AVAILABLE", op)
    named = state.alias(op["model_id"], op["alias"]) or ""
    allow(op.get("expect", named) == named, op)


def check_unalias(state: State, op: Json, row: Json | None) -> None:
    allow(state.alias(op["model_id"], op["alias"]), op)


CHECKS: dict[str, Any] = {
    "begin": check_begin,
    "add": check_claim,
    "abandon": check_claim,
    "register": check_register,
    "status": check_status,
    "remove": check_remove,
    "sweep": check_sweep,
    "swept": check_swept,
    "alias": check_alias,
    "unalias": check_unalias,
}


# Checkpoints, packs, signatures ----------------------------------------------------------


def checkpoint_text(state: State) -> bytes:
    first = canonical(without(state.document, "models"))[:-1] + b',"models":{\n'
    ids = sorted(state.models)
    lines = [canonical(model_id) + b":" + canonical(state.models[model_id]) for model_id in ids]
    return first + b",\n".join(lines) + b"\n" * bool(lines) + b"}}"


def unpack(pack: bytes) -> list[bytes]:
    return gzip.decompress(pack).split(b"\n")[:-1]


def is_signed(signature: Any, signed: bytes, trusted: set[str]) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not signature or signature["key"] not in trusted:
        return False
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature["key"]))
    try:
        key.verify(base64.b64decode(signature["value"]), signed)
    except InvalidSignature:
        return False
    return True


def is_commit_signed(raw: bytes, trusted: set[str]) -> bool:
    commit = parse(raw)
    signed = canonical(without(commit, "signature", "check"))
    return is_signed(commit.get("signature"), signed, trusted)


def is_checkpoint_signed(text: bytes, trusted: set[str]) -> bool:
    body, _, last = text.rpartition(b"\n}")
    signed = b"model-manager checkpoint " + sha256(body + b"\n}").encode()
    return is_signed(json.loads(b"{" + last.lstrip(b",")).get("signature"), signed, trusted)


# A store ---------------------------------------------------------------------------------


class Folder:
    """Objects as files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, key: str, data: bytes) -> bool:
        """Make an object; False, and nothing is changed, if there is one."""
        try:
            self._publish(key, data, os.link)
        except FileExistsError:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        self._publish(key, data, os.replace)

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def list(self, prefix: str) -> list[str]:
        found = (path for path in (self.root / prefix).rglob("*") if path.is_file())
        objects = (
            path for path in found if not path.name.startswith((".mm-staged-", ".mm-parts-"))
        )
        return sorted(path.relative_to(self.root).as_posix() for path in objects)

    def _publish(self, key: str, data: bytes, publish: Any) -> None:
        target = self.root / key
        staged = target.with_name(f".mm-staged-{uuid.uuid4().hex[:16]}")
        while True:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with staged.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                return publish(staged, target)
            except FileNotFoundError:  # somebody removed the folder while it was empty
                continue
            finally:
                staged.unlink(missing_ok=True)


# Reading ---------------------------------------------------------------------------------


class Reader:
    """The registry of a store. With `trusted` keys, what none of them signed is not believed."""

    def __init__(self, root: Path, *, trusted: set[str] | None = None) -> None:
        self.store = Folder(root)
        self.trusted = trusted
        self.state = State()

    def refresh(self) -> State:
        """The newest state. Raises Damaged and TooNew."""
        found = self.store.read(".mm/format.json")
        if found is not None and self._version_of(found) > 1:
            raise TooNew("format.json")
        if self.state.seq == 0:
            self.state = self._first()
        while self._read_next(self.state):
            pass
        return self.state

    def hint(self) -> Json | None:
        try:
            return parse(self.store.read(".mm/hint.json"), "seq", "key", "sha256", "size", "head")
        except Damaged:
            return None

    def manifest(self, row: Json) -> Json:
        """The file list of a version."""
        raw = self.store.read(f".mm/manifests/{row['manifest']}.json") or b""
        if sha256(raw) != row["manifest"]:
            raise Damaged(f"manifest {row['manifest']}")
        return json.loads(raw)

    def pile(self, model_id: str, alias: str) -> list[str]:
        """The versions that an alias has named, the newest last."""
        pile: list[str] = []
        for seq in range(1, self.state.seq + 1):
            for op in json.loads(self.store.read(log_key(seq)) or b"")["operations"]:
                named = op["op"], op["model_id"], fold(op.get("alias", ""))
                if named == ("alias", model_id, fold(alias)):
                    del pile[max(0, len(pile) - op.get("back", 0)) :]
                    pile += [op["version"]] * (pile[-1:] != [op["version"]])
        return pile

    def _version_of(self, raw: bytes) -> int:
        found = parse(raw, "format", "version", "id")
        if found["format"] != "model-manager":
            raise Damaged("format.json is of another program")
        return found["version"]

    def _first(self) -> State:
        """What checkpoint and pack lead to, or else the first commits."""
        if self.store.read(".mm/hint.json") is None:
            state = State()
            while state.seq < EVERY and self._read_next(state):
                pass
            if state.seq < EVERY:
                return state
        return self._from_hint() or self._from_listing()

    def _read_next(self, state: State) -> bool:
        """Take in the next commit; False at the end of the log."""
        seq = state.seq + 1
        raw = self._read_commit(seq)
        if raw is None:
            if not any(self.store.read(log_key(seq + more)) for more in range(1, GAP + 1)):
                return False
            raw = self._read_commit(seq)  # others may have made both in between
            if raw is None:
                raise Damaged(f"commit {seq} is lost")
        self._take(state, raw)
        return True

    def _read_commit(self, seq: int) -> bytes | None:
        raw = self.store.read(log_key(seq))
        while raw is not None and not check_of(raw):  # damaged on its way?
            before, raw = raw, self.store.read(log_key(seq))
            if raw == before:
                break
        return raw

    def _take(self, state: State, raw: bytes) -> None:
        if self.trusted is not None and not is_commit_signed(raw, self.trusted):
            raise Damaged(f"nobody who is trusted has signed commit {state.seq + 1}")
        state.follow(raw)

    def _from_hint(self) -> State | None:
        hint, before = self.hint(), None
        while hint and hint != before:
            if state := self._load(hint["key"], hint["sha256"], *self._packs_of(hint)):
                return self._checked(state)
            hint, before = self.hint(), hint  # a writer may have replaced what it named
        return None

    def _from_listing(self) -> State:
        packs = sorted(self.store.list(".mm/tail"), reverse=True)
        for key in reversed(self.store.list(".mm/snap")):
            if best := self._load(key, ""):
                chosen: list[Json] = []
                while longer := self._longer(key, chosen, best, packs):
                    chosen, best = longer
                return self._checked(best)
        return State()

    def _longer(
        self, key: str, chosen: list[Json], best: State, packs: list[str]
    ) -> tuple[list[Json], State] | None:
        """The packs that are `chosen`, and one more that follows them; None where none does."""
        for pack in packs:
            if pack.startswith(f".mm/tail/{best.seq + 1:012d}-"):
                tried = [*chosen, {"key": pack, "sha256": ""}]
                state = self._load(key, "", *tried)
                if state and state.seq > best.seq:
                    return tried, state
        return None

    def _packs_of(self, hint: Json) -> list[Json]:
        return [hint[name] for name in ("middle", "tail") if hint.get(name)]

    def _checked(self, state: State) -> State:
        if sha256(self.store.read(log_key(state.seq)) or b"") != state.head:
            raise Damaged(f"commit {state.seq} is not the one of the checkpoint, or of the pack")
        return state

    def _load(self, key: str, digest: str, *packs: Json) -> State | None:
        """The state that a checkpoint and packs lead to; None if one is gone or wrong."""
        try:
            text = gzip.decompress(self._named(key, digest))
            if self.trusted is not None and not is_checkpoint_signed(text, self.trusted):
                return None
            state = State(without(json.loads(text), "signature"))
            for pack in packs:
                for raw in unpack(self._named(pack["key"], pack["sha256"])):
                    self._take(state, raw)
        except (Damaged, ValueError, OSError, EOFError):
            return None
        return state

    def _named(self, key: str, digest: str) -> bytes:
        """An object whose bytes have the hash that it is named by."""
        data = self.store.read(key)
        digest = digest or key.rpartition("-")[2].partition(".")[0]
        if data is None or not sha256(data).startswith(digest):
            raise Damaged(key)
        return data


# Writing ---------------------------------------------------------------------------------


class Writer(Reader):
    """A reader who makes commits, too."""

    def commit(self, *operations: Json) -> State:
        """Do all of the operations, or none: Refused. Those without an id get one."""
        if self.store.read(".mm/format.json") is None:
            self._found()
        ops = [{"id": uuid.uuid4().hex, **op} for op in operations]
        while True:
            state = self.refresh()
            if state.has_done(ops):
                return state
            tried = copy.deepcopy(state)
            for place, op in enumerate(ops):
                tried.check(op)
                tried.apply(op, [state.seq + 1, place])
            commit = {"seq": state.seq + 1, "prev": state.head, "id": uuid.uuid4().hex}
            raw = seal({**commit, "writer": "second", "time": now(), "operations": ops})
            if self.store.create(log_key(state.seq + 1), raw):
                state.follow(raw)
                if state.seq % EVERY == 0 or len(raw) > LARGE_COMMIT:
                    self._save()
                return state
            time.sleep(random.uniform(0, 0.02))

    def pull(self, model_id: str, version: str, files: dict[str, bytes], **fields: Any) -> Json:
        """Make an AVAILABLE version of some files. Returns its row."""
        name = {"model_id": model_id, "version": version}
        claim, kind = uuid.uuid4().hex, {"model_type": "other", "date": now()}
        self.store.put(f".mm/claims/{claim}", canonical({"claim": claim, **name}))
        self.commit({"op": "begin", **name, **kind, "claim": claim, "timeout": 60})
        listed = [
            {"path": path, "size": len(data), "sha256": sha256(data)}
            | {"key": f"models/{model_id}/{version}/{path}"}
            for path, data in sorted(files.items())
        ]
        for file in listed:
            self.store.put(file["key"], files[file["path"]])
        manifest = canonical({**name, "model_type": "other", "files": listed})
        digest = sha256(manifest)
        self.store.create(f".mm/manifests/{digest}.json", manifest)
        facts = {"manifest": digest, "size_bytes": sum(file["size"] for file in listed)}
        state = self.commit({"op": "add", **name, **kind, **facts, **fields, "claim": claim})
        self.store.delete(f".mm/claims/{claim}")
        return state.rows(model_id)[version]

    def sweep(self, model_id: str, version: str) -> None:
        """Delete the files of a version that has failed or was removed, and forget it."""
        name = {"model_id": model_id, "version": version, "sweeper": uuid.uuid4().hex}
        row = self.commit({"op": "sweep", **name}).rows(model_id)[version]
        if "path" not in row:
            for key in self.store.list(f"models/{model_id}/{version}"):
                self.store.delete(key)
        if "manifest" in row:
            self.store.delete(f".mm/manifests/{row['manifest']}.json")
        self.commit({"op": "swept", **name})

    def _found(self) -> None:
        """Make sure that there is an exclusive create, and then `format.json`."""
        key = f".mm/probe/{uuid.uuid4().hex}"
        made = self.store.create(key, b"first"), self.store.create(key, b"second")
        if made != (True, False) or self.store.read(key) != b"first":
            raise Damaged("this store has no exclusive create")
        self.store.delete(key)
        found = {"format": "model-manager", "version": 1, "id": str(uuid.uuid4())}
        self.store.create(".mm/format.json", canonical(found))

    def _save(self) -> None:
        hint = self.hint()
        if hint is None or self._held_by(hint) < self.state.seq:
            if hint is None or not self._save_pack(hint):
                self._save_checkpoint()

    def _save_pack(self, hint: Json) -> bool:
        """Write a longer pack and its hint; False where it is time for a checkpoint."""
        since, packs = self._held_by(hint), self._packs_of(hint)
        commits = [self.store.read(log_key(n)) or b"" for n in range(since + 1, self.state.seq + 1)]
        added = sum(len(commit) + 1 for commit in commits)
        limit = min(LARGE_PACK, max(SMALL_PACK, hint["size"]))
        if sum(pack["size"] for pack in packs) + added > limit:
            return False
        if json.loads(commits[0])["prev"] != hint["head"]:
            return False
        tail = [hint["tail"]] if hint.get("tail") else []
        name = "middle" if sum(pack["size"] for pack in tail) + added > TAIL_PACK else "tail"
        replaced = packs if name == "middle" else tail
        try:
            packed = b"".join(self._named(pack["key"], pack["sha256"]) for pack in replaced)
        except Damaged:
            return False
        packed += gzip.compress(b"".join(commit + b"\n" for commit in commits), mtime=0)
        start = hint if name == "middle" else hint.get("middle", hint)
        span = f"{start['seq'] + 1:012d}-{self.state.seq:012d}"
        key = f".mm/tail/{span}-{sha256(packed)[:12]}.jsonl.gz"
        self.store.put(key, packed)
        size = sum(pack["size"] for pack in replaced) + added
        longer = {"seq": self.state.seq, "key": key, "sha256": sha256(packed), "size": size}
        new = {**without(without(hint, "former"), "tail"), name: longer, "head": self.state.head}
        former = [pack["key"] for pack in replaced]
        self.store.put(".mm/hint.json", canonical({**new, "former": former} if former else new))
        gone = hint.get("former", [])
        for key in [gone] if isinstance(gone, str) else gone:
            if key not in former:
                self.store.delete(key)
        return True

    def _save_checkpoint(self) -> None:
        packed = gzip.compress(checkpoint_text(self.state), mtime=0)
        key = f".mm/snap/{self.state.seq:012d}-{sha256(packed)[:12]}.json.gz"
        self.store.put(key, packed)
        hint = {"seq": self.state.seq, "key": key, "sha256": sha256(packed), "size": len(packed)}
        self.store.put(".mm/hint.json", canonical({**hint, "head": self.state.head}))

    def _held_by(self, hint: Json) -> int:
        return [hint, *self._packs_of(hint)][-1]["seq"]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

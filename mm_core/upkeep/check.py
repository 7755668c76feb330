"""Is everything as the registry says? The log, what is derived from it, and every file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mm_core.collecting.folders import Registered
from mm_core.exceptions import IntegrityError
from mm_core.names import version_prefix
from mm_core.registry import ModelRegistry
from mm_core.registry.layout import (
    FORMAT_KEY,
    HINT_KEY,
    LOG_PREFIX,
    SIGNATURE_PREFIX,
    log_key,
    manifest_key,
)
from mm_core.registry.log import Log
from mm_core.registry.signing import Trust
from mm_core.registry.state import Record, Row, State, is_available
from mm_core.schemas import Manifest, StoredFile, sha256_hex
from mm_core.signatures.shelf import is_whole, manifest_of_key
from mm_core.sink import Sink
from mm_core.tally import Tally, Tell, say_nothing
from mm_core.upkeep.findings import CheckReport, Finding, Severity
from mm_core.upkeep.store import MANIFEST_PREFIX, Store, in_windows
from mm_core.upkeep.survey import NO_FORMAT, NO_HINT, Survey, survey
from mm_core.upkeep.unfinished import REPAIR_KEY, is_unfinished
from mm_core.upkeep.walk import Walk, walk

_MANIFEST = re.compile(re.escape(MANIFEST_PREFIX) + r"([0-9a-f]{64})\.json")

_REPAIR = "mm registry repair"
_VERIFY = "mm verify --repair"
_GC = "mm gc"
_ACCEPT = "mm registry accept"


def check(
    sink: Sink,
    *,
    deep: bool = False,
    timeout: float = 60.0,
    trust: Trust | None = None,
    tell: Tell = say_nothing,
) -> CheckReport:
    """Look at everything that the registry in `sink` is made of, and at every file it names.

    Presence and size by one listing; with `deep` every byte is read and hashed.
    Writes nothing, and raises for no damage: that is what findings are for. Others
    may be at work: what changes meanwhile is no finding. What nobody has signed whom
    `trust` believes is one. `tell` hears how much of the bytes is read.

    Raises `StorageError` for a registry of a newer format, and errors of the store.
    """
    store = Store(sink, timeout=timeout)
    found = survey(store, trust)
    way = walk(store, found)
    files = _Files(store, way.state, deep=deep, tell=tell)
    findings = [*_of_registry(found, way), *files.findings()]
    if is_unfinished(sink):
        why = "a repair is under way or was interrupted; nothing is collected until it is done"
        findings.append(_finding("repair_unfinished", Severity.WARNING, REPAIR_KEY, why, _REPAIR))
    try:
        after = Log(sink, timeout=timeout, writer="", trust=trust).refresh()
    except IntegrityError as error:
        if not any(finding.severity is Severity.ERROR for finding in findings):
            findings.append(_refused(error))
    else:
        findings = [finding for finding in findings if _is_still_so(finding, way.state, after)]
    return CheckReport(
        commits=len(found.links),
        checkpoints=len(found.checkpoints) + len(found.damaged_checkpoints),
        versions=files.versions,
        files=files.files,
        deep=deep,
        findings=tuple(sorted(findings, key=lambda f: (f.key, f.code))),
    )


def as_remembered(report: CheckReport, registry: ModelRegistry) -> CheckReport:
    """`report`, and a finding where `registry` remembers commits that are not there any more.

    That is another's word: the log may be whole, and an older one.
    """
    if not report.ok:
        return report
    try:
        registry.refresh()
    except IntegrityError as error:
        found = _finding("not_as_seen", Severity.ERROR, LOG_PREFIX, str(error), _ACCEPT)
        return replace(report, findings=(*report.findings, found))
    return report


# -- the registry's own objects ---------------------------------------------------------


def _of_registry(found: Survey, way: Walk) -> Iterator[Finding]:
    missing = found.format_problem == NO_FORMAT
    if found.format_problem and not (missing and found.is_empty):
        code = "format_missing" if missing else "format_damaged"
        yield _finding(code, Severity.ERROR, FORMAT_KEY, found.format_problem, _REPAIR)
    yield from _of_log(found, way)
    yield from _of_checkpoints(found, way)
    for key in found.foreign:
        yield _finding("foreign", Severity.NOTE, key, "it is no commit", None)


def _of_log(found: Survey, way: Walk) -> Iterator[Finding]:
    stuck = {seq for seq in way.stuck if seq - 1 not in found.bad}
    for seq, named in sorted(found.bad.items()):
        link = found.links.get(seq)
        if link is not None and link.stands_in:
            yield _replaced(seq)
            continue
        why = "it is missing" if link is None else "it cannot be read"
        if link is not None and link.prev is not None:
            why = "it is not the commit that the one after it names" if named else "it is damaged"
        code = "log_gap" if link is None else "log_damaged"
        lost = " and no checkpoint holds what it did" if seq in way.skipped else ""
        yield _finding(code, Severity.ERROR, log_key(seq), f"commit {seq}: {why}{lost}", _REPAIR)
    for seq in sorted(stuck - found.bad.keys()):
        why = f"commit {seq} does not follow the one before it, and no checkpoint leads beyond it"
        yield _finding("log_broken", Severity.ERROR, log_key(seq), why, _REPAIR)
    for seq, link in sorted(found.links.items()):
        if link.stands_in and not link.fence and seq not in found.bad:
            yield _replaced(seq)


def _replaced(seq: int) -> Finding:
    why = f"commit {seq} was lost, and a repair put an empty one in its place"
    return _finding("log_replaced", Severity.NOTE, log_key(seq), why, None)


def _of_checkpoints(found: Survey, way: Walk) -> Iterator[Finding]:
    for key in found.damaged_checkpoints:
        why = "its bytes are not those that its name says"
        yield _finding("checkpoint_damaged", Severity.WARNING, key, why, _REPAIR)
    for key in way.wrong:
        why = "it does not say what the log says"
        yield _finding("checkpoint_wrong", Severity.ERROR, key, why, _REPAIR)
    for key in found.damaged_packs:
        why = "its bytes are not those that its name says"
        yield _finding("pack_damaged", Severity.WARNING, key, why, _REPAIR)
    if found.needs_hint:
        code = "hint_missing" if found.hint_problem == NO_HINT else "hint_damaged"
        yield _finding(code, Severity.WARNING, HINT_KEY, str(found.hint_problem), _REPAIR)


# -- manifests and files ----------------------------------------------------------------


@dataclass(slots=True)
class _Files:
    """The files of all AVAILABLE versions against what stands."""

    store: Store
    state: State
    deep: bool
    tell: Tell
    versions: int = 0
    files: int = 0
    _manifests: dict[str, Manifest] = field(default_factory=dict)

    def findings(self) -> Iterator[Finding]:
        rows = list(self.state.rows())
        kept = [(r, row) for r, row in rows if is_available(row) and row.get("manifest")]
        self.versions = len(kept)
        wanted: dict[str, tuple[Record, Row, StoredFile]] = {}
        for (record, row), manifest in in_windows(self._manifest, kept):
            if isinstance(manifest, Finding):
                yield manifest
                continue
            wanted |= {file.key: (record, row, file) for file in manifest.files}
        self.files = len(wanted)
        yield from self._compare(wanted, self._belongs(rows))
        yield from self._unnamed(rows)
        yield from self._of_signatures(rows)

    def _manifest(self, item: tuple[Record, Row]) -> Manifest | Finding:
        record, row = item
        key = manifest_key(row["manifest"])
        about = {"model_id": record.model_id, "version": row["version"]}
        data = self.store.read(key)
        if data is None:
            why = "the list of the version's files is missing"
            return _finding("manifest_missing", Severity.ERROR, key, why, _REPAIR, **about)
        try:
            if sha256_hex(data) != row["manifest"]:
                raise IntegrityError("its bytes are not those that its name says")
            manifest = Manifest.from_bytes(data)
        except IntegrityError as error:
            why = f"the list of the version's files is damaged: {error}"
            return _finding("manifest_damaged", Severity.ERROR, key, why, _REPAIR, **about)
        if (manifest.model_id, manifest.version) != (record.model_id, row["version"]):
            why = f"it is that of {manifest.model_id}@{manifest.version}"
            return _finding("manifest_wrong", Severity.ERROR, key, why, _REPAIR, **about)
        return manifest

    def _compare(
        self,
        wanted: Mapping[str, tuple[Record, Row, StoredFile]],
        belongs: Callable[[str], bool],
    ) -> Iterator[Finding]:
        standing: list[tuple[Record, Row, StoredFile]] = []
        missing = dict(wanted)
        for stored in self.store.persist(lambda: list(self.store.sink.list("models/"))):
            item = missing.pop(stored.key, None)
            if item is None:
                if not belongs(stored.key):
                    why = f"no version names it ({stored.size} bytes)"
                    yield _finding("orphan", Severity.NOTE, stored.key, why, _GC)
            elif stored.size != item[2].size:
                yield _of_file("object_size", item, f"its size is {stored.size} bytes, not")
            else:
                standing.append(item)
        for item in missing.values():
            size = self._size_elsewhere(item[2].key)
            if size is None:
                yield _of_file("object_missing", item, "it is missing; it has")
            elif size != item[2].size:
                yield _of_file("object_size", item, f"its size is {size} bytes, not")
            else:
                standing.append(item)
        yield from self._hashed(standing)

    def _belongs(self, rows: Sequence[tuple[Record, Row]]) -> Callable[[str], bool]:
        """Whether a key that no manifest names is of a version on its way or out, or registered."""
        prefixes = _prefixes(rows)
        registered = Registered(self.store.sink.root)
        registered.look(self.state)
        return lambda key: _is_within(key, prefixes) or registered.holds(key)

    def _size_elsewhere(self, key: str) -> int | None:
        """The size of a file that was adopted where it stands, which the listing does not have."""
        if key.startswith("models/"):
            return None
        stored = self.store.persist(lambda: self.store.sink.stat(key))
        return stored.size if stored else None

    def _hashed(self, standing: list[tuple[Record, Row, StoredFile]]) -> Iterator[Finding]:
        if not self.deep:
            return
        tally = Tally(self.tell, "read", sum(item[2].size for item in standing))
        hashes = in_windows(lambda item: self.store.sha256(item[2].key, tally), standing)
        for item, sha256 in hashes:
            if sha256 != item[2].sha256:
                why = f"its sha256 is {sha256}, not {item[2].sha256}; it has"
                yield _of_file("object_hash", item, why)

    def _unnamed(self, rows: Iterable[tuple[Record, Row]]) -> Iterator[Finding]:
        named = {row.get("manifest") for _, row in rows}
        for stored in self.store.list(MANIFEST_PREFIX):
            name = _MANIFEST.fullmatch(stored.key)
            if name is None or name[1] not in named:
                why = "no version names this manifest now"
                yield _finding("orphan", Severity.NOTE, stored.key, why, None)

    def _of_signatures(self, rows: Iterable[tuple[Record, Row]]) -> Iterator[Finding]:
        named = {row.get("manifest"): (record, row) for record, row in rows}
        keys = [stored.key for stored in self.store.list(SIGNATURE_PREFIX)]
        for key, data in in_windows(self.store.read, keys):
            owner = named.get(manifest_of_key(key) or "")
            if owner is None:
                yield _finding("orphan", Severity.NOTE, key, "it signs no version now", _GC)
            elif data is not None and not is_whole(key, data):
                record, row = owner
                about = {"model_id": record.model_id, "version": row["version"]}
                why = "a signature is damaged: its bytes are not those that its name says"
                yield _finding("signature_damaged", Severity.WARNING, key, why, _REPAIR, **about)


def _prefixes(rows: Iterable[tuple[Record, Row]]) -> set[str]:
    """The folders whose files are somebody's: versions on their way, removed, or failed."""
    return {
        version_prefix(record.model_id, row["version"])
        for record, row in rows
        if "path" not in row and not is_available(row)
    }


def _is_within(key: str, prefixes: set[str]) -> bool:
    parts = key.split("/")
    return any("/".join(parts[:depth]) + "/" in prefixes for depth in range(3, len(parts)))


def _of_file(code: str, item: tuple[Record, Row, StoredFile], why: str) -> Finding:
    record, row, file = item
    return _finding(
        code,
        Severity.ERROR,
        file.key,
        f"{why} {file.size} bytes",
        _VERIFY,
        model_id=record.model_id,
        version=row["version"],
    )


# -- what changed meanwhile -------------------------------------------------------------


def _is_still_so(finding: Finding, before: State, after: State) -> bool:
    """Whether nobody has changed the version of a finding since `before`."""
    if finding.model_id is None or finding.version is None:
        return True
    names = finding.model_id, finding.version
    return before.row(*names) == after.row(*names)


def _refused(error: IntegrityError) -> Finding:
    """What a reader says of a registry that is whole: it trusts other keys, or saw another."""
    return _finding("untrusted", Severity.ERROR, LOG_PREFIX, str(error), _ACCEPT)


def _finding(
    code: str, severity: Severity, key: str, message: str, remedy: str | None, **about: str
) -> Finding:
    return Finding(code=code, severity=severity, key=key, message=message, remedy=remedy, **about)

"""The suites for sinks can fail: each test of them catches a sink that breaks just its promise."""

from __future__ import annotations

import time
import types
import uuid
from datetime import datetime, timedelta, timezone
from urllib.parse import unquote

import pytest
from wrong import CAUGHT, methods_of, run_test

from mm_core import (
    AlreadyExistsError,
    ModelRegistry,
    NotFoundError,
    StorageError,
    StoredObject,
    TransientError,
)
from mm_core.sink import read_if_exists
from mm_core.testing import RegistryTests, SinkTests
from mm_plugins.sinks.memory import MemorySink, MemoryUpload

pytestmark = pytest.mark.unit

SECRET = "hunter2hunter2"
WRONG: list[tuple[type[MemorySink], str, dict]] = []


def caught_by(*tests: str, **parameters):
    """Note a wrong sink with the tests that catch it, and the parameters of those."""

    def note(sink):
        WRONG.extend((sink, test, parameters) for test in tests)
        return sink

    return note


def now() -> datetime:
    return datetime.now(timezone.utc)


# -- writing ---------------------------------------------------------------------------


@caught_by("test_a_written_file_is_read_back_byte_for_byte", "test_one_huge_buffer_is_stored")
class LosesTheRest(MemorySink):
    def write(self, key, chunks, *, size):
        data = b"".join(bytes(chunk) for chunk in chunks)
        whole = len(data) // (8 << 20) * (8 << 20)
        self.put(key, data[:whole] if whole else data)


@caught_by("test_a_file_of_unknown_size_is_stored")
class NeedsASize(MemorySink):
    def write(self, key, chunks, *, size):
        super().write(key, [b"".join(map(bytes, chunks))[: size or 0]], size=size)


@caught_by("test_a_reused_buffer_is_stored_as_it_was_when_it_was_given")
class KeepsBuffers(MemorySink):
    def write(self, key, chunks, *, size):
        self.put(key, b"".join(list(chunks)))


@caught_by(
    "test_a_write_whose_chunks_raise_changes_nothing", passed=9 << 20, before=None, error=OSError
)
class CommitsWhatItHas(MemorySink):
    def write(self, key, chunks, *, size):
        data = bytearray()
        try:
            for chunk in chunks:
                data += chunk
        finally:
            self.put(key, bytes(data))


@caught_by(
    "test_a_write_whose_chunks_raise_changes_nothing", passed=0, before=b"old", error=ValueError
)
class SwallowsErrorsOfChunks(MemorySink):
    def write(self, key, chunks, *, size):
        try:
            super().write(key, chunks, size=size)
        except ValueError:
            return


@caught_by(
    "test_a_write_whose_chunks_raise_changes_nothing", passed=0, before=b"old", error=ValueError
)
class ClearsFirst(MemorySink):
    def write(self, key, chunks, *, size):
        self.delete([key])
        super().write(key, chunks, size=size)


@caught_by("test_a_write_of_another_size_than_promised_changes_nothing")
class TrustsTheSize(MemorySink):
    def write(self, key, chunks, *, size):
        super().write(key, chunks, size=None)


@caught_by("test_an_unfinished_write_is_never_listed")
class ShowsWhatItHas(MemorySink):
    def write(self, key, chunks, *, size):
        data = b""
        for chunk in chunks:
            data += chunk
            self.put(key, data)


@caught_by("test_a_write_replaces_what_was_there")
class LosesOverwrites(MemorySink):
    def write(self, key, chunks, *, size):
        if self.stat(key) is None:
            super().write(key, chunks, size=size)


@caught_by("test_many_threads_share_one_instance")
class HasOneBuffer(MemorySink):
    def write(self, key, chunks, *, size):
        self.held = bytearray()
        for chunk in chunks:
            self.held += chunk
            time.sleep(0.001)
        self.put(key, bytes(self.held))


@caught_by("test_content_is_never_interpreted")
class CutsAtBoundaries(MemorySink):
    def put(self, key, data):
        super().put(key, data.partition(b"\r\n--==0==")[0])


@caught_by("test_a_write_that_failed_leaves_nothing_in_the_store")
class HidesItsLitter(MemorySink):
    def write(self, key, chunks, *, size):
        try:
            super().write(key, chunks, size=size)
        except OSError:
            self.put(".litter", b"what came")
            raise

    def list(self, prefix):
        return (found for found in super().list(prefix) if found.key != ".litter")


# -- create and put --------------------------------------------------------------------


@caught_by("test_of_many_creators_exactly_one_wins")
class LooksThenCreates(MemorySink):
    def create(self, key, data):
        if self.stat(key) is not None:
            raise AlreadyExistsError(key)
        time.sleep(0.05)  # so long that whoever begins at the same time has looked, too
        self.put(key, data)


@caught_by(
    "test_create_stores_what_was_not_there", "test_create_is_refused_where_a_file_was_written"
)
class CreatesOverOthers(MemorySink):
    def create(self, key, data):
        self.put(key, data)


@caught_by("test_put_replaces")
class PutsInto(MemorySink):
    def put(self, key, data):
        super().put(key, data + (read_if_exists(self, key) or b"")[len(data) :])


@caught_by("test_a_reader_sees_one_put_or_the_other")
class PutsInHalves(MemorySink):
    def put(self, key, data):
        super().put(key, data[: len(data) // 2])
        time.sleep(0.001)
        super().put(key, data)


# -- read and stat ---------------------------------------------------------------------


@caught_by("test_ranges_are_half_open_and_end_with_the_object", "test_ranges_of_a_large_file")
class IncludesTheEnd(MemorySink):
    def read(self, key, start=0, end=None):
        return super().read(key, start, None if end is None else end + 1)


@caught_by("test_a_reader_may_stop_early")
class LeaksReaders(MemorySink):
    left = 3

    def read(self, key, start=0, end=None):
        if not self.left:
            raise StorageError("no connection is left")
        self.left -= 1
        yield from super().read(key, start, end)
        self.left += 1


@caught_by("test_what_is_not_there_is_not_found")
class IsEmptyWhereNothingIs(MemorySink):
    def read(self, key, start=0, end=None):
        if self.stat(key) is not None:
            yield from super().read(key, start, end)


@caught_by("test_stat_and_list_tell_size_and_time_in_utc")
class TellsLocalTime(MemorySink):
    def stat(self, key):
        found = super().stat(key)
        zone = timezone(timedelta(hours=2))
        modified = found and found.modified.astimezone(zone)
        return found and StoredObject(key=key, size=found.size, modified=modified)


@caught_by("test_errors_of_the_store_are_translated", broken=KeyError("no such row"))
class PassesForeignErrors(MemorySink):
    pass


@caught_by("test_errors_of_the_store_are_translated", broken=TransientError(f"{SECRET} was wrong"))
class TellsSecrets(MemorySink):
    pass


# -- list ------------------------------------------------------------------------------


@caught_by("test_a_listing_is_recursive_and_ordered_by_code_point")
class ListsOneLevel(MemorySink):
    def list(self, prefix):
        return (f for f in super().list(prefix) if f.key.count("/") <= prefix.count("/") + 1)


@caught_by("test_a_listing_is_recursive_and_ordered_by_code_point")
class OrdersByFolder(MemorySink):
    def list(self, prefix):
        return iter(sorted(super().list(prefix), key=lambda found: found.key.split("/")))


@caught_by("test_a_prefix_is_a_plain_string")
class TakesPrefixesForFolders(MemorySink):
    def list(self, prefix):
        folder = prefix and prefix.rstrip("/") + "/"
        return (f for f in super().list(prefix) if f.key.startswith(folder) or f.key == prefix)


@caught_by("test_nothing_is_cached")
class CachesListings(MemorySink):
    def list(self, prefix):
        cache = self.__dict__.setdefault("seen", {})
        return iter(cache.setdefault(prefix, list(super().list(prefix))))


@caught_by("test_nothing_is_cached")
class CachesStats(MemorySink):
    def stat(self, key):
        cache = self.__dict__.setdefault("seen", {})
        return cache.setdefault(key, super().stat(key))


@caught_by("test_many_objects_are_listed_and_deleted")
class ListsOnePage(MemorySink):
    def list(self, prefix):
        return (found for found, _ in zip(super().list(prefix), range(20), strict=False))


# -- copy and delete -------------------------------------------------------------------


@caught_by("test_a_copy_is_a_file_of_its_own")
class CopiesByName(MemorySink):
    def copy(self, source_key, key):
        super().copy(source_key, key)
        self.__dict__.setdefault("links", {})[source_key] = key

    def put(self, key, data):
        super().put(key, data)
        if (link := self.__dict__.get("links", {}).get(key)) is not None:
            super().put(link, data)


@caught_by("test_copying_a_file_onto_itself_changes_nothing")
class CopiesOverNothing(MemorySink):
    def copy(self, source_key, key):
        data = read_if_exists(self, source_key)
        self.delete([key])
        if data is None or read_if_exists(self, source_key) is None:
            raise NotFoundError(source_key)
        self.put(key, data)


@caught_by("test_a_copy_of_nothing_leaves_the_target")
class CopiesNothing(MemorySink):
    def copy(self, source_key, key):
        self.put(key, read_if_exists(self, source_key) or b"")


@caught_by("test_a_neighbours_file_is_copied_by_the_store")
class OnlySaysThatItCopied(MemorySink):
    def copy_from(self, other, source_key, key):
        return True


@caught_by("test_a_strangers_file_is_not_copied_by_the_store")
class CopiesFromAnybody(MemorySink):
    def copies_from(self, other):
        return True


@caught_by("test_deleting_nothing_is_fine")
class MissesWhatItDeletes(MemorySink):
    def delete(self, keys):
        for key in keys:
            if self.stat(key) is None:
                raise NotFoundError(key)
            super().delete([key])


@caught_by("test_deleting_nothing_is_fine")
class DeletesByPrefix(MemorySink):
    def delete(self, keys):
        for key in keys:
            super().delete([found.key for found in self.list(key)])


# -- names -----------------------------------------------------------------------------


@caught_by("test_odd_keys_are_kept_as_they_are")
class DecodesKeys(MemorySink):
    def put(self, key, data):
        super().put(unquote(key), data)


@caught_by("test_a_key_never_leaves_the_root")
class NormalisesKeys(MemorySink):
    def put(self, key, data):
        super().put(key.replace("../", "").strip("/") or "root", data)


@caught_by("test_a_prefix_never_leaves_the_root")
class ListsAnywhere(MemorySink):
    def list(self, prefix):
        return iter(()) if ".." in prefix or prefix.startswith("/") else super().list(prefix)


@caught_by("test_keys_that_look_alike_are_two")
class FoldsCase(MemorySink):
    def put(self, key, data):
        super().put(key.casefold(), data)

    def read(self, key, start=0, end=None):
        return super().read(key.casefold(), start, end)


@caught_by("test_keys_that_look_alike_are_two")
class SaysThatItFolds(MemorySink):
    case_blind = True


@caught_by("test_plain_settings_do_where_the_sink_says_so")
class CallsItsSettings(MemorySink):
    plain_config = True

    def __init__(self, config):
        super().__init__(config)
        try:
            config.model_dump()
        except AttributeError:
            raise StorageError("these are no settings") from None


@caught_by("test_root_and_url_name_the_place")
class NamesKeysAlone(MemorySink):
    def url(self, key):
        super().url(key)
        return f"/{key}"


# -- uploads ---------------------------------------------------------------------------


@caught_by("test_a_small_file_needs_no_upload")
class BeginsSmallFiles(MemorySink):
    def begin_upload(self, key, *, size, identity):
        return super().begin_upload(key, size=max(size, 5 << 20), identity=identity)


class Changed(MemorySink):
    """Its uploads are of a class of their own."""

    upload: type[MemoryUpload]

    def begin_upload(self, key, *, size, identity):
        made = super().begin_upload(key, size=size, identity=identity)
        if made is not None:
            made.__class__ = self.upload
        return made


@caught_by("test_parts_in_any_order_make_the_file")
class JoinsAsTheyCame(Changed):
    class upload(MemoryUpload):
        def commit(self):
            data = b"".join(self._parts.values())
            with self._store.lock:
                self._store.objects[self._key] = (data, now())
                del self._store.kept[self._key]


@caught_by("test_many_threads_write_parts")
class NotesOnePart(Changed):
    class upload(MemoryUpload):
        def write_part(self, number, data):
            self.number = number
            time.sleep(0.001)
            super().write_part(self.number, data)


@caught_by("test_an_upload_replaces_what_stood_there")
class UploadsClearFirst(MemorySink):
    def begin_upload(self, key, *, size, identity):
        self.delete([key])
        return super().begin_upload(key, size=size, identity=identity)


@caught_by("test_what_was_kept_is_taken_up_by_another_process")
class ForgetsWhatItKept(Changed):
    class upload(MemoryUpload):
        def keep(self):
            self.discard()


@caught_by("test_another_process_may_write_parts")
class BeginsInsteadOfJoining(MemorySink):
    def join_upload(self, key, *, size, id):
        return self.begin_upload(key, size=size, identity=None)


@caught_by("test_another_process_may_write_parts")
class JoinsWhatHasEnded(MemorySink):
    def join_upload(self, key, *, size, id):
        return super().begin_upload(key, size=size, identity="sha256:aa")


@caught_by("test_another_size_or_no_identity_starts_anew", "test_another_identity_starts_anew")
class TakesUpAnything(MemorySink):
    def begin_upload(self, key, *, size, identity):
        return super().begin_upload(key, size=size, identity="same")


@caught_by("test_what_was_discarded_is_gone")
class DiscardsNothing(Changed):
    class upload(MemoryUpload):
        def discard(self):
            pass


@caught_by("test_unfinished_uploads_are_listed_and_discarded")
class HidesUnfinished(MemorySink):
    def unfinished(self, prefix):
        return iter(())


@caught_by("test_an_upload_never_leaves_the_root")
class UploadsAnywhere(MemorySink):
    def begin_upload(self, key, *, size, identity):
        return super().begin_upload(key.strip("./") or "x", size=size, identity=identity)


# -- the tests -------------------------------------------------------------------------


class Suite(SinkTests):
    """With large files that just go in four parts."""

    large = (16 << 20) + 12_345


def unreachable(kind: type[MemorySink], error: BaseException) -> MemorySink:
    """A sink whose store fails with `error`, whatever is asked of it."""

    class Failing:
        def __enter__(self):
            raise error

        def __exit__(self, *_):
            return None

    sink = kind(kind.Config(root=f"memory://{uuid.uuid4().hex}"))
    sink._store = types.SimpleNamespace(lock=Failing(), objects={}, kept={})
    return sink


def fixtures(kind: type[MemorySink], *, broken: BaseException | None = None, **given) -> dict:
    sink, other = (kind(kind.Config(root=f"memory://{name}")) for name in [uuid.uuid4().hex] * 2)
    neighbour = kind(kind.Config(root=f"memory://{uuid.uuid4().hex}"))
    return {
        "sink": sink,
        "other": other,
        "resumable": sink,
        "neighbour": neighbour,
        "everything": lambda: [*sink._store.objects, *sink._store.kept],
        "unreachable": unreachable(kind, broken or TransientError("the line was cut")),
        "secrets": [SECRET],
        **given,
    }


@pytest.mark.parametrize(
    ("wrong", "test", "given"), WRONG, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_sink_is_caught(wrong, test, given):
    """Each is caught by the test of the promise that it breaks, as its author would see it."""
    foreign = (KeyError,) if wrong is PassesForeignErrors else ()
    with pytest.raises((*CAUGHT, *foreign)):
        run_test(Suite, test, fixtures(wrong, **given))


@pytest.mark.parametrize("test", sorted(methods_of(SinkTests)))
def test_the_right_sink_passes_what_the_wrong_ones_do_not(test):
    """It is the sink that makes the difference: the same calls are fine with the right one."""
    given = next(parameters for _, caught, parameters in WRONG if caught == test)
    if test == "test_plain_settings_do_where_the_sink_says_so":
        with pytest.raises(pytest.skip.Exception, match="always given a validated Config"):
            run_test(Suite, test, fixtures(MemorySink))
        return
    run_test(Suite, test, fixtures(MemorySink, **{k: v for k, v in given.items() if k != "broken"}))


def test_every_test_of_the_suite_catches_something():
    """There is no test in it that cannot fail."""
    assert {test for _, test, _ in WRONG} == methods_of(SinkTests)


# -- the registry's suite --------------------------------------------------------------


class MissesWhatItOnceMissed(MemorySink):
    def read(self, key, start=0, end=None):
        missed = self.__dict__.setdefault("missed", set())
        if key in missed or self.stat(key) is None:
            missed.add(key)
            raise NotFoundError(key)
        return super().read(key, start, end)


class DeletesNothing(MemorySink):
    def delete(self, keys):
        pass


class ListsNothing(MemorySink):
    def list(self, prefix):
        return iter(())


@pytest.mark.parametrize(
    ("wrong", "test"),
    [
        (CreatesOverOthers, "test_the_store_has_an_exclusive_create"),
        (LooksThenCreates, "test_many_writers_lose_nothing"),
        (LooksThenCreates, "test_of_many_beginners_one_has_the_claim"),
        (MissesWhatItOnceMissed, "test_a_version_is_offered_only_when_it_is_complete"),
        (ListsNothing, "test_a_new_reader_sees_what_a_long_log_says"),
        (DeletesNothing, "test_closed_claims_leave_nothing_behind"),
    ],
)
def test_a_store_that_is_no_place_for_a_registry_is_caught(wrong, test):
    """By the suite for registries, too, and by the test of what would go wrong."""
    sink = fixtures(wrong)["sink"]
    given = {"sink": sink} | {
        name: ModelRegistry(sink, claim_timeout=5, commit_timeout=5)
        for name in ("registry", "other")
    }
    with pytest.raises(CAUGHT):
        run_test(RegistryTests, test, given)

"""Copies and adoption between real stores: who moves the bytes, what arrives, what it costs."""

from __future__ import annotations

import contextlib
import threading
import uuid

import pytest

from mm_core import AuthError, CancelledError, ModelManager, TransientError, load_settings
from mm_core.copies import Outcome
from mm_core.sink import read_bytes
from mm_core.testing.material import noise, sha256
from mm_core.testing.proxy import FaultProxy
from mm_plugins.sinks import s3 as s3_module
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration

MIB = 1 << 20
FILES = {"config.json": b"{}", "sub/model.bin": noise(MIB + 1), "empty": b""}


def make(path, files=FILES):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def manager(tmp_path):
    settings = load_settings(overrides={"defaults": {"retries": 1}, "policies": {"default": {}}})
    with ModelManager(settings, backend=str(tmp_path / "unused")) as made:
        yield made


@pytest.fixture
def another_bucket(s3_server, s3):
    """A second bucket on the same server."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(name)
    return f"s3://{name}"


@pytest.fixture
def another_gcs(gcs_server, gcs):
    name = f"test-{uuid.uuid4().hex[:12]}"
    with contextlib.suppress(FileExistsError):
        gcs_server.make_bucket(name)
    return f"gs://{name}/dr"


def check_equal(manager, source, target):
    """Both hold the same versions with the same facts, aliases and bytes."""
    ours, theirs = manager.registry(source), manager.registry(target)
    assert theirs.aliases() == ours.aliases()
    for entry, there in zip(ours.list_models(), theirs.list_models(), strict=True):
        for name in ("model_id", "version", "model_type", "size_bytes", "source", "aliases"):
            assert getattr(there, name) == getattr(entry, name)
        mine, copied = ours.manifest(entry), theirs.manifest(there)
        assert {f.path: f.sha256 for f in copied.files} == {f.path: f.sha256 for f in mine.files}
        facts = dict(copied.facts)
        assert facts.pop("replicated_from")["registry"] == ours.id
        assert facts == mine.facts
    assert manager.verify(backend=target).ok


def gets_of_models(server, bucket):
    return [r for r in server.requests if r[0] == "GET" and bucket in r[1] and "/models/" in r[1]]


@pytest.mark.parametrize(
    ("source", "target", "by_store"),
    [
        ("local", "s3", False),
        ("s3", "another_bucket", True),
        ("s3", "gcs", False),
        ("gcs", "another_gcs", True),
        ("gcs", "local", False),
    ],
)
def test_a_registry_is_copied_between_stores(manager, tmp_path, request, source, target, by_store):
    """With facts and aliases; the store moves the bytes where it holds both; twice costs nothing."""
    source, target = request.getfixturevalue(source), request.getfixturevalue(target)
    manager.push(make(tmp_path / "m"), "org/m", to=source, aliases=["prod", "stable"])
    manager.push(make(tmp_path / "n", {"f": b"n"}), "org/n", version="1", to=source)
    copies = manager.replicate(source=source, to=target, with_aliases=True)
    assert not copies.failed
    size = sum(map(len, FILES.values())) + 1
    moved = [
        sum(v.copied_bytes for v in copies.versions),
        sum(v.fetched_bytes for v in copies.versions),
    ]
    assert moved == ([size, 0] if by_store else [0, size])
    check_equal(manager, source, target)
    again = manager.replicate(source=source, to=target, with_aliases=True)
    assert (again.count(Outcome.PRESENT), again.aliases) == (2, ())


def test_no_byte_of_a_model_is_read_where_s3_copies(
    manager, tmp_path, s3_server, s3, another_bucket
):
    """Neither from the source nor back from the target, by one request for each file.

    Where no policy wants to look at it, that is: those that do are asked about copies, too.
    """
    manager.push(make(tmp_path / "m"), "org/m", to=s3)
    s3_server.requests.clear()
    assert not manager.copy("org/m", source=s3, to=another_bucket).failed
    buckets = s3.split("/")[2], another_bucket.split("/")[2]
    assert not [
        gets_of_models(s3_server, bucket) for bucket in buckets if gets_of_models(s3_server, bucket)
    ]
    puts = [r for r in s3_server.requests if r[0] == "PUT" and "/models/" in r[1]]
    assert len(puts) == len(FILES)


def test_large_objects_are_copied_in_parts(
    manager, tmp_path, s3_server, s3, another_bucket, monkeypatch
):
    """Above the limit of one request; still no byte is read."""
    monkeypatch.setattr(s3_module, "_COPY_LIMIT", 6 * MIB)
    monkeypatch.setattr(s3_module, "_COPY_PART", 5 * MIB)
    large = FILES | {"sub/model.bin": noise(9 * MIB)}
    manager.push(make(tmp_path / "m", large), "org/m", to=s3)
    s3_server.requests.clear()
    assert not manager.copy("org/m", source=s3, to=another_bucket).failed
    assert not gets_of_models(s3_server, s3.split("/")[2])
    puts = [r for r in s3_server.requests if r[0] == "PUT" and "/models/" in r[1]]
    assert len(puts) == len(FILES) + 1
    check_equal(manager, s3, another_bucket)


def test_without_rights_to_both_the_bytes_are_streamed(
    manager, tmp_path, s3, another_bucket, monkeypatch
):
    """A store that refuses to copy is no failure."""

    def refused(*_):
        raise AuthError("AccessDenied")

    manager.push(make(tmp_path / "m"), "org/m", to=s3)
    monkeypatch.setattr(S3Sink, "_copy", refused)
    (version,) = manager.copy("org/m", source=s3, to=another_bucket).versions
    assert version.fetched_bytes == sum(map(len, FILES.values()))
    check_equal(manager, s3, another_bucket)


def test_other_credentials_are_another_store(s3, another_bucket):
    """What one of them may do says nothing about the other; the region alone makes no difference."""

    def sink(**options):
        return S3Sink(S3Sink.Config(root=another_bucket, options=options))

    mine = S3Sink(S3Sink.Config(root=s3))
    assert mine.copies_from(sink())
    assert mine.copies_from(sink(region="eu-central-1"))
    for options in (
        {"profile": "other"},
        {"endpoint_url": "http://127.0.0.1:1"},
        {"key": "a", "secret": "b"},
        {"s3_additional_kwargs": {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "x"}},
    ):
        assert not mine.copies_from(sink(**options))


def test_an_interrupted_copy_goes_on_where_it_stopped(tmp_path, s3, local):
    """What was stored by then, whole files or parts of one, is not read again."""
    data = noise(40 * MIB)
    stop = threading.Event()

    def on_event(event):
        if event.kind == "progress" and event.done > 12 * MIB:
            stop.set()

    settings = load_settings(overrides={"defaults": {"connections": 1, "limit_rate": "200MiB"}})
    with ModelManager(settings, backend=local, on_event=on_event) as manager:
        manager.push(make(tmp_path / "m", {"f": data}), "org/m")
    with ModelManager(settings, backend=local, on_event=on_event) as manager:
        stop.clear()
        with pytest.raises(CancelledError):
            manager.copy("org/m", source=local, to=s3, cancelled=stop)
    with ModelManager(backend=local) as manager:
        (version,) = manager.copy("org/m", source=local, to=s3).versions
        assert version.error is None
        assert 0 < version.fetched_bytes < len(data)
        assert manager.verify(backend=s3).ok


def test_what_an_incremental_run_costs(manager, tmp_path, s3_server, s3, another_bucket):
    """One request for each registry when nothing is new, however many versions there are."""
    for number in range(3):
        folder = make(tmp_path / f"m{number}", {"f": b"%d" % number})
        manager.push(folder, f"org/m{number}", to=s3, aliases=["prod"])
    manager.replicate(source=s3, to=another_bucket, with_aliases=True)
    s3_server.requests.clear()
    manager.replicate(source=s3, to=another_bucket, with_aliases=True)
    assert len(s3_server.requests) <= 3, "\n".join(map(str, s3_server.requests))
    with ModelManager(backend=s3) as fresh:
        s3_server.requests.clear()
        assert fresh.replicate(source=s3, to=another_bucket).count(Outcome.PRESENT) == 3
    assert not [r for r in s3_server.requests if "/models/" in r[1] or "manifests" in r[1]]


def test_a_prefix_of_the_backends_bucket_is_adopted_in_place(manager, s3_server, s3):
    """Read once to be hashed; nothing is written but the registry."""
    sink = S3Sink(S3Sink.Config(root=s3))
    for name in ("a/x", "b/y"):
        for path, data in FILES.items():
            sink.write(f"old/{name}/{path}", [data + name.encode()], size=len(data) + 3)
    s3_server.requests.clear()
    adopted = manager.adopt(f"{s3}/old", to=s3, depth=2)
    assert not adopted.failed
    assert [m.model_id for m in adopted.models] == ["a/x", "b/y"]
    written = [path for method, path in s3_server.requests if method == "PUT"]
    assert written
    assert all("/.mm/" in path for path in written)
    entry = manager.registry(s3).resolve("a/x")
    assert entry.path == f"{s3}/old/a/x"
    assert manager.verify(backend=s3).ok
    assert manager.get("b/y", backend=s3).path.joinpath("config.json").read_bytes() == b"{}b/y"
    manager.remove("a/x", backend=s3)
    assert read_bytes(sink, "old/a/x/config.json") == b"{}a/x"


def test_another_bucket_of_the_store_is_copied_by_it(manager, s3_server, s3, another_bucket):
    """Read once to be hashed, and never sent."""
    sink = S3Sink(S3Sink.Config(root=f"{another_bucket}/old"))
    for path, data in FILES.items():
        sink.write(path, [data], size=len(data))
    (model,) = manager.adopt(f"{another_bucket}/old", to=s3, model_id="org/m", version="1").models
    assert model.error is None
    assert (model.copied_bytes, model.fetched_bytes) == (sum(map(len, FILES.values())), 0)
    place = manager.registry(s3)
    files = place.manifest(place.resolve("org/m@1")).files
    assert {f.path: f.sha256 for f in files} == {p: sha256(d) for p, d in FILES.items()}
    assert manager.verify(backend=s3).ok


def test_a_prefix_of_gcs_is_adopted_in_place(manager, gcs):
    """As on S3."""
    sink = manager.sink(gcs)
    for path, data in FILES.items():
        sink.write(f"old/m/{path}", [data], size=len(data))
    (model,) = manager.adopt(f"{gcs}/old/m", to=gcs).models
    assert (model.error, model.how) == (None, "in place")
    assert manager.verify(backend=gcs).ok


def test_a_folder_is_brought_to_a_bucket(manager, tmp_path, s3):
    """Where nothing can be shared it is streamed, as by a pull."""
    (model,) = manager.adopt(str(make(tmp_path / "m")), to=s3).models
    assert (model.error, model.fetched_bytes) == (None, sum(map(len, FILES.values())))
    assert manager.verify(backend=s3).ok


def test_faults_of_the_network_change_nothing(
    manager, tmp_path, s3_server, s3, another_bucket, monkeypatch
):
    """One request in ten is cut, refused, or its answer lost: in the end both are equal."""
    for number in range(3):
        manager.push(make(tmp_path / f"m{number}", {"f": b"%d" % number}), f"m{number}", to=s3)
    with FaultProxy(s3_server.endpoint_url, rate=0.1, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        for _ in range(5):
            with ModelManager(backend=s3) as shaky, contextlib.suppress(TransientError):
                if not shaky.replicate(source=s3, to=another_bucket).failed:
                    break
        assert any(exchange.fault for exchange in proxy.requests)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    with ModelManager(backend=s3) as calm:
        calm.replicate(source=s3, to=another_bucket)
        check_equal(calm, s3, another_bucket)

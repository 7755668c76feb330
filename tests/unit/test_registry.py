"""The guide's own tests of the registry, and what else its face promises."""

import json
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from mm_core.exceptions import ConfigError, ConflictError, InvalidNameError, UsageError
from mm_core.registry import ModelRegistry
from mm_core.schemas import ModelEntry, ModelStatus, ModelType
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit


@pytest.fixture
def temp_registry():
    with tempfile.NamedTemporaryFile(mode="w", suffix=".json", delete=False) as f:
        registry_file = Path(f.name)

    registry = ModelRegistry(registry_file=registry_file)
    yield registry

    # Cleanup
    if registry_file.exists():
        registry_file.unlink()


def test_add_model(temp_registry):
    """Test adding a new model to registry."""
    entry = ModelEntry(
        model_id="test-model",
        model_type=ModelType.TEXT_GENERATION,
        path=Path("/tmp/test-model"),
        status=ModelStatus.AVAILABLE,
        version="1.0",
        size_bytes=1000,
        download_date=datetime.now(),
        metadata={},
    )

    result = temp_registry.add_model(entry)
    assert result is True

    retrieved = temp_registry.get_model("test-model")
    assert retrieved is not None
    assert retrieved.model_id == "test-model"


def test_duplicate_model(temp_registry):
    """Test adding duplicate model returns False."""
    entry = ModelEntry(
        model_id="duplicate-test",
        model_type=ModelType.TEXT_GENERATION,
        path=Path("/tmp/duplicate"),
        status=ModelStatus.AVAILABLE,
        version="1.0",
        size_bytes=1000,
        download_date=datetime.now(),
        metadata={},
    )

    # First add should succeed
    assert temp_registry.add_model(entry) is True

    # Second add should fail
    assert temp_registry.add_model(entry) is False


# -- beyond the guide


@pytest.fixture(autouse=True)
def _temporary_files_here(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def entry_of(model_id, version="1", **fields):
    return ModelEntry(
        **{"model_id": model_id, "version": version, "path": Path("/models/x"), **fields}
    )


@pytest.fixture
def registry(tmp_path):
    return ModelRegistry(registry_file=tmp_path / "models.json")


def second_client(registry):
    return ModelRegistry(LocalSink(LocalSink.Config(root=registry.sink.root)))


@pytest.mark.parametrize(
    "date",
    [
        datetime(2024, 1, 2, 3, 4, 5, 678),
        datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ],
)
def test_an_entry_comes_back_as_it_was(registry, date):
    """Metadata, dates with and without a zone, and a Path survive the log and a new reader."""
    entry = entry_of(
        "org/model",
        model_type=ModelType.TEXT_GENERATION,
        download_date=date,
        metadata={"layers": 3, "tags": ["ä", None], "nested": {"x": 1.5}},
        source="hf://org/model",
        size_bytes=7,
    )
    assert registry.add_model(entry) is True
    assert second_client(registry).get_model("org/model") == entry


def test_a_url_stays_a_url(registry):
    """A path given as a string comes back as that string."""
    registry.add_model(entry_of("m", path="s3://bucket/m"))
    assert second_client(registry).get_model("m").path == "s3://bucket/m"


def test_the_same_version_is_added_again_only_after_it_was_deleted(registry):
    """add_model gives False for a known version, True for a new one or a DELETED one."""
    assert registry.add_model(entry_of("m", size_bytes=1))
    assert not registry.add_model(entry_of("m", size_bytes=2))
    assert registry.get_model("m").size_bytes == 1
    assert registry.add_model(entry_of("m", "2"))
    registry.remove("m", "1")
    assert registry.add_model(entry_of("m", size_bytes=3))
    assert registry.get_model("m", "1").size_bytes == 3


def test_a_name_that_differs_by_case_only_is_refused(registry):
    """Two spellings of one name would share a folder on some disks."""
    registry.add_model(entry_of("Org/Model", "V1"))
    with pytest.raises(ConflictError, match="Org/Model@V1"):
        registry.add_model(entry_of("org/model", "v1"))
    with pytest.raises(ConflictError):
        registry.begin("ORG/Model", "2")
    assert registry.get_model("org/model") is None


def test_status_changes_only_what_is_there(registry):
    """update_model_status is True for a known version and False for none."""
    registry.add_model(entry_of("m", status=ModelStatus.DOWNLOADING))
    assert registry.update_model_status("m", ModelStatus.AVAILABLE) is True
    assert registry.get_model("m").status is ModelStatus.AVAILABLE
    assert registry.update_model_status("other", ModelStatus.FAILED) is False
    assert registry.update_model_status("m", ModelStatus.FAILED, version="9") is False
    with pytest.raises(UsageError):
        registry.update_model_status("m", ModelStatus.SWEEPING)


def test_an_incomplete_pull_cannot_be_declared_available(registry):
    """Only add makes a pulled version AVAILABLE; a claim guards it from status changes."""
    claim = registry.begin("m", "1")
    with pytest.raises(ConflictError):
        registry.update_model_status("m", ModelStatus.AVAILABLE)
    registry.abandon(claim, "stopped")
    with pytest.raises(ConflictError):
        registry.update_model_status("m", ModelStatus.AVAILABLE)


def test_get_model_prefers_what_can_be_used(registry):
    """The alias latest, else the AVAILABLE version added last, else the newest of all."""
    for version in ("1", "2"):
        registry.add_model(entry_of("m", version))
    registry.add_model(entry_of("m", "3", status=ModelStatus.FAILED))
    assert registry.get_model("m").version == "2"
    registry.set_alias("m", "latest", "1")
    assert registry.get_model("m").version == "1"
    assert registry.resolve("m").version == "1"
    for version in ("1", "2"):
        registry.update_model_status("m", ModelStatus.FAILED, version=version)
    assert registry.get_model("m").version == "3"


def test_list_models_filters(registry):
    """By status and type; DELETED only when it is asked for; ordered by id and then by age."""
    registry.add_model(entry_of("b", "9", model_type=ModelType.FILL_MASK))
    registry.add_model(entry_of("b", "1"))
    registry.add_model(entry_of("a", status=ModelStatus.FAILED))
    registry.add_model(entry_of("c"))
    registry.remove("c", "1")

    def names(**filters):
        return [f"{e.model_id}{e.version}" for e in registry.list_models(**filters)]

    assert names() == ["a1", "b9", "b1"]
    assert names(include_deleted=True) == ["a1", "b9", "b1", "c1"]
    assert names(status=ModelStatus.DELETED) == ["c1"]
    assert names(status=ModelStatus.AVAILABLE) == ["b9", "b1"]
    assert names(model_type=ModelType.FILL_MASK) == ["b9"]


def test_the_cache_sees_every_write_of_this_process(registry):
    """A commit through another instance on the same root is seen by the cached lookup at once."""
    assert registry.get_model_cached("m") is None
    other = second_client(registry)
    other.add_model(entry_of("m"))
    assert registry.get_model_cached("m").status is ModelStatus.AVAILABLE
    assert registry.get_model_cached("m") is registry.get_model_cached("m")
    other.update_model_status("m", ModelStatus.FAILED)
    assert registry.get_model_cached("m").status is ModelStatus.FAILED


def test_the_view_shows_the_registry_and_is_never_read(registry):
    """The file follows each commit and load; what is changed in it changes nothing."""
    registry.add_model(entry_of("m"))
    view = json.loads(registry.registry_file.read_text())
    assert view["format"] == "model-manager-view"
    assert [m["model_id"] for m in view["models"]] == ["m"]
    registry.registry_file.write_text(json.dumps({**view, "models": []}))
    registry.load()
    assert registry.get_model("m") is not None
    assert json.loads(registry.registry_file.read_text()) == view
    assert list(registry.registry_file.parent.glob(".*")) == []


@pytest.mark.parametrize("content", ["{}", "[1]", "precious", '{"format": "other"}'])
def test_a_foreign_file_is_never_overwritten(tmp_path, content):
    """A file that is not our view stops the registry before anything is written."""
    file = tmp_path / "models.json"
    registry = ModelRegistry(registry_file=file)
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        ModelRegistry(registry_file=file)
    assert caught.value.hint
    with pytest.raises(ConfigError):
        registry.add_model(entry_of("m"))
    assert file.read_text() == content
    file.unlink()
    assert registry.list_models() == []


def test_a_view_that_cannot_be_written_harms_nothing(registry, monkeypatch, caplog):
    """What was committed stays committed; the log says that the view is old."""

    def full(self, target):
        if target == registry.registry_file:
            raise OSError(28, "No space left on device")
        return original(self, target)

    original = Path.replace
    monkeypatch.setattr(Path, "replace", full)
    assert registry.add_model(entry_of("m")) is True
    assert "view" in caplog.text
    assert [p.name for p in registry.registry_file.parent.iterdir()] == ["models.json.d"]
    monkeypatch.undo()
    registry.load()
    assert registry.registry_file.exists()


def test_a_folder_in_the_place_of_the_view_is_an_error(tmp_path):
    """The file cannot be a folder."""
    with pytest.raises(ConfigError, match="cannot be read"):
        ModelRegistry(registry_file=tmp_path)


def test_a_relative_path_stays_relative(registry):
    """A relative Path comes back as the same relative Path."""
    registry.add_model(entry_of("m", path=Path("models/m")))
    assert second_client(registry).get_model("m").path == Path("models/m")


def test_metadata_must_be_json(registry):
    """What could not be read back is refused, and nothing is written."""
    for bad in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(UsageError):
            registry.add_model(entry_of("m", metadata=bad))
    assert registry.get_model("m") is None


def test_a_registry_needs_a_place():
    """Neither a sink nor a file is an error that says what to give."""
    with pytest.raises(UsageError) as caught:
        ModelRegistry()
    assert "registry_file" in caught.value.hint


@pytest.mark.parametrize("reference", ["", "@1", "../x", "m@@", ":prod"])
def test_bad_references_are_refused(registry, reference):
    """A reference from outside is checked like any name, or finds nothing."""
    with pytest.raises((InvalidNameError, LookupError)):
        registry.resolve(reference)


def test_a_near_miss_is_named(registry):
    """The hint of NotFoundError knows a name that differs by case, or by a slip of a finger."""
    registry.add_model(entry_of("Org/Model"))
    registry.add_model(entry_of("another/one"))
    for wrong in ("org/model", "Org/Mdoel"):
        for asked in (registry, registry.reading()):
            with pytest.raises(LookupError) as caught:
                asked.resolve(wrong)
            assert caught.value.hint == "did you mean 'Org/Model'?"
    with pytest.raises(LookupError) as caught:
        registry.resolve("nothing-like-it")
    assert "did you mean" not in caught.value.hint


def test_a_version_wins_over_an_alias_of_the_same_name(registry):
    """ID@NAME is the version NAME where there is one, else the alias; ID:NAME is the alias."""
    registry.add_model(entry_of("m", "1"))
    registry.add_model(entry_of("m", "2"))
    registry.set_alias("m", "1", "2")
    registry.set_alias("m", "Prod", "2")
    assert registry.resolve("m@1").version == "1"
    assert registry.resolve("m:1").version == "2"
    assert registry.resolve("m@prod").version == "2"


def test_history_is_filtered_by_model(registry):
    """history(id) holds the commits that touch that model, with what was done."""
    for name in ("a", "b", "a"):
        registry.add_model(entry_of(name)) or registry.remove(name, "1")
    assert [record.seq for record in registry.history()] == [1, 2, 3]
    (first, last) = registry.history("a")
    assert [o["op"] for o in first.operations + last.operations] == ["register", "remove"]
    assert first.to_json()["writer"]


def test_a_mock_of_the_registry_has_its_face():
    """Tests of others may use MagicMock(spec=ModelRegistry)."""
    mock = MagicMock(spec=ModelRegistry)
    mock.get_model.return_value = None
    for name in ("add_model", "update_model_status", "list_models", "get_model_cached", "load"):
        getattr(mock, name)
    assert mock.get_model("m") is None
    assert mock.registry_file is not None
